"""DIM-Edit of Draw-In-Mind (arXiv 2509.01986; stdKonjac/DIM-Edit on Hugging Face, cc-by-nc-4.0): 233,000 edits.

    python -m train.check_data --reader dim_edit --set path=DIM-Edit --workers 8

tos_dataset_edit.jsonl names a source, a target and a blueprint (`mindedit_core.blueprint`) a line; what people said
stands in the blueprint's first section. Paths are relative to the .jsonl, or to `images`. Its 500 MB are gone through
once, in seconds; afterwards a line is read when it is asked for.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mindedit_core.blueprint import INSTRUCTION
from mindedit_core.blueprint_parser import read_sections
from train.readers.cells import Unfit, instruction, one_size, read_array
from train.readers.table import TableRecords, resolve_columns, stamp_of
from train.records import EditRecord

FILE = "tos_dataset_edit.jsonl"
COLUMNS = {"id": "id", "source": "image_path", "target": "image_path_target", "blueprint": "prompt"}


def open_dim_edit(
    path: str | Path, images: str | Path | None = None, columns: Mapping[str, str] | None = None
) -> TableRecords:
    """path: the folder of tos_dataset_edit.jsonl, or a .jsonl;  images: where the paths in it start, if not there"""
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"there is no {file}; give the folder of the download, or the .jsonl itself")
    folder = picture_folder(images or file.parent)
    named = {**COLUMNS, **(columns or {})}
    table = JsonLines([file], named["id"], [named["source"], named["target"]], folder)
    used = resolve_columns("dim_edit", file, table.names, COLUMNS, columns)
    return TableRecords(table, used, table.ids, partial(to_record, folder=folder))


def picture_folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise ValueError(f"there is no folder {path} for the pictures; name it with --set images=FOLDER")
    return Path(path)


def to_record(id: str, cells: dict[str, Any], folder: Path) -> EditRecord:
    if cells["id"] is None:
        raise Unfit("id is missing")
    text = to_text("the blueprint", cells["blueprint"])
    wish = read_sections(text).get(INSTRUCTION)
    if not wish:
        raise Unfit(f"the blueprint has no section {INSTRUCTION!r}, where the instruction stands")
    source, target = (read_array(role, cells[role], folder) for role in ("source", "target"))
    arrays, notes = one_size(source=source, target=target)
    return EditRecord(id, instruction(wish), **arrays, notes=notes, blueprint=text)


def to_text(what: str, cell: Any) -> str:
    """Text of several lines. Raises Unfit if it is none, or empty."""
    if cell is not None and not isinstance(cell, str):
        raise Unfit(f"{what} must be a text, got {type(cell).__name__}")
    if not (text := (cell or "").strip()):
        raise Unfit(f"{what} is empty")
    return text


# Lines ---------------------------------------------------------------------------------------------------------------


class JsonLines:
    """A table of the lines of .jsonl files. It keeps their ids and where they begin, and reads one when it is asked.

    id: name of the id in a line;  pictures: names of the paths in a line, relative to `folder`
    keep: which lines are rows, all if None; one that cannot be read always is. `dropped` counts the others.
    """

    def __init__(self, files: Sequence[Path], id: str, pictures: Sequence[str], folder: Path,
                 keep: Callable[[dict[str, Any]], bool] | None = None):
        self.files, self.folder = list(files), folder
        self.ids: list[str] = []
        self.names: list[str] = []
        self.numbers, self.lines, self.offsets = array("q"), array("q"), array("q")  # of file, of line in it, in bytes
        self.dropped, self.first_dropped = 0, ""
        self.inside: set[str] = set()
        for number, file in enumerate(self.files):
            for line, offset, cells in indexed(file):
                name = f"line-{line}" if cells.get(id) is None else str(cells[id])
                if not cells or not keep or keep(cells):
                    self._add(name, (number, line, offset), cells, pictures)
                else:
                    self.dropped, self.first_dropped = self.dropped + 1, self.first_dropped or name

    def _add(self, id: str, place: tuple[int, int, int], cells: dict[str, Any], pictures: Sequence[str]) -> None:
        self.ids.append(id)
        for column, value in zip((self.numbers, self.lines, self.offsets), place, strict=True):
            column.append(value)
        self.names += [name for name in cells if name not in self.names]
        self.inside.update(os.path.dirname(cells[name]) for name in pictures if isinstance(cells.get(name), str))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Raises Unfit for a line that is no JSON object."""
        with open(self.files[self.numbers[row]], "rb") as file:
            file.seek(self.offsets[row])
            return parsed(file.readline())

    def place(self, row: int) -> tuple[Path, int]:
        return self.files[self.numbers[row]], self.lines[row]

    def stamp(self) -> list[tuple[str, int, int]]:
        """Of the files, and of the folders that hold pictures: they change when one comes, goes or is put in anew."""
        return stamp_of([*self.files, *(self.folder / name for name in sorted(self.inside))])


def indexed(file: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Number, first byte and cells of every line that is not empty; no cells where it cannot be read."""
    offset = 0
    with open(file, "rb") as opened:
        for number, text in enumerate(opened):
            if text.strip():
                yield number, offset, cells_or_none(text)
            offset += len(text)


def cells_or_none(text: bytes) -> dict[str, Any]:
    try:
        return parsed(text)
    except Unfit:
        return {}


def parsed(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text.rstrip(b"\r\n"))
    except ValueError as error:  # broken UTF-8 too
        raise Unfit(f"the line is no JSON: {error}") from None
    if not isinstance(line, dict):
        raise Unfit(f"the line is no JSON object, but {type(line).__name__}")
    return line
