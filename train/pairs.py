"""Editing examples for training: T_raw with its picture, T_opt, and the target, as a stream that resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator

from mindedit_core.scenes import Sample, sample

PROGRAMS = 0.3  # share of multi-step instructions


def samples(seed: int, step: int, batch_size: int, programs: float = PROGRAMS) -> Iterator[list[Sample]]:
    """Batches from `step` on. Sample numbers grow with the step and are never drawn twice; `seed` shifts them."""
    few = round(programs * batch_size)
    while True:
        first = seed * 2**26 + step * batch_size
        yield [sample(first + row, steps=1 if row >= few else 2 + (first + row) % 3) for row in range(batch_size)]
        step += 1
