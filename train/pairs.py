"""Editing examples for training: T_raw with its picture, T_opt, and the target, step by step."""

from __future__ import annotations

from mindedit_core.scenes import Sample, sample

PROGRAMS = 0.2  # share of multi-step instructions
SEED_STRIDE, LAST = 2**26, 2**30  # from LAST on lie the samples that recipes validate on, then those of evaluation


def samples(seed: int, step: int, batch_size: int, programs: float = PROGRAMS) -> list[Sample]:
    """The samples of one step. Their numbers grow with the step and are never drawn twice; `seed` shifts them.

    Raises ValueError where they would run into the samples that recipes validate on.
    """
    few, first = round(programs * batch_size), seed * SEED_STRIDE + step * batch_size
    if not 0 <= first <= LAST - batch_size:
        raise ValueError(f"training samples are numbered below {LAST}, got {first}; choose a seed of 0 to 15")
    return [sample(first + row, steps=1 if row >= few else 2 + (first + row) % 3) for row in range(batch_size)]
