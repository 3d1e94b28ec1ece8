"""What readers of tables share: which column plays which role, and rows that become records or are rejected.

A table has a length, `table[i] -> {column: cell}`, `place(i) -> (file, row in it)`, and `stamp()`, which changes when
its files do.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.readers.cells import Unfit
from train.records import EditRecord, Rejected


def resolve_columns(
    reader: str,
    file: Any,
    found: Sequence[str],
    defaults: Mapping[str, str],
    given: Mapping[str, str] | None,
    optional: Iterable[str] = (),
) -> dict[str, str]:
    """Role -> column. defaults: as published;  given: the user's names, "" for a role that the data lack.

    An optional role without its default column is left out.
    Raises ValueError for an unknown role and for a missing column, with the columns that there are.
    """
    given = dict(given or {})
    if unknown := sorted(set(given) - set(defaults)):
        raise ValueError(f"{reader} has no column role {', '.join(unknown)}; have {', '.join(defaults)}")
    names = {role: given.get(role, name) for role, name in defaults.items()}
    for role in optional:
        if names[role] not in found and role not in given:
            names[role] = ""
    for role, name in names.items():
        if (name and name not in found) or (not name and role not in optional):
            raise ValueError(
                f"{reader} needs a column for {role}, looked for {name or 'any'}; {file} has {', '.join(found)}: "
                f"name it with --set columns.{role}=NAME"
            )
    return {role: name for role, name in names.items() if name}


class TableRecords:
    """Rows of a table as records.

    make(id, cells) -> EditRecord;  cells: role -> cell. It raises Unfit for a row that cannot be one.
    rows: which rows of the table, all if None;  notes: what the user should know about the whole
    """

    def __init__(
        self,
        table: Any,
        columns: Mapping[str, str],
        ids: Sequence[str],
        make: Callable[[str, dict[str, Any]], EditRecord],
        rows: Sequence[int] | None = None,
        notes: Sequence[str] = (),
    ):
        self.table, self.columns, self.make, self.notes = table, dict(columns), make, list(notes)
        self.rows = list(range(len(table)) if rows is None else rows)
        self.ids = [ids[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def stamp(self) -> tuple:
        """Changes when the files, the columns or the options do."""
        return self.table.stamp(), sorted(self.columns.items()), repr(getattr(self.make, "keywords", None))

    def __getitem__(self, row: int) -> EditRecord:
        """Raises Rejected with file, row and reason."""
        try:
            cells = self.table[self.rows[row]]
            return self.make(self.ids[row], {role: cells.get(name) for role, name in self.columns.items()})
        except Unfit as error:
            file, file_row = self.table.place(self.rows[row])
            raise Rejected(row, self.ids[row], str(file), file_row, str(error)) from None


def stamp_of(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of each file, zeros for one that cannot be found."""
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return file.name, 0, 0
    return file.name, stat.st_size, stat.st_mtime_ns


def text_ids(names: Sequence[Any], instructions: Sequence[Any]) -> list[str]:
    """NAME-12345678, the digits being those of the instruction: the same in any part of the dataset.

    Two rows with the same name and instruction are told apart by their order.

    >>> text_ids(["cat", "cat"], ["remove it", "paint it red"])
    ['cat-44878aac', 'cat-33939ee7']
    """
    seen: Counter = Counter()
    ids = []
    for name, instruction in zip(names, instructions, strict=True):
        each = f"{name}-{hashlib.sha256(str(instruction).encode()).hexdigest()[:8]}"
        seen[each] += 1
        ids.append(each if seen[each] == 1 else f"{each}-{seen[each]}")
    return ids
