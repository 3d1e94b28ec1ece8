"""Samples that training never saw, and how they are shown to a system."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mindedit_core.scenes import EVALUATION_SEEDS, OPERATIONS, Sample, sample

Scores = dict[str, list[float]]  # metric -> one value a sample


def singles(seed: int, n: int) -> list[Sample]:
    """n unseen single edits, the seven operations in turn."""
    return [sample(EVALUATION_SEEDS + seed * 10**6 + i, operation=OPERATIONS[i % 7]) for i in range(n)]


def programs(seed: int, n: int) -> list[Sample]:
    return [sample(EVALUATION_SEEDS + seed * 10**6 + 500_000 + i, steps=2 + i % 3) for i in range(n)]


def pictures(items: Sequence[Sample]) -> Tensor:
    """float[B, 128, 128, 3] in 0..1."""
    return torch.from_numpy(np.stack([item.source_image for item in items])).float() / 255


def masks(items: Sequence[Sample]) -> Tensor:
    return torch.from_numpy(np.stack([item.mask for item in items])).float()


def chunks(items: Sequence, size: int):
    return [items[start:start + size] for start in range(0, len(items), size)]
