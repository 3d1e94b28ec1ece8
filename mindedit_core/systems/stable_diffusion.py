"""Stable Diffusion from folders in diffusers' layout: SD1.5, SDXL, InstructPix2Pix, CosXL-edit, inpainting.

    unet  vae  text_encoder  tokenizer          every folder has these
    text_encoder_2  tokenizer_2                 SDXL's second text encoder
    scheduler/scheduler_config.json             noise levels, and what the UNet predicts; without it SD1.5's and SDXL's

What a folder is, is read from the configurations in it, never from its name. Weights may be in shards, or in a variant
(`*.fp16.safetensors`) where nothing else is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from ..bridges.ip_adapter import IPAdapter
from ..checkpoint import CheckpointError
from ..contracts import Misfit
from ..model_files import load_published
from ..painters.schedule import NoiseSchedule, schedule_from
from ..painters.unet import UNetPainter


def load_painter(sd: Path | None, sd_inpaint: Path | None, bridge: IPAdapter | None = None) -> UNetPainter:
    """Both UNets where both folders are named; everything else is that of the first.

    Raises CheckpointError naming the part that is missing, Misfit for folders that do not go together.
    """
    folders = [folder for folder in (sd, sd_inpaint) if folder is not None]
    schedule = one_schedule(folders)
    unets = [folder and load_published("UNet2DConditionModel", folder / "unet") for folder in (sd, sd_inpaint)]
    bases = {is_sdxl(unet) for unet in unets if unet is not None}
    if len(bases) > 1:
        raise Misfit(f"one of {sd} and {sd_inpaint} is an SDXL, the other is not; name two of one kind, or one alone")
    shared = folders[0]
    vae = load_published("AutoencoderKL", shared / "vae")
    text_encoder = load_published("CLIPTextModel", shared / "text_encoder")
    tokenizer = load_clip_tokenizer(shared / "tokenizer")
    second = load_second_text_encoder(shared) if bases == {True} else {}
    return UNetPainter(*unets, vae, text_encoder, tokenizer, bridge, schedule, **second)


def is_sdxl(unet: Any) -> bool:
    return unet.config.get("addition_embed_type") == "text_time"


def load_second_text_encoder(folder: Path) -> dict[str, Any]:
    """SDXL's bigG and its tokenizer, by the names that UNetPainter knows them."""
    return {
        "text_encoder_2": load_published("CLIPTextModelWithProjection", folder / "text_encoder_2"),
        "tokenizer_2": load_clip_tokenizer(folder / "tokenizer_2"),
    }


def load_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Raises CheckpointError if its files are not there."""
    if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"no CLIP tokenizer in {folder}: it lacks vocab.json and merges.txt; fetch them into it")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def one_schedule(folders: list[Path]) -> NoiseSchedule:
    """The noise schedule of all `folders`; Misfit if they were trained on different ones."""
    schedules = [load_schedule(folder) for folder in folders]
    if any(each != schedules[0] for each in schedules):
        raise Misfit(
            f"{' and '.join(map(str, folders))} were trained on different noise levels or predict different things; "
            "name one of them alone"
        )
    return schedules[0]


def load_schedule(folder: Path) -> NoiseSchedule:
    """Of `folder`/scheduler/scheduler_config.json; SD1.5's where that is not there."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return NoiseSchedule()
    try:
        return schedule_from(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{path} is not a scheduler's configuration ({error!r}); fetch it again") from error
