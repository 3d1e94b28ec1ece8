"""Batches of the world as tensors, each a function of (seed, step): a resumed run sees what it would have seen."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mindedit_core.scenes import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene, render
from mindedit_core.scenes.sampling import draw_scene


def training_scene(random: np.random.Generator) -> Scene:
    """A scene whose graph is not reserved for evaluation."""
    while (scene := draw_scene(random)).for_evaluation:
        pass
    return scene


def scenes(seed: int, step: int, batch_size: int) -> list[Scene]:
    """The scenes of one step."""
    random = np.random.default_rng([seed, step])
    return [training_scene(random) for _ in range(batch_size)]


def pictures(batch: list[Scene]) -> Tensor:
    """float[B, 3, 128, 128] in -1..1."""
    return to_model(np.stack([render(scene) for scene in batch]))


def to_model(images: np.ndarray) -> Tensor:
    """uint8[B, H, W, 3] -> float[B, 3, H, W] in -1..1."""
    return rearrange(torch.from_numpy(images).float() / 127.5 - 1, "b h w c -> b c h w").contiguous()


def slot_labels(batch: list[Scene]) -> dict[str, Tensor]:
    """What a reader of a picture should know: per slot kind (12 = empty), colour, size (-100 if empty); background."""
    labels = {"kind": torch.full((len(batch), 9), len(KINDS)), "colour": torch.full((len(batch), 9), -100),
              "size": torch.full((len(batch), 9), -100)}
    for row, scene in enumerate(batch):
        for thing in scene.things:
            labels["kind"][row, thing.slot] = KINDS.index(thing.kind)
            labels["colour"][row, thing.slot] = COLOURS.index(thing.colour)
            labels["size"][row, thing.slot] = SIZES.index(thing.size)
    labels["background"] = torch.tensor([BACKGROUNDS.index(scene.background) for scene in batch])
    return labels
