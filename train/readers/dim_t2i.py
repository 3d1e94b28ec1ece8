"""DIM-T2I of Draw-In-Mind (arXiv 2509.01986; stdKonjac/DIM-T2I on Hugging Face): captions, with pictures of your own.

    python -m train.check_data --reader dim_t2i --set path=DIM-T2I --set images=pictures

Its .jsonl files have an id, an image_path and a long caption (prompt) a line; the pictures are those of other datasets
and are not in it. A caption whose picture does not lie at IMAGES/image_path is left out. A record has a target and its
caption, which is the instruction too, and no source.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from train.readers.cells import Unfit, read_array
from train.readers.dim_edit import JsonLines, picture_folder, to_text
from train.readers.table import TableRecords, resolve_columns
from train.records import EditRecord

COLUMNS = {"id": "id", "image": "image_path", "target": "image_path_target", "caption": "prompt"}


def open_dim_t2i(path: str | Path, images: str | Path, columns: Mapping[str, str] | None = None) -> TableRecords:
    """path: the folder of the .jsonl files, or one;  images: where the paths in them start

    A line's target, if it has one, is its picture.
    """
    path, folder = Path(path), picture_folder(images)
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    if not files:
        raise ValueError(f"there is no .jsonl at {path}; give the folder of the download, or one file")
    named = {**COLUMNS, **(columns or {})}
    roles = (named["target"], named["image"])
    table = JsonLines(files, named["id"], roles, folder, partial(has_picture, roles=roles, folder=folder))
    notes = _left_out(table, folder)
    used = resolve_columns("dim_t2i", files[0], table.names, COLUMNS, columns, ("target",))
    ids = [f"{table.place(row)[0].stem}-{name}" for row, name in enumerate(table.ids)]
    return TableRecords(table, used, ids, partial(to_record, folder=folder), notes=notes)


def has_picture(cells: Mapping[str, Any], roles: tuple[str, str], folder: Path) -> bool:
    """True too for what cannot be a path: that is a fault of the line, and is told with it."""
    path = cells.get(roles[0]) or cells.get(roles[1])
    return not isinstance(path, str) or os.path.isfile(folder / path)


def _left_out(table: JsonLines, folder: Path) -> list[str]:
    total = len(table) + table.dropped
    if table.dropped == total:
        raise ValueError(f"none of the {total} captions has its picture under {folder}; name it with --set images=...")
    if not table.dropped:
        return []
    first = f"the first is {table.first_dropped}"
    return [f"{table.dropped} of {total} captions have no picture under {folder} and are left out, {first}"]


def to_record(id: str, cells: dict[str, Any], folder: Path) -> EditRecord:
    if cells["id"] is None:
        raise Unfit("id is missing")
    caption = " ".join(to_text("the caption", cells["caption"]).split())
    target = read_array("target", cells.get("target") or cells["image"], folder)
    return EditRecord(id, caption, None, target, target_caption=caption)
