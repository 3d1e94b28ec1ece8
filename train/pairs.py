"""Editing examples for training: T_raw with its picture, T_opt, and the target, step by step."""

from __future__ import annotations

from mindedit_core.scenes import Sample, sample

PROGRAMS = 0.3  # share of multi-step instructions


def samples(seed: int, step: int, batch_size: int, programs: float = PROGRAMS) -> list[Sample]:
    """The samples of one step. Their numbers grow with the step and are never drawn twice; `seed` shifts them."""
    few, first = round(programs * batch_size), seed * 2**26 + step * batch_size
    return [sample(first + row, steps=1 if row >= few else 2 + (first + row) % 3) for row in range(batch_size)]
