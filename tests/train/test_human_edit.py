"""HumanEdit as published: what comes out is what went in, the mask is the painted part, the split is for ever."""

import hashlib
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy import ndimage

from train.readers.human_edit import ROWS, open_human_edit, split_rows
from train.readers.mask_regions import mask_regions
from train.records import Records

IDS = [f"image-{number}" for number in range(ROWS)]


@pytest.fixture(scope="module")
def folder(rows, published, tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("human_edit"), "train", published.human_edit(rows), shards=3)


@pytest.fixture(scope="module")
def records(folder):
    return open_human_edit(folder, cache=folder / "cache")


def test_rows_of_scenes_and_photographs_come_out_as_they_went_in(records, rows):
    assert isinstance(records, Records) and len(records) == len(rows)
    for row, record in zip(rows, (records[number] for number in range(len(rows))), strict=True):
        assert np.array_equal(record.source, row.source) and np.array_equal(record.target, row.target)
        assert record.id.startswith(row.name) and record.instruction == row.instruction and record.kind == row.kind
        assert (record.source_caption, record.target_caption) == row.captions
        assert record.notes == () and record.regions == mask_regions(record.mask)


def test_the_mask_is_what_was_painted_black_and_not_what_was_black_before(records, rows, folder):
    raw = open_human_edit(folder, cache=folder / "cache", clean_mask=False)
    for number, row in enumerate(rows):
        grey = np.asarray(Image.fromarray(row.source).convert("L"))
        assert np.array_equal(raw[number].mask, row.mask | (grey == 0))  # the published rule to the letter
        if row.name != "astronaut":
            assert np.array_equal(records[number].mask, row.mask)


def test_black_that_touches_the_painted_part_stays_and_other_black_goes(records, rows):
    number = next(number for number, row in enumerate(rows) if row.name == "astronaut")
    mask, painted = records[number].mask, rows[number].mask
    black = np.asarray(Image.fromarray(rows[number].source).convert("L")) == 0
    assert (mask & painted).sum() == painted.sum() and black.sum() > 6_000
    parts, _ = ndimage.label(black | painted)
    assert set(np.unique(parts[mask & ~painted])) <= set(np.unique(parts[painted])) and (mask & ~painted).sum() < 250


def test_ids_do_not_depend_on_which_files_are_there(folder, records, tmp_path):
    (tmp_path / "part").mkdir()
    file = sorted(folder.glob("*.parquet"))[1]
    (tmp_path / "part" / file.name).write_bytes(file.read_bytes())
    part = open_human_edit(tmp_path / "part", cache=tmp_path)
    assert part.ids == records.ids[3:6]
    assert part.notes == ["2 of the files train-* are not here, the first is number 0"]


def test_core_is_a_part(folder, records):
    core = open_human_edit(folder, core=True, cache=folder / "cache")
    assert core.ids == records.ids[1::2] and np.array_equal(core[1].source, records[3].source)


# The split -----------------------------------------------------------------------------------------------------------


def test_the_split_has_the_papers_numbers_and_the_seven_rows_are_in_neither():
    assert Counter(split_rows(IDS)) == {"train": 5244, "test": 500, "left_out": 7}


def test_the_split_is_a_matter_of_the_image_ids_alone():
    split = dict(zip(IDS, split_rows(IDS), strict=True))
    shuffled = random.Random(0).sample(IDS, len(IDS))
    assert dict(zip(shuffled, split_rows(shuffled), strict=True)) == split
    test = sorted(name for name, part in split.items() if part == "test")
    assert hashlib.sha256(" ".join(test).encode()).hexdigest()[:16] == "43ec1f67dab21014"


def test_edits_of_one_picture_stay_together_and_the_numbers_are_kept():
    repeated = [f"image-{number // 3}" for number in range(ROWS)]
    repeated[-5:] = [f"single-{number}" for number in range(5)]
    split = split_rows(repeated)
    assert Counter(split) == {"train": 5244, "test": 500, "left_out": 7}
    assert len(set(zip(repeated, split, strict=True))) == len(set(repeated))


def test_another_seed_is_another_split():
    assert split_rows(IDS, "another") != split_rows(IDS)


def test_a_split_of_an_incomplete_download_is_refused_unless_asked_for(folder):
    with pytest.raises(ValueError, match="made of all 5751 rows, these files have 8: .*partial_download=true"):
        open_human_edit(folder, split="test", cache=folder / "cache")
    parts = [open_human_edit(folder, split=name, partial_download=True, cache=folder / "cache")
             for name in ("train", "test", "left_out")]
    assert [len(part) for part in parts] == [7, 1, 0]
    assert len({name for part in parts for name in part.ids}) == 8


def test_all_published_rows_are_split_as_they_are_read(published, rows, tmp_path):
    one = published.human_edit(rows[:1]).to_pydict()
    cells = {name: values * ROWS for name, values in one.items()} | {"IMAGE_ID": IDS}
    for name in ("INPUT_IMG", "MASK_IMG", "OUTPUT_IMG"):
        cells[name] = [None] * ROWS
    published.write(tmp_path, "train", pa.table(cells, published.human_edit(rows).schema), shards=34)
    parts = [open_human_edit(tmp_path, split=name, cache=tmp_path / "cache") for name in ("train", "test", "left_out")]
    assert [len(part) for part in parts] == [5244, 500, 7] and all(part.notes == [] for part in parts)
    assert len({name for part in parts for name in part.ids}) == ROWS
    wanted = {name for name, part in zip(IDS, split_rows(IDS), strict=True) if part == "test"}
    assert {name.rsplit("-", 1)[0] for name in parts[1].ids} == wanted


def test_an_unknown_split_lists_the_known_ones(folder):
    with pytest.raises(ValueError, match="one of all, train, test, left_out, got 'dev'"):
        open_human_edit(folder, split="dev")
