"""ComplexMultistepImageEditing (NilanE/ComplexMultistepImageEditing on Hugging Face, apache-2.0): reasoning.parquet.

    python -m train.check_data --reader multistep --set path=reasoning.parquet

MIND-Edit (arXiv 2505.19149) tests on 120 of its examples; there are no masks. The names of its columns are not
published in the papers, so they are discovered: pictures by a word in their name (source, input, ... and target,
output, ...), else the first two columns of pictures; the instruction by its name, else the column with the longest
texts. What was chosen is said, and columns.ROLE=NAME overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from train.readers.cells import instruction, one_size, optional_text, read_array
from train.readers.parquet import CACHE, ParquetTable, column, parquet_files, schema_of
from train.readers.table import TableRecords, resolve_columns, text_ids
from train.records import EditRecord

HINTS = {
    "source": ("source", "input", "original", "before"),
    "target": ("target", "output", "edited", "after", "result", "final"),
    "instruction": ("instruction", "edit_prompt", "prompt"),
}
ROLES = ("source", "target", "instruction", "id", "source_caption", "target_caption")
OPTIONAL = ("id", "source_caption", "target_caption")


def open_multistep(
    path: str | Path,
    count: int | None = None,
    columns: Mapping[str, str] | None = None,
    cache: str | Path = CACHE,
) -> TableRecords:
    """path: the parquet file, or its folder;  count: the first so many rows (120 as in the paper), all if None"""
    files = parquet_files(path)
    schema = schema_of(files)
    guessed = {**dict.fromkeys(ROLES, ""), **discover(schema, files), **({"id": "id"} if "id" in schema.names else {})}
    named = resolve_columns("multistep", files[0], schema.names, guessed, columns, OPTIONAL)
    table = ParquetTable(files, list(named.values()), cache)
    wishes = column(files, named["instruction"])
    names = column(files, named["id"]) if "id" in named else [f"{file.stem}-{row}" for file, row in _places(table)]
    notes = [f"columns: {', '.join(f'{role} = {name}' for role, name in named.items())}"]
    rows = range(len(table) if count is None else min(count, len(table)))
    return TableRecords(table, named, text_ids(names, wishes), to_record, rows, notes)


def discover(schema: pa.Schema, files: Sequence[Path]) -> dict[str, str]:
    """Role -> column, as far as they can be told; what is found is among the schema's names."""
    pictures = [field.name for field in schema if _is_picture(field.type)]
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    found = {role: _hinted(pictures, HINTS[role]) for role in ("source", "target")}
    if not (found["source"] and found["target"]) or found["source"] == found["target"]:
        found = dict(zip(("source", "target"), pictures, strict=False))
    found["instruction"] = _hinted(texts, HINTS["instruction"]) or max(
        texts, key=lambda name: sum(len(text or "") for text in column(files, name)), default=""
    )
    return {role: name for role, name in found.items() if name}


def _is_picture(kind: pa.DataType) -> bool:
    """Hugging Face's Image feature, or the bytes of a file."""
    if pa.types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _hinted(names: Sequence[str], hints: Sequence[str]) -> str:
    """The first name that has a hint in it, the first hints first."""
    return next((name for hint in hints for name in names if hint in name.lower()), "")


def _places(table: ParquetTable) -> list[tuple[Path, int]]:
    return [table.place(row) for row in range(len(table))]


def to_record(id: str, cells: dict[str, Any]) -> EditRecord:
    wish = instruction(cells["instruction"])
    source, target = read_array("source", cells["source"]), read_array("target", cells["target"])
    arrays, notes = one_size(source=source, target=target)
    captions = {name: optional_text(cells.get(name)) for name in ("source_caption", "target_caption")}
    return EditRecord(id, wish, **arrays, **captions, notes=notes)
