"""HumanEdit (arXiv 2412.04280; BryanW/HumanEdit on Hugging Face, cc-by-4.0): 5,751 edits with masks, 34 parquet files.

    python -m train.check_data --reader human_edit --set path=HumanEdit/data --set split=train

The split. MIND-Edit (arXiv 2505.19149) trains on 5,244 pairs and tests on 500, and does not say which: 7 of the 5,751
are not accounted for. Ours depends on nothing but the IMAGE_IDs: they are sorted by the SHA-256 of
"mindedit-human-edit-1:IMAGE_ID"; from the front, 500 rows are `test` and the next 7 `left_out`, used for neither, so
that the numbers are the paper's; all others are `train`. Rows that share an IMAGE_ID stay together: one that does not
fit into what is left of the 500 or of the 7 is passed over.

The mask. MASK_IMG is the photograph with the region painted black; as in the dataset's own mask_convert.py, a pixel
whose grey value is 0 is edit region. A photograph has black pixels of its own: connected parts that were black before
are left out (clean_mask=false keeps them). The record's regions are the boxes of the mask's parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from train.readers.cells import instruction, one_size, open_picture, optional_text, painted_mask, read_array
from train.readers.mask_regions import mask_regions
from train.readers.parquet import CACHE, ParquetTable, column, missing_shards, parquet_files, schema_of
from train.readers.table import TableRecords, resolve_columns, text_ids
from train.records import EditRecord

SPLIT_SEED = "mindedit-human-edit-1"
ROWS, TEST, LEFT_OUT = 5751, 500, 7
SPLITS = ("all", "train", "test", "left_out")
COLUMNS = {
    "image_id": "IMAGE_ID",
    "kind": "EDITING_TYPE",
    "core": "CORE",
    "instruction": "EDITING_INSTRUCTION",
    "source": "INPUT_IMG",
    "mask": "MASK_IMG",
    "target": "OUTPUT_IMG",
    "source_caption": "INPUT_CAPTION_BY_LLAMA",
    "target_caption": "OUTPUT_CAPTION_BY_LLAMA",  # OUTPUT_DESCRIPTION speaks of the changed part alone
}
OPTIONAL = ("kind", "core", "source_caption", "target_caption")


def open_human_edit(
    path: str | Path,
    split: str = "all",
    core: bool = False,
    partial_download: bool = False,
    clean_mask: bool = True,
    columns: Mapping[str, str] | None = None,
    cache: str | Path = CACHE,
) -> TableRecords:
    """path: folder of the parquet files;  split: all, train, test or left_out;  core: only the 400 of HumanEdit-core

    partial_download: allow a split of fewer rows than are published, in the same proportions; it is another split
    """
    files = parquet_files(path)
    named = resolve_columns("human_edit", files[0], schema_of(files).names, COLUMNS, columns, OPTIONAL)
    image_ids = column(files, named["image_id"])
    rows = _rows_of(split, image_ids, partial_download)
    if core:
        if "core" not in named:
            raise ValueError("core=true needs the column CORE; name it with --set columns.core=NAME")
        is_core = column(files, named["core"])
        rows = [row for row in rows if is_core[row]]
    ids = text_ids(image_ids, column(files, named["instruction"]))
    used = {role: name for role, name in named.items() if role not in ("image_id", "core")}
    make = partial(to_record, clean_mask=clean_mask)
    return TableRecords(ParquetTable(files, list(used.values()), cache), used, ids, make, rows, missing_shards(files))


def _rows_of(split: str, image_ids: Sequence[str], partial_download: bool) -> list[int]:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split == "all":
        return list(range(len(image_ids)))
    if len(image_ids) != ROWS and not partial_download:
        raise ValueError(
            f"the split is made of all {ROWS} rows, these files have {len(image_ids)}: download the rest, or say "
            "split=all, or partial_download=true for a trial with a split of its own"
        )
    return [row for row, name in enumerate(split_rows(image_ids)) if name == split]


def split_rows(image_ids: Sequence[str], seed: str = SPLIT_SEED) -> list[str]:
    """"train", "test" or "left_out" for every row, by the rule above; fewer rows are split in the same proportions."""
    groups: dict[str, list[int]] = {}
    for row, image_id in enumerate(image_ids):
        groups.setdefault(str(image_id), []).append(row)
    share = len(image_ids) / ROWS
    room = {"test": round(TEST * share), "left_out": round(LEFT_OUT * share)}
    split = ["train"] * len(image_ids)
    for image_id in sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        rows = groups[image_id]
        fits = next((name for name in room if len(rows) <= room[name]), None)
        if fits:
            room[fits] -= len(rows)
            for row in rows:
                split[row] = fits
    return split


def to_record(id: str, cells: dict[str, Any], clean_mask: bool = True) -> EditRecord:
    wish = instruction(cells["instruction"])
    source, target = read_array("source", cells["source"]), read_array("target", cells["target"])
    mask = painted_mask(open_picture("mask", cells["mask"]), source, 0, clean_mask)
    arrays, notes = one_size(source=source, target=target, mask=mask)
    captions = {name: optional_text(cells.get(name)) for name in ("source_caption", "target_caption")}
    regions, kind = mask_regions(arrays["mask"]), optional_text(cells.get("kind"))
    return EditRecord(id, wish, **arrays, **captions, regions=regions, kind=kind, notes=notes)
