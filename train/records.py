"""The one shape in which every dataset reaches a recipe: an EditRecord a row, by number, from any reader.

A reader decodes when it is asked, holds no picture, and can be pickled, so that DataLoader workers take it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mindedit_core.contracts import Region


@dataclass(frozen=True, eq=False)
class EditRecord:
    """One editing example.

    id: unique and stable in its dataset, whatever part of it is on the disk
    instruction: T_raw on one line;  optimized: T_opt, if it is known;  regions: where T_opt's change takes place
    source, target: uint8[H, W, 3];  mask: bool[H, W], True where the edit is;  all of one size
    source None: the target is made of the instruction alone
    kind: the dataset's own name for this sort of edit;  notes: what was done to the row to make it fit
    steps: what each part of an instruction of several parts changes
    blueprint: Draw-In-Mind's text in five sections (`mindedit_core.blueprint`), if it is known
    """

    id: str
    instruction: str
    source: np.ndarray | None
    target: np.ndarray | None = None
    mask: np.ndarray | None = None
    source_caption: str | None = None
    target_caption: str | None = None
    optimized: str | None = None
    regions: tuple[Region, ...] = ()
    kind: str | None = None
    notes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    blueprint: str | None = None

    def __post_init__(self) -> None:
        width, height = self.size
        for name in ("source", "target", "mask"):
            array = getattr(self, name)
            shape, kind = ((height, width), np.bool_) if name == "mask" else ((height, width, 3), np.uint8)
            if array is not None and (array.shape != shape or array.dtype != kind):
                raise ValueError(
                    f"{name} of record {self.id} must be {np.dtype(kind)}{list(shape)}, "
                    f"got {array.dtype}{list(array.shape)}; bring all pictures of a record to one size"
                )

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its pictures."""
        picture = self.target if self.source is None else self.source
        if picture is None:
            raise ValueError(f"record {self.id} must have a source or a target, got neither")
        return picture.shape[1::-1]


@runtime_checkable
class Records(Protocol):
    """What a reader gives. `records[row]` raises Rejected for a row that cannot be used."""

    ids: Sequence[str]

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> EditRecord: ...


class Rejected(ValueError):
    """A row that cannot be a record: which one, in which row of which file, and why."""

    def __init__(self, row: int, id: str, file: str, file_row: int, reason: str):
        super().__init__(row, id, file, file_row, reason)  # all of them, so that it survives a worker's pickle
        self.row, self.id, self.file, self.file_row, self.reason = row, id, file, file_row, reason

    def __str__(self) -> str:
        return f"{self.file}, row {self.file_row} ({self.id}): {self.reason}"

    def line(self) -> dict:
        """As it stands in rejects.jsonl."""
        return {"row": self.row, "id": self.id, "file": self.file, "file_row": self.file_row, "reason": self.reason}


class Subset:
    """Some rows of a reader, in the order given: records[rows[0]], records[rows[1]], ..."""

    def __init__(self, records: Records, rows: Sequence[int]):
        self.records, self.rows = records, list(rows)
        self.ids = [records.ids[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> EditRecord:
        return self.records[self.rows[row]]
