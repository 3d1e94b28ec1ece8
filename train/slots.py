"""Dense supervision by the scene graph: heads that read every slot, used while encoders learn and then thrown away."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mindedit_core.scenes import BACKGROUNDS, COLOURS, KINDS, SIZES

PARTS = {"kind": len(KINDS) + 1, "colour": len(COLOURS), "size": len(SIZES)}


class SlotReader(nn.Module):
    """Reads kind, colour and size of nine slots, and the background.

    From one vector per slot float[B, 9, D] and one for the picture float[B, D]; or, with `from_global`, all from the
    latter.
    """

    def __init__(self, width: int, from_global: bool = False):
        super().__init__()
        self.from_global = from_global
        self.parts = nn.Linear(width, sum(PARTS.values()) * (9 if from_global else 1))
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def forward(self, slots: Tensor | None, picture: Tensor) -> dict[str, Tensor]:
        """Logits: kind, colour, size float[B, 9, *], background float[B, 6]."""
        read = rearrange(self.parts(picture), "b (s d) -> b s d", s=9) if self.from_global else self.parts(slots)
        split = read.split(list(PARTS.values()), -1)
        return dict(zip(PARTS, split, strict=True)) | {"background": self.background(picture)}


def reading_losses(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross entropies; empty slots have no colour and no size."""
    return {name: F.cross_entropy(logit.float().flatten(0, -2), labels[name].flatten(), ignore_index=-100)
            for name, logit in logits.items()}


def reading_accuracy(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Share of right answers per part, and of pictures with everything right."""
    right = {name: (logit.argmax(-1) == labels[name]) | (labels[name] == -100) for name, logit in logits.items()}
    whole = right["background"] & (right["kind"] & right["colour"] & right["size"]).all(1)
    shares = {name: float(value.float().mean()) for name, value in right.items()}
    return {**shares, "scene": float(whole.float().mean())}
