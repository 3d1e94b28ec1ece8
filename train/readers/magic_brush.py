"""MagicBrush (arXiv 2306.10012; osunlp/MagicBrush on Hugging Face, cc-by-4.0): train 8,807 and dev 528 edit turns.

    python -m train.check_data --reader magic_brush --set path=MagicBrush/data --set split=dev

Turns of one session share an img_id; a turn's source is the result of the one before. Its mask_img is the source with
a white region (dataset card): parts that were white before are left out, as in `human_edit`. The test set is a zip of
other form, given out on request: unpack it and use the reader `folder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from train.readers.cells import instruction, one_size, open_picture, painted_mask, read_array
from train.readers.mask_regions import mask_regions
from train.readers.parquet import CACHE, ParquetTable, column, missing_shards, parquet_files, schema_of
from train.readers.table import TableRecords, resolve_columns
from train.records import EditRecord

SPLITS = ("train", "dev")
COLUMNS = {
    "image_id": "img_id",
    "turn": "turn_index",
    "instruction": "instruction",
    "source": "source_img",
    "mask": "mask_img",
    "target": "target_img",
}


def open_magic_brush(
    path: str | Path,
    split: str = "train",
    clean_mask: bool = True,
    columns: Mapping[str, str] | None = None,
    cache: str | Path = CACHE,
) -> TableRecords:
    """path: folder of train-*.parquet and dev-*.parquet, or one file;  split: train or dev"""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    files = parquet_files(path, f"{split}-*.parquet")
    named = resolve_columns("magic_brush", files[0], schema_of(files).names, COLUMNS, columns, ("mask",))
    turns = zip(column(files, named["image_id"]), column(files, named["turn"]), strict=True)
    ids = [f"{image_id}-{turn}" for image_id, turn in turns]
    used = {role: name for role, name in named.items() if role not in ("image_id", "turn")}
    make = partial(to_record, clean_mask=clean_mask)
    notes = missing_shards(files)
    return TableRecords(ParquetTable(files, list(used.values()), cache), used, ids, make, notes=notes)


def to_record(id: str, cells: dict[str, Any], clean_mask: bool = True) -> EditRecord:
    wish = instruction(cells["instruction"])
    source, target = read_array("source", cells["source"]), read_array("target", cells["target"])
    mask = painted_mask(open_picture("mask", cells["mask"]), source, 255, clean_mask) if "mask" in cells else None
    arrays, notes = one_size(source=source, target=target, mask=mask)
    return EditRecord(id, wish, **arrays, regions=() if mask is None else mask_regions(arrays["mask"]), notes=notes)
