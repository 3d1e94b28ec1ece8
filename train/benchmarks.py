"""Benchmarks of editing as they are published, as samples to paint under the names that their scorers read.

imgedit (ImgEdit-Bench): basic_edit.json, {key: {id, prompt, edit_type}}, with its pictures at id beside it or in
    singleturn/ there; or a .jsonl of id, image_path, prompt. -> {key}.png
gedit (GEdit-Bench): a folder that `datasets` saved, parquet, or a .jsonl with image_path in the place of input_image.
    -> {system}/fullset/{task_type}/{language}/{key}.png, and {key}_SRCIMG.png: what was edited
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindedit_core.blueprint import INSTRUCTION
from mindedit_core.blueprint_parser import read_sections
from train.readers.cells import read_array
from train.readers.folder import BROKEN, read_lines

BASIC, SINGLE_TURN = "basic_edit.json", "singleturn"
TEXTS = ("task_type", "key", "instruction", "instruction_language")
PICTURE = "input_image"
PLAIN_NAME = re.compile(r"[^./\\\0][^/\\\0]*")


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture to paint.

    name: in messages;  ids: under which its blueprint is looked for;  read: gives the picture, uint8[H, W, 3]
    blueprint: what takes the designer's place; None: nothing does;  "": it should be there and is not
    result, source: files in the folder of the run, for what is painted and, if it is wanted, for what was edited
    """

    name: str
    wish: str
    blueprint: str | None
    ids: tuple[str, ...]
    read: Callable[[], np.ndarray]
    result: Path
    source: Path | None = None


def plain_name(what: str, name: Any) -> str:
    """Text that names a file in its folder and nothing else. Raises ValueError for any other."""
    if name is None or not PLAIN_NAME.fullmatch(str(name)):
        raise ValueError(f"{what} names a file and must be plain, without slashes or a dot in front, got {name!r}")
    return str(name)


def wish_of(prompt: Any) -> tuple[str, str | None]:
    """What is to be done and, of a prompt that is a blueprint, the blueprint."""
    text = "" if prompt is None else str(prompt)
    sections = read_sections(text)
    return (sections[INSTRUCTION], text) if INSTRUCTION in sections and len(sections) > 1 else (text, None)


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """Lines of a .jsonl. Raises ValueError for the first that is no JSON object."""
    lines = read_lines(file)
    for row, line in enumerate(lines):
        if BROKEN in line:
            raise ValueError(f"{file}, row {row}: {line[BROKEN]}; repair it or take it out")
    return lines


# ImgEdit-Bench -------------------------------------------------------------------------------------------------------


def imgedit(path: Path, **_: str) -> tuple[list[Sample], list[str]]:
    """Samples, and notes. path: basic_edit.json or a .jsonl, or the folder of basic_edit.json"""
    file = path if path.is_file() else path / BASIC
    if not file.is_file():
        raise ValueError(f"there is no {file}; give the folder of {BASIC}, that file itself, or a .jsonl")
    entries = lines_of_imgedit(file) if file.suffix == ".jsonl" else basic_edit(file)
    return [imgedit_sample(file.parent, *entry) for entry in entries], []


def lines_of_imgedit(file: Path) -> Iterator[tuple[str, Any, Any]]:
    """(key, prompt, path of the picture) of each."""
    return ((line.get("id"), line.get("prompt"), line.get("image_path")) for line in whole_lines(file))


def basic_edit(file: Path) -> Iterator[tuple[str, Any, Any]]:
    said = read_json(file)
    if odd := [key for key, entry in said.items() if not isinstance(entry, dict)]:
        raise ValueError(f"{file} must be {{key: {{id, prompt, edit_type}}}}, but {odd[0]!r} is {said[odd[0]]!r}")
    return ((key, entry.get("prompt"), entry.get("id")) for key, entry in said.items())


def read_json(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}); repair it or move it away") from None
    if not isinstance(said, dict):
        raise ValueError(f"{file} must be a JSON object, got {type(said).__name__}")
    return said


def imgedit_sample(folder: Path, key: Any, prompt: Any, picture: Any) -> Sample:
    name = plain_name("key", key)
    return Sample(name, *wish_of(prompt), (name,), lambda: imgedit_picture(folder, picture), Path(f"{name}.png"))


def imgedit_picture(folder: Path, picture: Any) -> np.ndarray:
    def is_in(place: Path) -> bool:
        return isinstance(picture, str) and os.path.isfile(place / picture)

    inner = folder / SINGLE_TURN
    return read_array("the picture", picture, inner if is_in(inner) and not is_in(folder) else folder)


# GEdit-Bench ---------------------------------------------------------------------------------------------------------


