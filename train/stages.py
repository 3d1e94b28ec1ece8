"""Training in stages: each ends with one file in the weights folder, from which the next goes on (`warm`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mindedit_core.checkpoint import read_metadata
from mindedit_core.model_files import load_model
from train.config import CONFIG, Training, save_config
from train.loop import device


def seeded(config: Training) -> None:
    """Before a student is built: its random weights are those of the seed, on every process."""
    torch.manual_seed(config.seed)


def warm(config: Training, file: Path) -> nn.Module | None:
    """The file of an earlier stage, trainable again, if the config asks for it; else None."""
    return load_model(file).requires_grad_(True).train() if config.warm else None


def steps_before(config: Training, file: Path) -> int:
    """Optimiser steps of the stages before this one, by the file that it starts from; ask before that is replaced."""
    return read_metadata(file)["steps"] if config.warm else 0


def run_folder(config: Training, file: Path) -> Path:
    """Where this stage keeps its checkpoints: a cut-off stage is resumed, a finished one never replaces the next."""
    return config.runs / (f"{file.stem}-after-{steps_before(config, file)}" if config.warm else file.stem)


def frozen(config: Training, name: str) -> nn.Module:
    """A part of the mini that is not trained here, where the training takes place."""
    return load_model(config.weights / f"{name}.safetensors").to(device()).requires_grad_(False).eval()


def use_plain_attention(language_model: nn.Module) -> None:
    """With heads this narrow torch's fused attention is the slower one on a CPU: 1.2 s against 0.9 s a LoRA step."""
    if device().type == "cpu":
        language_model.config._attn_implementation = "eager"


def save_beside(config: Training, recipe: str, path: Path) -> None:
    """The settings of the last stage, next to the file that it gave: `--config FILE.config.json` trains it again."""
    save_config(config, recipe, path.with_suffix(f".{CONFIG}"))


def provenance(config: Training, recipe: str, steps: int, score: dict[str, float], data: str = "scenes v1") -> dict:
    """What a file says of how it came to be."""
    return {"recipe": recipe, "seed": config.seed, "steps": steps, "data": data,
            "score": {name: value for name, value in score.items() if isinstance(value, (int, float))}}
