"""What MIND-Edit learns from: records of any reader with their T_opt, in batches that are functions of their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from mindedit_core.prompts import format_answer
from mindedit_core.scenes import OPERATIONS, sample
from train.pairs import PROGRAMS, samples
from train.pairs_file import with_pairs
from train.readers import open_records, options_from
from train.readers.world import to_record
from train.records import EditRecord, Records
from train.rejects import usable

WORLD = "world"  # the endless one: every batch is new
VALIDATION_SEEDS = 2**30


class Source(Protocol):
    """rows(number): the records of micro-batch `number`;  held_out: those that validation is made on"""

    held_out: Sequence[EditRecord]

    def rows(self, number: int) -> list[EditRecord]: ...


class Endless:
    """The procedural world: never the same sample twice."""

    def __init__(self, seed: int, batch_size: int, held_out: int, programs: float = PROGRAMS):
        self.seed, self.batch_size, self.programs = seed, batch_size, programs
        self.held_out = [world_record(number) for number in range(held_out)]

    def rows(self, number: int) -> list[EditRecord]:
        drawn = samples(self.seed, number, self.batch_size, self.programs)
        return [to_record(f"world {self.seed}-{number}-{row}", item) for row, item in enumerate(drawn)]


def world_record(number: int) -> EditRecord:
    """Record `number` to validate on: single edits, the seven operations in turn."""
    item = sample(VALIDATION_SEEDS + number, operation=OPERATIONS[number % 7])
    return to_record(f"validation {number}", item)


class Epochs:
    """A dataset of a size, in another order every epoch; the last rows of it are held out."""

    def __init__(self, records: Records, seed: int, batch_size: int, held_out: int):
        if len(records) <= held_out:
            raise ValueError(f"{held_out} records of {len(records)} are held out for validation; hold out fewer")
        self.records, self.seed, self.batch_size = records, seed, batch_size
        self.count = len(records) - held_out
        self.held_out = [records[row] for row in range(self.count, len(records))]

    def rows(self, number: int) -> list[EditRecord]:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [self.records[order(self.seed, place // self.count, self.count)[place % self.count]] for place in places]


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def source(config) -> Source:
    """The data that a MIND-Edit config names; what cannot be used is written to rejects.jsonl in the run's folder."""
    if config.data == WORLD and not config.data_options:
        return Endless(config.seed, config.batch_size, config.held_out, config.programs)
    records = open_records(config.data, **options_from(config.data_options))
    records = with_pairs(records, config.t_opt) if config.t_opt else records
    good = usable(records, config.runs / "data" / config.data, config.workers)
    return Epochs(good, config.seed, config.batch_size, config.held_out)


def answer(record: EditRecord) -> str:
    """What the MLLM has to write. Raises ValueError for a record without T_opt."""
    if record.optimized is None:
        raise ValueError(
            f"record {record.id} has no T_opt; have it written by train.build_t_opt and name that file (t_opt=FILE)"
        )
    return format_answer(record.optimized, record.regions, record.steps)


def batches(rows: Callable[[int], list[EditRecord]], find: Callable[[EditRecord], dict]) -> Callable[[int], dict]:
    """Number of a micro-batch -> its records, with what is kept of their encodings."""

    def batch_of(number: int) -> dict:
        records = rows(number)
        return {"names": [record.id for record in records], "records": tuple(records),
                "found": tuple(find(record) for record in records)}

    return batch_of
