"""DIM-Edit and DIM-T2I as published: what comes out is what went in, and what cannot be read is told by name."""

import json
import os
import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mindedit_core.scenes import sample
from mindedit_core.scenes.blueprint import true_blueprint
from train.check_data import main
from train.readers import open_records
from train.readers.cells import RESIZED
from train.records import EditRecord, Records, Rejected
from train.rejects import usable

SCENES = range(6)


def write_lines(path, lines) -> None:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def line_of(number: int) -> dict:
    """As published: paths from the .jsonl on, the blueprint as the prompt."""
    return {"id": f"edit_{number:07d}", "image_path": f"images/source/{number}.png",
            "prompt": true_blueprint(sample(number)), "image_path_target": f"images/target/{number}.png"}


@pytest.fixture
def folder(published, tmp_path):
    """Six scenes of the world as DIM-Edit is when its images are unpacked."""
    for role in ("source", "target"):
        (tmp_path / "images" / role).mkdir(parents=True)
    for number in SCENES:
        item = sample(number)
        (tmp_path / line_of(number)["image_path"]).write_bytes(published.png(item.source_image))
        (tmp_path / line_of(number)["image_path_target"]).write_bytes(published.png(item.target_image))
    write_lines(tmp_path / "tos_dataset_edit.jsonl", map(line_of, SCENES))
    return tmp_path


def reasons(records) -> dict[int, str]:
    """Row -> why it is rejected."""
    found = {}
    for row in range(len(records)):
        try:
            records[row]
        except Rejected as error:
            found[row] = error.reason
    return found


def same(record: EditRecord, number: int) -> bool:
    item = sample(number)
    return np.array_equal(record.source, item.source_image) and np.array_equal(record.target, item.target_image)


# DIM-Edit ------------------------------------------------------------------------------------------------------------


def test_an_edit_comes_out_with_its_wish_and_its_whole_blueprint(folder):
    records = open_records("dim_edit", path=folder)
    assert isinstance(records, Records) and records.ids == [f"edit_{number:07d}" for number in SCENES]
    for number in SCENES:
        record, item = records[number], sample(number)
        assert same(record, number) and record.id == records.ids[number] and record.size == (128, 128)
        assert record.instruction == item.instruction and record.blueprint == true_blueprint(item)
        assert record.optimized is None and record.mask is None and record.notes == ()


