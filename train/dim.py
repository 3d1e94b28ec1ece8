"""Trains Draw-In-Mind's painter (arXiv 2509.01986): MLP and SANA by flow matching; the MLLM stays frozen.

    python -m train.dim --config mini-t2i            # captions without a picture -> pictures
    python -m train.dim --config mini-edit1          # picture and wish as people say it -> the edited picture
    python -m train.dim --config mini-edit2          # picture and blueprint -> the edited picture
    accelerate launch -m train.dim --config edit2 --set data=dim_edit --set data_options=path=DIM-Edit

The paper's stages: text-to-image; edits as people say them (UltraEdit), for which SANA's first layer is widened by the
source's latents; edits with blueprints (DIM-Edit). Noise levels are logit-normal(0, 1) with shift 3, and one sample in
ten hears the learned null tokens in place of its text. Each stage starts from the file that the one before it gave.
Rates, batch sizes and epochs of the full-size presets are the paper's (its table of hyper-parameters; batch sizes are
of one process: with N of them set accumulate to an Nth). Weight decay, warm-up and averaging are not published: ours.
Nobody has trained at full size with this recipe yet, only its path on tiny parts in the published layouts
(tests/train/test_dim.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mindedit_core.dim.files import DimParts
from mindedit_core.model_files import DIM_FOLDER, MINI_FOLDER
from mindedit_core.systems.dim_files import load_dim, save_dim
from train import dim_records, dim_world
from train.config import Training, read_config
from train.dim_student import Student, from_sana, mini_parts, widened
from train.examples import WORLD
from train.loop import Run, fit
from train.stages import provenance, save_beside, seeded, steps_before

STAGES = ("t2i", "edit1", "edit2")
FILES = {"t2i": "dim_t2i", "edit1": "dim_edit1", "edit2": "dim"}  # in the folder `weights`


@dataclass(frozen=True, kw_only=True)
class Dim(Training):
    """stage: of STAGES;  drop: share of samples that hear the null tokens
    zero_init: the widened layer starts blind to the source; else with the layer's usual random weights, as published
    data: the procedural world, or a reader of train.readers, data_options its key=value
    count: cached samples of the world;  held_out: records to validate on
    cache: folder for encodings, None: none; at full size 7 MB a record, nearly all of it states
    mllm, sana: published folders, of full size;  autoencoder: the mini's file, or a published folder
    start: a file to start from, None: that of the stage before
    resolution: pixels of the square that is painted;  factor: pixels a latent cell;  side: at which the MLLM sees
    """

    stage: Literal["t2i", "edit1", "edit2"] = "t2i"
    drop: float = 0.1
    zero_init: bool = False
    data: str = WORLD
    data_options: tuple[str, ...] = ()
    count: int = 40000
    held_out: int = 64
    cache: Path | None = None
    mllm: Path | None = None
    sana: Path | None = None
    autoencoder: Path = MINI_FOLDER / "autoencoder.safetensors"
    start: Path | None = None
    resolution: int = 128
    factor: int = 16
    side: int | None = None

    def seen(self) -> dict[str, int]:
        """Options of the MLLM's inputs."""
        return {} if self.side is None else {"side": self.side}


MINI = Dim(steps=2500, learning_rate=8e-4, batch_size=64, matrices="muon", warm_up=200, ema=0.998, weights=DIM_FOLDER)
FULL = Dim(learning_rate=2e-5, batch_size=4, accumulate=8, warm_up=2000, decay=0.0001, ema=0.9999,
           weight_decay=0.0, workers=4, checkpoint_activations=True, weights=Path("runs/dim"), resolution=1024,
           factor=32, mllm=Path("models/LLM/Qwen2.5-VL-3B-Instruct"),
           sana=Path("models/diffusers/SANA1.5_1.6B_1024px_diffusers"),
           autoencoder=Path("models/diffusers/dc-ae-f32c32-sana-1.1-diffusers"))
PRESETS = {f"mini-{stage}": replace(MINI, stage=stage) for stage in STAGES} | {
    "t2i": replace(FULL, stage="t2i", steps=653_000, accumulate=64, data="dim_t2i"),  # 8 epochs of 20.9 M by 256
    "edit1": replace(FULL, stage="edit1", steps=1_250_000, learning_rate=1e-4, data="folder"),  # 10 of 4 M by 32
    "edit2": replace(FULL, stage="edit2", steps=364_000, learning_rate=1e-5, data="dim_edit"),  # 50 of 233 K by 32
}


def start(config: Dim, hidden_size: int) -> DimParts:
    """From a file that was named, from this stage's own (`warm`), from the one before it; else from SANA, or random."""
    before = FILES[config.stage if config.warm else STAGES[max(0, STAGES.index(config.stage) - 1)]]
    if config.stage == "t2i" and not config.warm and config.start is None:
        return mini_parts(hidden_size) if config.data == WORLD else from_sana(config.sana, hidden_size).trainable()
    parts = load_dim(config.start or config.weights / f"{before}.safetensors").trainable()
    if config.stage != "t2i" and parts.transformer.config.in_channels == parts.transformer.config.out_channels:
        parts = parts._replace(transformer=widened(parts.transformer, config.zero_init))
    return parts


def train_mini(config: Dim, folder: Path) -> tuple[Run, Student]:
    world = dim_world.open_world(config)
    student = Student(start(config, world.mllm.config.text_config.hidden_size))
    run = fit("train.dim", folder, student, config, dim_world.batches(config, world),
              lambda: dim_world.validate(student.parts, config.stage, world))
    return run, student


def train_full(config: Dim, folder: Path) -> tuple[Run, Student]:
    from transformers import AutoConfig

    source = dim_records.open_source(config)
    text = AutoConfig.from_pretrained(config.mllm, local_files_only=True).text_config
    student = dim_records.FullStudent(start(config, text.hidden_size), config)
    channels = student.transformer.config.out_channels
    run = fit("train.dim", folder, student, config, dim_records.batches(config, source, student, channels),
              lambda: dim_records.validate(student, source, config, channels))
    return run, student


def said_of(config: Dim, run: Run, before: int) -> dict[str, Any]:
    """before: steps of this stage that the file had which a warm one went on from"""
    heard = {"t2i": "captions", "edit1": "wishes", "edit2": "blueprints"}[config.stage]
    data = f"scenes v1, {heard} of {config.count} samples" if config.data == WORLD else f"{config.data}, {heard}"
    return provenance(config, f"train.dim, stage {config.stage}", before + run.step, run.scores, data)


def main() -> None:
    config = read_config(PRESETS, __doc__)
    seeded(config)
    torch.set_num_threads(config.threads)
    file = config.weights / f"{FILES[config.stage]}.safetensors"
    before = steps_before(config, file)
    folder = config.runs / f"dim-{config.stage}{f'-after-{before}' if config.warm else ''}"
    run, student = (train_mini if config.data == WORLD else train_full)(config, folder)
    if run.accelerator.is_main_process:
        # bfloat16 as published: what a model of full size learnt may be beyond float16
        dtype = torch.float16 if config.data == WORLD else torch.bfloat16
        save_dim(file, student.parts, dtype, **said_of(config, run, before))
        save_beside(config, "train.dim", file)


if __name__ == "__main__":
    main()
