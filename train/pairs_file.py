"""The T_opt that `train.build_t_opt` wrote, beside the records that they belong to.

    records = with_pairs(open_records("human_edit", path=..., split="train"), "runs/t_opt/human_edit")
    print(*records.notes, sep="\\n")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindedit_core.contracts import Region
from train.journal import read_lines
from train.readers.cells import to_regions, to_steps
from train.readers.table import stamp_of
from train.records import EditRecord, Records, Rejected, Subset

PAIRS, FAILURES = "pairs.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class Pair:
    """What an instruction became. line: where in the file it stands, from 0"""

    raw: str
    optimized: str
    regions: tuple[Region, ...]
    steps: tuple[str, ...]
    line: int


def read_pairs(path: str | Path) -> dict[str, Pair]:
    """id -> Pair, the last where an id has several. path: pairs.jsonl, or its folder"""
    path = pairs_path(path)
    if not path.is_file():
        raise ValueError(f"there is no {path}; write it with python -m train.build_t_opt")
    return {line["id"]: _pair(path, number, line) for number, line in enumerate(read_lines(path))}


def pairs_path(path: str | Path) -> Path:
    return Path(path) / PAIRS if Path(path).is_dir() else Path(path)


def _pair(path: Path, number: int, line: Mapping[str, Any]) -> Pair:
    try:
        regions, steps = to_regions(line.get("regions", ())), to_steps(line.get("steps", ()))
        return Pair(line["raw"], line["optimized"], regions, steps, number)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}, line {number + 1} is no pair ({error!r})") from None


class Paired:
    """Records that have a pair, with its T_opt, regions and steps. notes: what either side lacks, with its count.

    A pair without regions leaves the record its own, those of its mask.
    A record whose instruction is another than the one that was asked is rejected when it is read.
    """

    def __init__(self, records: Records, pairs: Mapping[str, Pair], path: Path):
        self.pairs, self.path = pairs, path
        self.records = Subset(records, [row for row, name in enumerate(records.ids) if name in pairs])
        self.ids = self.records.ids
        self.notes = [*getattr(records, "notes", ()), *_differences(list(records.ids), pairs, path)]

    def stamp(self) -> tuple:
        inner = self.records.records
        return stamp_of([self.path]), inner.stamp() if hasattr(inner, "stamp") else ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> EditRecord:
        record, pair = self.records[row], self.pairs[self.ids[row]]
        if pair.raw != record.instruction:
            reason = f"its T_opt was written for another instruction, {pair.raw!r}"
            raise Rejected(row, record.id, str(self.path), pair.line, reason)
        return replace(record, optimized=pair.optimized, regions=pair.regions or record.regions, steps=pair.steps)


def _differences(ids: list[str], pairs: Mapping[str, Pair], path: Path) -> list[str]:
    lacking = [name for name in ids if name not in pairs]
    unknown = sorted(set(pairs) - set(ids))
    notes = [f"{len(ids) - len(lacking)} of {len(ids)} records have a T_opt in {path}"]
    if lacking:
        notes.append(f"{len(lacking)} records have none and are left out, the first is {lacking[0]}")
    if unknown:
        notes.append(f"{len(unknown)} pairs are for ids that are not among these records, the first is {unknown[0]}")
    return notes


def with_pairs(records: Records, path: str | Path) -> Paired:
    """path: pairs.jsonl, or its folder"""
    path = pairs_path(path)
    return Paired(records, read_pairs(path), path)
