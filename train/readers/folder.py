"""Your own pictures: a folder with a line of JSON for every edit, or with a sub-folder for every role.

    my_edits/records.jsonl      {"source": "before/cat.jpg", "target": "after/cat.jpg", "instruction": "remove the cat"}
or  my_edits/source/cat.jpg     my_edits/target/cat.png     my_edits/instruction/cat.txt     [my_edits/mask/cat.png]

    python -m train.check_data --reader folder --set path=my_edits

A line may also have id, mask, source_caption, target_caption, optimized (T_opt), regions ([[x0, y0, x1, y1],
"background", {"keep": [x0, y0, x1, y1]}], in thousandths of width and height), steps (a list of texts) and kind. Other
names: columns.source=image_path. Paths are relative to the file that names them. Masks are black and white: white is
the edit, mask_paint=black turns that round. Without regions they are the boxes of the mask's parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from train.readers.cells import (
    Unfit,
    drawn_mask,
    instruction,
    one_size,
    open_picture,
    optional_text,
    read_array,
    to_regions,
    to_steps,
)
from train.readers.mask_regions import mask_regions
from train.readers.table import TableRecords, resolve_columns, stamp_of, text_ids
from train.records import EditRecord

ROLES = ("source", "instruction", "target", "mask", "id", "source_caption", "target_caption", "optimized")
ROLES += ("regions", "steps", "kind")
PICTURES = ("source", "target", "mask")
PAINTS = {"white": 255, "black": 0}
BROKEN = "#broken"  # key of a line that is no JSON object: why


def open_folder(
    path: str | Path,
    file: str = "records.jsonl",
    mask_paint: str = "white",
    columns: Mapping[str, str] | None = None,
) -> TableRecords:
    """path: the folder, or a .jsonl file;  file: name of the .jsonl in it;  mask_paint: white or black"""
    if mask_paint not in PAINTS:
        raise ValueError(f"mask_paint must be white or black, got {mask_paint!r}")
    path = Path(path)
    listed = path if path.is_file() else path / file
    if not listed.is_file() and not all((path / role).is_dir() for role in ("source", "instruction")):
        raise ValueError(f"{path} has neither {file} nor the folders source and instruction; give one of the two")
    table = JsonTable(listed, read_lines(listed)) if listed.is_file() else JsonTable(path, list_folders(path))
    defaults = dict(zip(ROLES, ROLES, strict=True))
    named = resolve_columns("folder", table.file, table.names(), defaults, columns, ROLES[2:])
    table.require([named[role] for role in PICTURES if role in named])
    make = partial(to_record, folder=table.folder, paint=PAINTS[mask_paint])
    return TableRecords(table, {**named, BROKEN: BROKEN}, _ids(table, named), make)


class JsonTable:
    """Lines of a .jsonl, or what sub-folders say in its place. file: what errors name;  folder: paths start there"""

    def __init__(self, file: Path, lines: list[dict[str, Any]]):
        self.file, self.folder, self.lines = file, file.parent if file.is_file() else file, lines
        self.pictures: list[str] = []

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for line in self.lines for name in line if name != BROKEN))

    def require(self, names: Sequence[str]) -> None:
        """A picture that some lines have must be in all, or be null: a forgotten one is no choice."""
        self.pictures = list(names)
        for line in self.lines:
            if forgotten := [name for name in names if name not in line]:
                line.setdefault(BROKEN, f"{', '.join(forgotten)} is missing; null says that there is none")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.lines[row]

    def place(self, row: int) -> tuple[Path, int]:
        return self.file, row

    def stamp(self) -> tuple:
        """The lines, and every picture that they name."""
        named = [line.get(name) for line in self.lines for name in self.pictures]
        return repr(self.lines), stamp_of(self.folder / path for path in named if isinstance(path, str))


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [_line(text) for text in file.read_bytes().splitlines() if text.strip()]


def _line(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:  # broken UTF-8 too
        return {BROKEN: f"the line is no JSON: {error}"}
    return line if isinstance(line, dict) else {BROKEN: f"the line is no JSON object, but {type(line).__name__}"}


def list_folders(path: Path) -> list[dict[str, Any]]:
    """A line for every name that occurs, with the file of that name in each folder."""
    endings = set(Image.registered_extensions())
    files = {role: _by_name(path / role, endings) for role in PICTURES if (path / role).is_dir()}
    files["instruction"] = _by_name(path / "instruction", {".txt"})
    return [_named(path, name, files) for name in sorted(set().union(*files.values()))]


def _by_name(folder: Path, endings: set[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in endings:
            found.setdefault(file.stem, []).append(file)
    return found


def _named(path: Path, name: str, files: Mapping[str, Mapping[str, list[Path]]]) -> dict[str, Any]:
    """The line of one name. Two files of that name in one folder are an error of this row."""
    mine = {role: found[name] for role, found in files.items() if name in found}
    line: dict[str, Any] = {"id": name}
    for role, found in mine.items():
        if len(found) > 1:
            line[BROKEN] = f"{role} has {' and '.join(each.name for each in found)}; keep one"
        line[role] = str(found[0].relative_to(path))
    try:
        line["instruction"] = mine["instruction"][0].read_text(encoding="utf-8") if "instruction" in mine else ""
    except UnicodeDecodeError as error:
        line[BROKEN] = f"instruction is no UTF-8 text: {error}"
    return line


def _ids(table: JsonTable, named: Mapping[str, str]) -> list[str]:
    """The line's own id; else one made of the source's name and the instruction."""
    stems = [Path(str(line.get(named["source"], "row"))).stem for line in table.lines]
    made = text_ids(stems, [line.get(named["instruction"], "") for line in table.lines])
    own = [line.get(named.get("id", "id")) for line in table.lines]
    return [made_id if own_id is None else str(own_id) for own_id, made_id in zip(own, made, strict=True)]


def to_record(id: str, cells: dict[str, Any], folder: Path, paint: int) -> EditRecord:
    if cells.get(BROKEN):
        raise Unfit(cells[BROKEN])
    wish = instruction(cells["instruction"])
    source = read_array("source", cells["source"], folder)
    target = read_array("target", cells["target"], folder) if cells.get("target") else None
    mask = drawn_mask(open_picture("mask", cells["mask"], folder), paint) if cells.get("mask") else None
    arrays, notes = one_size(source=source, target=target, mask=mask)
    texts = {role: optional_text(cells.get(role)) for role in ("source_caption", "target_caption", "optimized", "kind")}
    regions, steps = to_regions(cells.get("regions") or ()), to_steps(cells.get("steps") or ())
    if not regions and mask is not None:
        regions = mask_regions(arrays["mask"])
    return EditRecord(id, wish, **arrays, **texts, regions=regions, steps=steps, notes=notes)
