"""Which rows of a dataset can be used: looked at once, written down, and left out by name from then on.

A recipe's batches are a function of the step number, so the rows that it draws from must be known before it starts.
`usable` reads every row once, writes `rejects.jsonl` (row, id, file, row in the file, reason; rows count from 0) and
`check.json` (what was looked at), and never again while the data stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from train.records import Records, Rejected, Subset

REJECTS, CHECK = "rejects.jsonl", "check.json"
PARTS = ("target", "mask", "source_caption", "target_caption", "optimized", "regions", "steps", "blueprint")


@dataclass(frozen=True)
class Finding:
    """What is left of a row when its pictures are gone. size: (width, height);  masked: share of the picture"""

    row: int
    id: str
    size: tuple[int, int] = (0, 0)
    words: int = 0
    masked: float | None = None
    has: tuple[str, ...] = ()
    kind: str | None = None
    notes: tuple[str, ...] = ()
    reject: dict[str, Any] | None = None


class Findings(Dataset):
    """Row -> Finding, for the workers of a DataLoader."""

    def __init__(self, records: Records):
        self.records = records
        first = {name: row for row, name in reversed(list(enumerate(records.ids)))}
        self.repeats = {row: first[name] for row, name in enumerate(records.ids) if first[name] != row}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Finding:
        name = self.records.ids[row]
        try:
            record = self.records[row]
        except Rejected as error:
            return Finding(row, name, reject=error.line())
        if row in self.repeats:
            reason = f"row {self.repeats[row]} has this id too"
            return Finding(row, name, reject=Rejected(row, name, "", row, reason).line())
        return Finding(
            row,
            name,
            size=record.size,
            words=len(record.instruction.split()),
            masked=None if record.mask is None else float(record.mask.mean()),
            has=tuple(part for part in PARTS if getattr(record, part) is not None and len(getattr(record, part))),
            kind=record.kind,
            notes=record.notes,
        )


def look(records: Records, workers: int = 0) -> Iterator[Finding]:
    """A finding for every row, in order. workers: processes that decode; 0: this one"""
    yield from DataLoader(Findings(records), batch_size=None, num_workers=workers, generator=torch.Generator())


def usable(records: Records, folder: str | Path, workers: int = 0) -> Subset:
    """The rows that can be used. folder: where rejects.jsonl and check.json lie, or are written now.

    Files made of other data are not believed: everything is looked at again.
    """
    folder = Path(folder)
    if not is_current(records, folder):
        for _ in check(records, folder, workers):
            pass
    lines = (folder / REJECTS).read_text(encoding="utf-8").splitlines()
    rejected = {json.loads(line)["row"] for line in lines}
    return Subset(records, [row for row in range(len(records)) if row not in rejected])


def check(records: Records, folder: str | Path, workers: int = 0) -> Iterator[Finding]:
    """Every finding as it is made; both files are written at the end, each complete or not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECK).unlink(missing_ok=True)
    rejects = []
    for finding in look(records, workers):
        rejects += [finding.reject] if finding.reject else []
        yield finding
    _write(folder / REJECTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rejects))
    said = {"fingerprint": fingerprint(records), "rows": len(records), "rejected": len(rejects)}
    _write(folder / CHECK, json.dumps(said) + "\n")


def is_current(records: Records, folder: Path) -> bool:
    """Whether the folder's files were made of these very data."""
    if not (folder / CHECK).is_file():
        return False
    return json.loads((folder / CHECK).read_text(encoding="utf-8"))["fingerprint"] == fingerprint(records)


def fingerprint(records: Records) -> str:
    """Of the ids, and of what the reader's `stamp()` says of its files and options."""
    stamp = records.stamp() if hasattr(records, "stamp") else ()
    return hashlib.sha256(repr((list(records.ids), stamp)).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
