"""The procedural world as the host's IMAGE, MASK and STRING."""

from __future__ import annotations

import torch
from torch import Tensor

from ..scenes import OPERATIONS, sample

ANY = "any"


def operations() -> list[str]:
    return [ANY, *OPERATIONS]


def sample_scene(seed: int, *, operation: str = ANY, edits: int = 1) -> tuple[Tensor, Tensor, str]:
    """IMAGE float[1, 128, 128, 3] in 0..1, MASK float[1, 128, 128], T_raw.

    From two edits on the operations are drawn, whatever `operation` says.
    """
    drawn = operation == ANY or edits > 1
    scene = sample(seed, operation=None if drawn else operation, steps=edits)
    image = torch.from_numpy(scene.source_image.copy()).float() / 255.0
    return image[None], torch.from_numpy(scene.mask.copy()).float()[None], scene.instruction
