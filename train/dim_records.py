"""Draw-In-Mind at full size learns from records of any reader, encoded once: latents by DC-AE, states by Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mindedit_core.backbones.hf_weights import fingerprint
from mindedit_core.backbones.qwen2_5_vl import Qwen25VL
from mindedit_core.model_files import load_published
from mindedit_core.painters.framing import frame
from mindedit_core.painters.latents import encode, pixels_per_latent
from train.dim_states import padded
from train.dim_student import Student
from train.dim_world import chances
from train.encoding import Encoder, Part
from train.examples import Epochs
from train.loop import Losses, Scores, device
from train.readers import open_records, options_from
from train.records import EditRecord
from train.rejects import usable


class FullStudent(Student):
    """The student, and the frozen parts that encode its records when they are not kept yet."""

    def __init__(self, parts: Any, config: Any):
        super().__init__(parts)
        if config.checkpoint_activations:
            self.transformer.enable_gradient_checkpointing()
        self.encoder = Encoder(parts_of(config), config.cache)

    def forward(self, batch: dict) -> Losses:
        return super().forward(self.encoded(batch))

    def encoded(self, batch: dict) -> dict:
        """The batch as `Student` takes it."""
        with torch.autocast(device().type, enabled=False):
            samples = [self.encoder.fill(*pair) for pair in zip(batch["records"], batch["found"], strict=True)]
        states, mask = padded([sample["states"][-len(self.null_tokens):] for sample in samples])
        pictures = {name: torch.stack([sample[name] for sample in samples]).float().to(device())
                    for name in ("clean", "source") if name in samples[0]}
        return {**batch, **pictures, "states": states.to(device()), "mask": mask.to(device())}


def parts_of(config: Any) -> list[Part]:
    """Latents of the pictures, and states of the turn, each under a hash of what it is made from."""
    vae = load_published("AutoencoderDC", config.autoencoder).to(device())
    mllm = Qwen25VL.from_folder(config.mllm, torch.bfloat16, device=device(), **config.seen())
    side = config.resolution

    def latent(picture: np.ndarray) -> Tensor:
        image = torch.from_numpy(picture)[None].float() / 255
        framed = frame("crop", picture.shape[:2], side, pixels_per_latent(vae))
        return encode(vae, framed.apply(image).to(device()))[0].half()

    def pictures(record: EditRecord) -> dict[str, Tensor]:
        source = {} if config.stage == "t2i" else {"source": latent(record.source)}
        return {"clean": latent(record.target), **source}

    def states(record: EditRecord) -> dict[str, Tensor]:
        image = None if config.stage == "t2i" else torch.from_numpy(record.source)[None].float() / 255
        return {"states": mllm.turn(mllm.read(image), text_of(record, config.stage)).hidden[0].half()}

    seen = [] if config.stage == "t2i" else ["source"]
    looks = f"{fingerprint(vae)} {side} {config.stage == 't2i'}"
    reads = f"{mllm.mllm_id} {mllm.size()} {config.stage == 't2i'}"

    def turn(record: EditRecord) -> list[bytes]:
        return [text_of(record, config.stage).encode(), *pixels(record, seen)]

    return [Part("latents", looks, lambda record: pixels(record, ["target", *seen]), pictures),
            Part("states", reads, turn, states)]


def pixels(record: EditRecord, names: list[str]) -> list[bytes]:
    arrays = [getattr(record, name) for name in names]
    return [piece for array in arrays for piece in (str(array.shape).encode(), array.tobytes())]


def text_of(record: EditRecord, stage: str) -> str:
    """What the MLLM reads beside the picture. Raises ValueError for a record that has none for this stage."""
    text = {"t2i": record.target_caption, "edit1": record.instruction, "edit2": record.blueprint}[stage]
    if not text:
        wanted = "caption" if stage == "t2i" else "blueprint"
        raise ValueError(f"stage {stage} needs a {wanted}, record {record.id} has none; choose a reader that gives one")
    return text


def open_source(config: Any) -> Epochs:
    """The records that a config names; what cannot be used is written to rejects.jsonl in the run's folder."""
    records = open_records(config.data, **options_from(config.data_options))
    good = usable(records, config.runs / "data" / config.data, config.workers)
    return Epochs(good, config.seed, config.batch_size, config.held_out)


def batches(config: Any, source: Epochs, student: FullStudent, channels: int) -> Callable[[int], dict]:
    side = config.resolution // config.factor

    def batch_of(number: int) -> dict:
        records = source.rows(number)
        random = np.random.default_rng([config.seed, number, 11])
        return {"names": [record.id for record in records], "records": tuple(records),
                "found": tuple(student.encoder.find(record) for record in records),
                **chances(random, (len(records), channels, side, side), config.drop)}
    return batch_of


@torch.no_grad()
def validate(student: nn.Module, source: Epochs, config: Any, channels: int) -> Scores:
    """The loss on held-out records, always at the same noise."""
    side, losses = config.resolution // config.factor, []
    for number, record in enumerate(source.held_out):
        random = np.random.default_rng([number, 12])
        batch = {"records": (record,), "found": (student.encoder.find(record),)}
        drawn = {name: value.to(device()) for name, value in chances(random, (1, channels, side, side), 0.0).items()}
        losses.append(student({**batch, **drawn})["flow"].item())
    return {"flow_held_out": float(np.mean(losses))}