def test_pictures_may_lie_elsewhere_and_columns_may_have_other_names(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lines") / "mine.jsonl"
    names = {"id": "name", "source": "before", "target": "after", "blueprint": "text"}
    turned = dict(zip(("id", "image_path", "image_path_target", "prompt"), names.values(), strict=True))
    write_lines(elsewhere, [{turned[name]: value for name, value in line_of(2).items()}])
    record = open_records("dim_edit", path=elsewhere, images=folder, columns=names)[0]
    assert same(record, 2) and record.id == "edit_0000002"
    with pytest.raises(ValueError, match="needs a column for id, looked for id; .*mine.jsonl has name, before"):
        open_records("dim_edit", path=elsewhere, images=folder)
    write_lines(elsewhere, [line_of(2)])
    found = reasons(open_records("dim_edit", path=elsewhere))
    assert found == {0: f"source: there is no file {elsewhere.parent / 'images/source/2.png'}"}


def test_what_is_not_there_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no .*nowhere; give the folder of the download, or the .jsonl"):
        open_records("dim_edit", path=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no folder .*lost for the pictures; name it with --set images=FOLD"):
        open_records("dim_edit", path=folder, images=folder / "lost")


def broken_lines(folder) -> list:
    """Lines 1 to 9, behind one that is sound, and behind an empty one."""
    (folder / "images" / "half.png").write_bytes((folder / "images/source/0.png").read_bytes()[:500])
    whole = true_blueprint(sample(1))
    return [
        {**line_of(1), "image_path": "images/source/gone.png"}, '{"id": "edit_torn", "image_path": "im',
        {**line_of(1), "id": "edit_0000000"}, {**line_of(1), "id": "untold", "prompt": "remove the cat"},
        {**line_of(1), "id": "pathless", "image_path_target": None}, {**line_of(1), "id": None},
        {**line_of(1), "id": "half", "image_path_target": "images/half.png"}, {**line_of(1), "id": "five", "prompt": 5},
        {**line_of(1), "id": "empty", "prompt": whole.replace(sample(1).instruction, " ", 1)},
    ]


def test_bad_lines_are_rejected_one_by_one_and_the_others_stay(folder):
    write_lines(folder / "tos_dataset_edit.jsonl", [line_of(0), "", *broken_lines(folder), line_of(5)])
    records = open_records("dim_edit", path=folder)
    found = {records.ids[row]: reason for row, reason in reasons(records).items()}
    untold = "the blueprint has no section 'Edit Instruction', where the instruction stands"
    assert found.pop("edit_0000001") == f"source: there is no file {folder / 'images/source/gone.png'}"
    assert found.pop("line-3").startswith("the line is no JSON: Unterminated string")
    assert "truncated" in found.pop("half") and found.pop("pathless") == "target is missing"
    assert found == {"untold": untold, "empty": untold, "five": "the blueprint must be a text, got int",
                     "line-7": "id is missing"}
    assert same(records[0], 0) and same(records[10], 5)
    with pytest.raises(Rejected) as error:
        records[2]
    assert (error.value.file_row, error.value.file) == (3, str(folder / "tos_dataset_edit.jsonl"))


def test_check_data_tells_them_and_that_an_id_is_there_twice(folder, capsys):
    write_lines(folder / "tos_dataset_edit.jsonl", [line_of(0), "", *broken_lines(folder), line_of(5)])
    words = ["--reader", "dim_edit", "--set", f"path={folder}", "--out", str(folder / "check")]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert said.startswith("dim_edit: 11 rows, 2 can be used, 9 rejected\n") and "128x128 (2)" in said
    lines = [json.loads(line) for line in (folder / "check" / "rejects.jsonl").read_text().splitlines()]
    told = {line["id"]: line["reason"] for line in lines}
    assert len(lines) == 9 and told["edit_0000000"] == "row 0 has this id too" and "edit_0000001" in told
    write_lines(folder / "tos_dataset_edit.jsonl", map(line_of, SCENES))
    assert main(words) == 0 and "rejected       none" in capsys.readouterr().out


def test_pictures_of_two_resolutions_are_brought_to_the_smaller(folder, published):
    (folder / "images/target/3.png").write_bytes(published.png(sample(3).target_image.repeat(2, 0).repeat(2, 1)))
    record = open_records("dim_edit", path=folder)[3]
    assert record.target.shape == (128, 128, 3) and record.notes == (RESIZED,)


def test_no_text_is_held_and_a_line_is_read_when_it_is_asked_for(folder):
    six = [line_of(number) | {"prompt": f"{true_blueprint(sample(number))} {'and so on ' * 200}"} for number in SCENES]
    padded = [six[number % 6] | {"id": f"edit-{number}"} for number in range(20_000)]
    write_lines(folder / "tos_dataset_edit.jsonl", padded)
    records = open_records("dim_edit", path=folder)
    assert len(records) == 20_000 and (folder / "tos_dataset_edit.jsonl").stat().st_size > 40e6
    assert len(pickle.dumps(records)) < 2e6
    assert same(records[15_001], 15_001 % 6) and records[15_001].blueprint == padded[15_001]["prompt"].strip()
    os.truncate(folder / "tos_dataset_edit.jsonl", 1000)
    with pytest.raises(Rejected, match="edit-15001"):
        records[15_001]


def test_workers_take_the_reader_along(folder):
    records = open_records("dim_edit", path=folder)
    loaded = list(DataLoader(records, batch_size=None, num_workers=1))
    assert [record.id for record in loaded] == records.ids and all(map(same, loaded, SCENES))
    assert same(pickle.loads(pickle.dumps(records))[4], 4)


def test_pictures_that_are_unpacked_later_are_noticed(folder):
    late = folder / "images" / "target" / "5.png"
    content = late.read_bytes()
    late.unlink()
    assert len(usable(open_records("dim_edit", path=folder), folder / "check")) == 5
    late.write_bytes(content)
    assert len(usable(open_records("dim_edit", path=folder), folder / "check")) == 6


@pytest.mark.parametrize("write", ["**1. Edit Instruction:** {}", "1) Edit instruction: {}",
                                   "### 1. EDIT INSTRUCTION\n{}"])
def test_the_wish_is_found_however_its_heading_is_dressed(folder, write):
    item = sample(0)
    text = true_blueprint(item).replace(f"1. Edit Instruction: {item.instruction}", write.format(item.instruction))
    write_lines(folder / "tos_dataset_edit.jsonl", [{**line_of(0), "prompt": text}])
    record = open_records("dim_edit", path=folder)[0]
    assert record.instruction == item.instruction and record.blueprint == text != true_blueprint(item)


# DIM-T2I -------------------------------------------------------------------------------------------------------------


def caption_line(number: int, **more) -> dict:
    return {"id": number, "image_path": f"kale/{number}.png", "prompt": f"caption {number},\n in two lines", **more}


@pytest.fixture
def captions(published, tmp_path):
    """Two files of captions; of their seven pictures four are there."""
    (tmp_path / "mine" / "kale").mkdir(parents=True)
    for number in (0, 2, 3, 9):
        (tmp_path / "mine" / "kale" / f"{number}.png").write_bytes(published.png(sample(number).target_image))
    (tmp_path / "captions").mkdir()
    write_lines(tmp_path / "captions" / "blip3_kale.jsonl", [caption_line(number) for number in range(4)])
    lines = [caption_line(0, image_path=None, image_path_target="kale/9.png"), caption_line(8), caption_line(7)]
    write_lines(tmp_path / "captions" / "uReader.jsonl", lines)
    return tmp_path


def opened(captions, **options):
    return open_records("dim_t2i", path=captions / "captions", images=captions / "mine", **options)


def test_captions_with_a_picture_are_records_without_a_source(captions):
    records = opened(captions)
    assert isinstance(records, Records)
    assert records.ids == ["blip3_kale-0", "blip3_kale-2", "blip3_kale-3", "uReader-0"]
    for row, number in enumerate((0, 2, 3, 9)):
        record = records[row]
        assert record.source is None and np.array_equal(record.target, sample(number).target_image)
        assert record.instruction == record.target_caption == f"caption {number % 9}, in two lines"


def test_captions_without_a_picture_are_counted_and_said_once(captions):
    where = captions / "mine"
    assert opened(captions).notes == [
        f"3 of 7 captions have no picture under {where} and are left out, the first is 1"]
    for number in (1, 7, 8):
        (where / "kale" / f"{number}.png").write_bytes((where / "kale" / "0.png").read_bytes())
    assert opened(captions).notes == [] and len(opened(captions)) == 7
    assert len(open_records("dim_t2i", path=captions / "captions" / "uReader.jsonl", images=where)) == 3
    with pytest.raises(ValueError, match="none of the 7 captions has its picture under .*captions; name it with"):
        open_records("dim_t2i", path=captions / "captions", images=captions / "captions")
    with pytest.raises(ValueError, match="there is no .jsonl at .*mine; give the folder"):
        open_records("dim_t2i", path=where, images=where)


def test_check_data_looks_at_captions_too(captions, capsys):
    words = ["--reader", "dim_t2i", "--set", f"path={captions / 'captions'}", "--set", f"images={captions / 'mine'}"]
    assert main([*words, "--out", str(captions / "check")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("dim_t2i: 4 rows, 4 can be used, 0 rejected\nnote: 3 of 7 captions")
    assert "128x128 (4)" in said and "target 4, target_caption 4" in said


def test_a_caption_that_cannot_be_read_is_rejected_by_name(captions, published):
    long = "a very long caption " * 200
    lines = ['{"id": 5, "ima', caption_line(0, prompt=" "), caption_line(2, prompt=long), caption_line(3, image_path=7)]
    write_lines(captions / "captions" / "uReader.jsonl", lines)
    (captions / "mine" / "kale" / "0.png").write_bytes(b"no picture")
    records = opened(captions)
    found = {records.ids[row]: reason for row, reason in reasons(records).items()}
    assert found.pop("uReader-line-0").startswith("the line is no JSON")
    assert found == {"blip3_kale-0": "target cannot be read as a picture: of no known format",
                     "uReader-0": "the caption is empty",
                     "uReader-3": "target must be a picture or the path of one, got int"}
    assert records[5].instruction == long.strip()


# Records -------------------------------------------------------------------------------------------------------------


def test_a_record_has_a_source_or_a_target():
    picture = np.zeros((4, 6, 3), np.uint8)
    assert EditRecord("a", "b", picture).size == EditRecord("a", "b", None, picture).size == (6, 4)
    with pytest.raises(ValueError, match="record a must have a source or a target, got neither"):
        EditRecord("a", "b", None)
    with pytest.raises(ValueError, match=r"mask of record a must be bool\[4, 6\]"):
        EditRecord("a", "b", None, picture, np.zeros((6, 4), bool))
    assert open_records("world", count=1)[0].blueprint is None
