"""What a MIND-Edit in training can do: scores on records that were held out, and pictures to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mindedit_core.backbones.hf_vlm import IGNORED
from mindedit_core.backbones.llava_onevision import AnswerPass
from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.contracts import GLOBAL
from mindedit_core.designers.self_mllm import SelfMLLM
from mindedit_core.model_files import load_model
from mindedit_core.painters.unet import UNetPainter
from mindedit_core.pipeline import edit
from mindedit_core.prompts import parse_optimized, token_counter
from mindedit_core.regions import region_mask
from mindedit_core.systems import System
from mindedit_core.systems.mini import SETTINGS
from train.config import Training
from train.loop import Scores
from train.records import EditRecord

CHUNK = 20  # records at once
SHOWN = 8  # pictures
PAINTERS = ("unet", "unet_inpaint", "autoencoder", "clip")


@torch.no_grad()
def validate(student: Any, records: list[EditRecord]) -> Scores:
    """On records that were held out, teacher-forced (an upper bound of what it will write by itself): T_opt exact, also
    by kind of edit; overlap of the mask that its regions give with the true regions'; cosine of v_insight.
    """
    found: dict[str, list[float]] = {}
    for first in range(0, len(records), CHUNK):
        some = records[first:first + CHUNK]
        out, wanted = student.read({"records": some, "found": [{}] * len(some)})
        scored = written_scores(student, out, some) if student.writes else {}
        if student.foresees:
            cosine = F.cosine_similarity(student.head(out.states, out.mask), wanted, dim=-1)
            scored["cosine"] = cosine.reshape(len(some), -1).mean(1).tolist()  # of states, over all of them
        for name, values in scored.items():
            found.setdefault(name, []).extend(values)
    scores = {name: sum(values) / len(values) for name, values in found.items() if values}
    return scores | by_kind(found.get("exact", []), records)


def written_scores(student: Any, out: AnswerPass, records: list[EditRecord]) -> dict[str, list[float]]:
    said = out.logits.argmax(-1).masked_fill(out.targets == IGNORED, student.mllm.pad_id)
    pairs = [(parse_optimized(student.mllm.decode(row), ""), record) for row, record in zip(said, records, strict=True)]
    return {"exact": [float(told.text == record.optimized) for told, record in pairs],
            "region_iou": [overlap(told.regions, record) for told, record in pairs if record.regions]}


def overlap(regions: tuple, record: EditRecord) -> float:
    """Intersection over union of the mask of these regions and that of the record's own."""
    size = record.source.shape[:2]
    one, other = region_mask(regions, *size) > 0, region_mask(record.regions, *size) > 0
    return ((one & other).sum() / (one | other).sum().clamp(min=1)).item()


def by_kind(exact: list[float], records: list[EditRecord]) -> dict[str, float]:
    """Share of exact answers by kind of edit, where the data tell kinds apart."""
    kinds: dict[str, list[float]] = {}
    for value, record in zip(exact, records[:len(exact)], strict=True):
        kinds.setdefault(record.kind or "any", []).append(value)
    return {kind: sum(values) / len(values) for kind, values in kinds.items()} if len(kinds) > 1 else {}


def mini_system(student: Any, config: Training) -> System | None:
    """The mini with this MLLM in the lead; None while its painters are not trained, or cannot read such an insight."""
    files = [config.weights / f"{name}.safetensors" for name in (*PAINTERS, "ip_adapter")]
    reads = student.head.embed_form == GLOBAL  # the mini's own IP-Adapter is a base one
    if not (reads and student.writes and student.foresees and all(file.exists() for file in files)):
        return None
    parts = [load_model(file).to(student.mllm.head.query.device) for file in files[:-1]]
    bridge = IPAdapter.from_file(files[-1]).eval().requires_grad_(False).to(parts[0].device)
    painter = UNetPainter(*parts, student.mllm.tokenizer, bridge)
    designer = SelfMLLM(student.mllm, token_counter(student.mllm.tokenizer))
    return System("mini", student.mllm, designer, bridge, painter, SETTINGS, {})


@torch.no_grad()
def painted(system: System | None, records: list[EditRecord]) -> Scores:
    """{"painted": a grid float[3 * H, N * W, 3] of sources, what the system makes of them, and targets}."""
    shown = [record for record in records if record.mask is not None][:SHOWN]
    if system is None or not shown:
        return {}
    source, target = (torch.from_numpy(np.stack([getattr(record, name) for record in shown])).float() / 255
                      for name in ("source", "target"))
    mask = torch.from_numpy(np.stack([record.mask for record in shown])).float()
    wishes = [record.instruction for record in shown]
    result = edit(system, source, wishes, system.settings_for(mask)).image
    return {"painted": rows_of([source, result.cpu(), target])}


def rows_of(rows: list[Tensor]) -> Tensor:
    """Rows of pictures, float[N, H, W, 3] each, as one picture."""
    return rearrange(torch.stack(rows), "r n h w c -> (r h) (n w) c")
