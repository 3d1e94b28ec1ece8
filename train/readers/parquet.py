"""Rows of parquet files by number, at the price of a page fault.

Parquet is read by row groups: one picture costs hundreds of megabytes, or the whole file where it is one group. So each
file is unpacked once, row by row, into an Arrow file that is then mapped into memory; workers share its pages. That
takes as much disk again as the pictures have (HumanEdit: 16 GB); the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from train.readers.table import stamp_of

CACHE = Path("runs") / "rows"
BUFFER = 1 << 20  # bytes read at a time; without it pyarrow reads a column of a whole row group


def parquet_files(path: str | Path, pattern: str = "*.parquet") -> list[Path]:
    """The file, or all that match in a folder and below, by name. Raises ValueError if there is none."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob(pattern), key=lambda file: (file.name, file))
    if not files:
        raise ValueError(f"there is no {pattern} at {path}; give the folder of the download, or one file")
    return files


def missing_shards(files: Sequence[Path]) -> list[str]:
    """Notes on sets named NAME-00001-of-00034 that are not complete."""
    sets: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if named := re.fullmatch(r"(.*)-(\d+)-of-(\d+)", file.stem):
            sets.setdefault((named[1], int(named[3])), set()).add(int(named[2]))
    absent = {name: sorted(set(range(of)) - numbers) for (name, of), numbers in sets.items()}
    return [
        f"{len(numbers)} of the files {name}-* are not here, the first is number {numbers[0]}"
        for name, numbers in absent.items()
        if numbers
    ]


def open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet ({error}); download it again") from None


def schema_of(files: Sequence[Path]) -> pa.Schema:
    """Columns of the first file. Raises ValueError if another has others."""
    first, *others = [open_parquet(file).schema_arrow for file in files]
    for file, schema in zip(files[1:], others, strict=True):
        if schema.names != first.names:
            raise ValueError(
                f"{file} has the columns {', '.join(schema.names)}, {files[0].name} has {', '.join(first.names)}; "
                "read them one by one"
            )
    return first


def column(files: Sequence[Path], name: str) -> list[Any]:
    """One column of all files, as Python values: for texts and numbers, not for pictures."""
    return [value for file in files for value in _column(file, name)]


def _column(file: Path, name: str) -> list[Any]:
    with open_parquet(file) as opened:
        return opened.read([name]).column(0).to_pylist()


class ParquetTable:
    """Rows of several files, one after the other.

    columns: those that are unpacked;  cache: folder of the unpacked files
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str], cache: str | Path = CACHE):
        self.files = list(files)
        columns = list(dict.fromkeys(columns))
        missing = [file for file in self.files if not unpacked_name(file, columns, cache).exists()]
        for file in tqdm(missing, "unpacking", unit="file", disable=None):
            unpack(file, columns, cache)
        self.unpacked = [unpacked_name(file, columns, cache) for file in self.files]
        counts = [pq.read_metadata(file).num_rows for file in self.files]
        self.ends = list(accumulate(counts))
        self._readers: dict[int, pa.ipc.RecordBatchFileReader] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": {}}  # each process maps the files itself

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        number, inside = self._located(row)
        if number not in self._readers:
            self._readers[number] = pa.ipc.open_file(pa.memory_map(str(self.unpacked[number])))
        (cells,) = self._readers[number].get_batch(inside).to_pylist()
        return cells

    def place(self, row: int) -> tuple[Path, int]:
        number, inside = self._located(row)
        return self.files[number], inside

    def stamp(self) -> list[tuple[str, int, int]]:
        return stamp_of(self.files)

    def _located(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row must be in 0..{len(self) - 1}, got {row}")
        number = next(number for number, end in enumerate(self.ends) if row < end)
        return number, row - (self.ends[number - 1] if number else 0)


def unpacked_name(file: Path, columns: Sequence[str], cache: str | Path) -> Path:
    """Another file, or another choice of columns, has another name."""
    key = hashlib.sha256(repr((stamp_of([file]), sorted(columns))).encode()).hexdigest()[:16]
    return Path(cache) / f"{file.stem}-{key}.arrow"


def unpack(file: Path, columns: Sequence[str], cache: str | Path) -> None:
    """Write these columns with one row a batch. The file is complete or not there.

    Memory holds a page of each column, which many writers make as large as the row group.
    """
    target = unpacked_name(file, columns, cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open_parquet(file) as opened:
            schema = pa.schema([_plain(opened.schema_arrow.field(name)) for name in columns])
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in opened.iter_batches(batch_size=1, columns=list(columns), use_threads=False):
                    writer.write_batch(batch.select(list(columns)).cast(schema))
        os.replace(part, target)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} could not be unpacked to {target.parent} ({error})") from error
    finally:
        part.unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()


def _plain(field: pa.Field) -> pa.Field:
    """An Arrow file keeps one dictionary for all batches, parquet one a row group: categories become their values."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
