"""A dataset is looked at once; what cannot be used is written down, shown on one screen, and left out by name."""

import json

import numpy as np
import pyarrow as pa
import pytest

from train.check_data import main
from train.readers import open_records
from train.rejects import usable


@pytest.fixture
def brush(published, rows, tmp_path):
    """MagicBrush with two bad rows, and a turn that is there twice."""
    cells = published.magic_brush(rows).to_pydict()
    cells["source_img"][2]["bytes"] = cells["source_img"][2]["bytes"][:900]
    cells["instruction"][5] = ""
    cells["img_id"][7], cells["turn_index"][7] = cells["img_id"][1], cells["turn_index"][1]
    published.write(tmp_path / "data", "train", pa.table(cells, published.magic_brush(rows).schema), shards=2)
    return tmp_path


def opened(brush):
    return open_records("magic_brush", path=brush / "data", cache=brush / "rows")


def command(brush, *more: str) -> int:
    return main(["--reader", "magic_brush", "--set", f"path={brush / 'data'}", "--set", f"cache={brush / 'rows'}",
                 "--out", str(brush / "check"), *more])


def rejects(brush) -> list[dict]:
    return [json.loads(line) for line in (brush / "check" / "rejects.jsonl").read_text().splitlines()]


def test_the_screen_counts_and_the_file_names_every_row(brush, capsys):
    assert command(brush) == 1
    said = capsys.readouterr().out
    assert said.startswith("magic_brush: 8 rows, 5 can be used, 3 rejected\n") and len(said.splitlines()) <= 24
    for part in ("128x128 (3)", "target 5, mask 5", "rejected       3, all in", "train-00000-of-00002.parquet, row 2",
                 "the instruction is empty", "row 1 has this id too"):
        assert part in said, said
    found = rejects(brush)
    assert [line["row"] for line in found] == [2, 5, 7] and [line["file_row"] for line in found[:2]] == [2, 1]
    assert all(set(line) == {"row", "id", "file", "file_row", "reason"} for line in found)


def test_sound_data_end_with_code_0(published, rows, tmp_path, capsys):
    published.write(tmp_path / "data", "train", published.magic_brush(rows))
    assert command(tmp_path) == 0
    assert "rejected       none" in capsys.readouterr().out and rejects(tmp_path) == []


def test_a_wrong_option_ends_with_code_2_and_a_sentence(tmp_path, capsys):
    assert command(tmp_path) == 2
    assert "check_data: error: there is no train-*.parquet at" in capsys.readouterr().err


def test_workers_find_the_same(brush):
    command(brush)
    alone = rejects(brush)
    command(brush, "--workers", "2")
    assert rejects(brush) == alone


def test_usable_rows_are_those_that_can_be_read(brush, rows):
    part = usable(opened(brush), brush / "check")
    assert part.rows == [0, 1, 3, 4, 6] and [line["row"] for line in rejects(brush)] == [2, 5, 7]
    assert all(np.array_equal(part[row].source, rows[number].source) for row, number in enumerate(part.rows))


def test_what_was_looked_at_is_looked_at_again_only_when_the_data_change(brush, published, rows):
    usable(opened(brush), brush / "check")
    written = (brush / "check" / "check.json").stat().st_mtime_ns
    usable(opened(brush), brush / "check")
    assert (brush / "check" / "check.json").stat().st_mtime_ns == written
    published.write(brush / "data", "train", published.magic_brush(rows), shards=2)  # repaired
    assert len(usable(opened(brush), brush / "check")) == 8 and rejects(brush) == []


def test_a_picture_that_breaks_in_its_place_is_noticed(published, rows, tmp_path):
    (tmp_path / "a.png").write_bytes(published.png(rows[0].source))
    (tmp_path / "records.jsonl").write_text('{"source": "a.png", "instruction": "remove it"}\n')
    assert len(usable(open_records("folder", path=tmp_path), tmp_path / "check")) == 1
    (tmp_path / "a.png").write_bytes(published.png(rows[0].source)[:100])
    assert len(usable(open_records("folder", path=tmp_path), tmp_path / "check")) == 0


def test_a_check_that_was_cut_off_is_not_believed(brush):
    from train.rejects import check

    usable(opened(brush), brush / "check")
    begun = check(opened(brush), brush / "check")
    next(begun)
    begun.close()
    assert not (brush / "check" / "check.json").exists()
    assert len(usable(opened(brush), brush / "check")) == 5