def gedit(path: Path, language: str, model: str) -> tuple[list[Sample], list[str]]:
    """The samples of a language, and notes. path: .jsonl, .arrow or .parquet, or a folder of either of the last two"""
    rows, read, notes = lines_of_gedit(path) if path.suffix == ".jsonl" else table_of_gedit(path)
    spoken = Counter(row["instruction_language"] for row in rows)
    if not spoken[language]:
        has = ", ".join(f"{name} ({count})" for name, count in spoken.items()) or "nothing at all"
        raise ValueError(f"{path} has no sample in language {language}, but {has}; choose another --language")
    folder = Path(plain_name("the system's name", model)) / "fullset"
    chosen = [number for number, row in enumerate(rows) if row["instruction_language"] == language]
    return [gedit_sample(folder, rows[number], lambda number=number: read(number)) for number in chosen], notes


def gedit_sample(folder: Path, row: Mapping[str, Any], read: Callable[[], np.ndarray]) -> Sample:
    task, language, key = plain_name("task_type", row["task_type"]), row["instruction_language"], row["key"]
    name, place = plain_name("key", key), folder / task / language
    ids = (name, str(row.get("id", name)))
    files = (place / f"{name}.png", place / f"{name}_SRCIMG.png")
    return Sample(f"{task}/{language}/{name}", *wish_of(row["instruction"]), ids, read, *files)


Rows = tuple[list[dict[str, Any]], Callable[[int], np.ndarray], list[str]]  # texts of all; a picture by row; notes


def lines_of_gedit(file: Path) -> Rows:
    """A line may have `prompt` in the place of `instruction`."""
    rows = [{"instruction": line.get("prompt"), **line} for line in whole_lines(file)]
    for number, row in enumerate(rows):
        require_columns(f"{file}, row {number}", row, (*TEXTS, "image_path"))
    return rows, lambda number: read_array("image_path", rows[number]["image_path"], file.parent), []


def table_of_gedit(path: Path) -> Rows:
    """From what `datasets` saved, if there is any, else from parquet."""
    try:
        from train.readers.parquet import missing_shards
    except ImportError as error:
        raise ValueError(f"{path} is read by pyarrow, which is not here ({error}); install mindedit[train]") from None
    files = saved_files(path)
    files, texts, cell = arrow_columns(files) if files else parquet_columns(path)
    rows = [dict(zip(TEXTS, row, strict=True)) for row in zip(*texts, strict=True)]
    return rows, lambda number: read_array(PICTURE, cell(number)), missing_shards(files)


def saved_files(path: Path) -> list[Path]:
    """What `save_to_disk` wrote, without what `datasets` caches beside it."""
    if path.is_file():
        return [path] if path.suffix == ".arrow" else []
    return [file for file in sorted(path.rglob("*.arrow")) if not file.name.startswith("cache-")]


Columns = tuple[list[Path], list[list[Any]], Callable[[int], Any]]  # files; the columns of TEXTS; a picture's cell


def arrow_columns(files: list[Path]) -> Columns:
    """The pictures stay on the disk: the files are mapped into memory."""
    import pyarrow as pa

    try:
        parts = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
        for file, part in zip(files, parts, strict=True):
            require_columns(file, part.schema.names, (*TEXTS, PICTURE))
        table = pa.concat_tables([part.select([*TEXTS, PICTURE]) for part in parts])
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{files[0].parent} cannot be read as Arrow ({error}); download it again") from None
    return files, [table.column(name).to_pylist() for name in TEXTS], lambda row: table.column(PICTURE)[row].as_py()


def parquet_columns(path: Path) -> Columns:
    from train.readers.parquet import ParquetTable, column, parquet_files, schema_of

    files = parquet_files(path)
    require_columns(files[0], schema_of(files).names, (*TEXTS, PICTURE))
    table = ParquetTable(files, [PICTURE])
    return files, [column(files, name) for name in TEXTS], lambda row: table[row][PICTURE]


def require_columns(where: Any, found: Iterable[str], wanted: Sequence[str]) -> None:
    found = list(found)
    if lacking := [name for name in wanted if name not in found]:
        raise ValueError(f"{where} lacks {', '.join(lacking)}; GEdit-Bench has {', '.join(wanted)}, this has "
                         f"{', '.join(found)}")


BENCHMARKS = {"imgedit": imgedit, "gedit": gedit}


def first_of_each(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Those that write a file of their own, and a note on the others."""
    first = {sample.result: sample for sample in reversed(samples)}
    kept = [sample for sample in samples if first[sample.result] is sample]
    if len(kept) == len(samples):
        return kept, []
    repeated = next(sample.name for sample in samples if first[sample.result] is not sample)
    said = f"{len(samples) - len(kept)} samples have the key of another, the first is {repeated}"
    return kept, [f"{said}; only the first of each is painted"]
