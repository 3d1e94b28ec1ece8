"""Every reader gives the same kind of record, and says which row it cannot read, and why."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mindedit_core.contracts import Region
from mindedit_core.regions import region_mask
from mindedit_core.scenes import sample
from train.readers import READERS, open_records, options_from, reader
from train.readers.cells import RESIZED, Unfit, drawn_mask, from_regions, one_size, open_picture, painted_mask, to_array
from train.readers.mask_regions import mask_regions
from train.records import EditRecord, Records, Rejected, Subset


def reasons(records) -> dict[int, str]:
    """Row -> why it is rejected."""
    found = {}
    for row in range(len(records)):
        try:
            records[row]
        except Rejected as error:
            found[row] = error.reason
    return found


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


# The table of readers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_every_name_opens_something(name):
    assert callable(reader(name))


def test_an_unknown_reader_or_option_lists_the_known_ones(tmp_path):
    known = "dim_edit, dim_t2i, folder, human_edit, magic_brush"
    with pytest.raises(ValueError, match=f"unknown reader 'humanedit'; have {known}"):
        open_records("humanedit", path=tmp_path)
    with pytest.raises(ValueError, match=r"reader magic_brush: .*'splitt'; it takes \(path.*split.*columns"):
        open_records("magic_brush", path=tmp_path, splitt="dev")
    with pytest.raises(ValueError, match="reader folder: missing a required argument: 'path'"):
        open_records("folder")


def test_options_are_json_where_they_are_json():
    assert options_from(["a=1", "b.c=x y", "b.d=[1]", "e=", "f=a=b"]) == {"a": 1, "b": {"c": "x y", "d": [1]}, "e": "",
                                                                         "f": "a=b"}
    with pytest.raises(ValueError, match="written key=value, got 'path'"):
        options_from(["path"])


# The world -----------------------------------------------------------------------------------------------------------


def test_the_world_is_a_reader_too():
    world = open_records("world", count=10, first=3, programs=0.3)
    assert isinstance(world, Records) and len(set(world.ids)) == len(world) == 10
    wanted = sample(7)
    record = world[4]
    assert record.id == "world1-7" and np.array_equal(record.source, wanted.source_image)
    assert record.optimized == wanted.optimized and np.array_equal(record.mask, wanted.mask)
    assert record.regions == wanted.regions and record.steps == ()
    assert len(world[0].steps) == len(sample(3, steps=2).steps) == 2
    assert sum("then" in world[row].instruction for row in range(10)) == 3
    assert open_records("world", count=1, first=7)[0].id == record.id  # a number is the same for ever
    with pytest.raises(IndexError):
        world[10]


# Parquet -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brush(rows, published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brush")
    published.write(folder, "train", published.magic_brush(rows), shards=2, row_group_size=3)
    return published.write(folder, "dev", published.magic_brush(rows[:2]))


def test_magic_brush_comes_out_as_it_went_in(brush, rows):
    records = open_records("magic_brush", path=brush, cache=brush / "cache")
    assert len(records) == len(rows) and records.ids[2] == "scene2-3"
    assert len(open_records("magic_brush", path=brush, split="dev", cache=brush / "cache")) == 2
    for number, row in enumerate(rows):
        record = records[number]
        assert np.array_equal(record.source, row.source) and np.array_equal(record.target, row.target)
        assert np.array_equal(record.mask, row.mask) and record.instruction == row.instruction


def test_workers_take_a_reader_along(brush, rows):
    records = open_records("magic_brush", path=brush, cache=brush / "cache")
    records[0]  # has a file open by now
    assert np.array_equal(pickle.loads(pickle.dumps(records))[5].source, records[5].source)
    loaded = list(DataLoader(records, batch_size=None, num_workers=2))
    assert [record.id for record in loaded] == list(records.ids)
    assert all(np.array_equal(record.source, row.source) for record, row in zip(loaded, rows, strict=True))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process holds")
def test_rows_are_read_without_their_file(published, tmp_path):
    """Forty pictures of 1.5 MB in one row group: reading them again and again keeps none of them in memory."""
    random = np.random.default_rng(0)
    table = pa.table({"image_a": pa.array([random.bytes(1_500_000) for _ in range(40)], pa.binary()),
                      "image_b": pa.array([b""] * 40, pa.binary()),
                      "text": [f"row {number}" for number in range(40)]})
    published.write(tmp_path, "big", table)
    records = open_records("multistep", path=tmp_path, cache=tmp_path / "cache")
    records.table[0]
    before = anonymous_memory()
    for row in random.integers(0, 40, 200):
        records.table[int(row)]
    assert anonymous_memory() - before < 20e6


def anonymous_memory() -> int:
    """Bytes that this process holds and that are no mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(status["RssAnon"].split()[0]) * 1024


def test_a_file_is_unpacked_once_and_again_when_it_changes(published, rows, tmp_path):
    published.write(tmp_path, "train", published.magic_brush(rows[:2]))
    open_records("magic_brush", path=tmp_path, cache=tmp_path / "cache")
    (first,) = (tmp_path / "cache").iterdir()
    written = first.stat().st_mtime_ns
    open_records("magic_brush", path=tmp_path, cache=tmp_path / "cache")
    assert [file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()] == [written]
    published.write(tmp_path, "train", published.magic_brush(rows[2:4]))
    assert open_records("magic_brush", path=tmp_path, cache=tmp_path / "cache")[0].id == "scene2-1"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_multistep_columns_are_discovered_said_and_overridden(published, rows, tmp_path):
    published.write(tmp_path, "reasoning", published.multistep(rows))
    records = open_records("multistep", path=tmp_path, cache=tmp_path / "cache")
    assert records.notes == ["columns: source = image_a, target = image_b, instruction = steps"]
    assert records[4].instruction.startswith("invert the astronaut, then") and records[4].mask is None
    assert np.array_equal(records[4].target, rows[4].target) and len(set(records.ids)) == len(rows)
    turned = open_records("multistep", path=tmp_path, count=3, cache=tmp_path / "cache",
                          columns={"source": "image_b", "target": "image_a", "instruction": "category"})
    assert len(turned) == 3 and np.array_equal(turned[1].source, rows[1].target) and turned[1].instruction == "scene"


def test_multistep_believes_names_before_places(published, rows, tmp_path):
    table = published.multistep(rows[:1]).rename_columns(["prompt", "edited_image", "input_image", "reasoning"])
    published.write(tmp_path, "reasoning", table)
    (note,) = open_records("multistep", path=tmp_path, cache=tmp_path / "cache").notes
    assert note == "columns: source = input_image, target = edited_image, instruction = prompt"


@pytest.mark.parametrize(("name", "role", "column"), [("human_edit", "source", "INPUT_IMG"),
                                                      ("magic_brush", "target", "target_img")])
def test_a_missing_column_lists_those_there_are_and_can_be_named(published, rows, tmp_path, name, role, column):
    table = getattr(published, name)(rows[:2])
    renamed = table.rename_columns(["MINE" if each == column else each for each in table.column_names])
    published.write(tmp_path, "train", renamed)
    with pytest.raises(ValueError, match=rf"{name} needs a column for {role}, looked for {column}; .*MINE.*"
                                         rf"--set columns.{role}=NAME"):
        open_records(name, path=tmp_path, cache=tmp_path / "cache")
    records = open_records(name, path=tmp_path, columns={role: "MINE"}, cache=tmp_path / "cache")
    assert np.array_equal(records[0].target, rows[0].target)
    with pytest.raises(ValueError, match="no column role picture; have"):
        open_records(name, path=tmp_path, columns={"picture": "MINE"}, cache=tmp_path / "cache")


def test_a_file_that_is_no_parquet_is_named(published, rows, tmp_path):
    published.write(tmp_path, "train", published.magic_brush(rows[:2]), shards=2)
    broken = tmp_path / "train-00001-of-00002.parquet"
    broken.write_bytes(truncated(broken.read_bytes()))
    with pytest.raises(ValueError, match="train-00001-of-00002.parquet cannot be read as parquet .*download it again"):
        open_records("magic_brush", path=tmp_path, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"there is no dev-\*.parquet at"):
        open_records("magic_brush", path=tmp_path, split="dev")


def test_bad_rows_are_rejected_one_by_one_with_their_place(published, rows, tmp_path):
    def spoil(column: str, row: int, value) -> None:
        cells[column][row] = value

    cells = published.human_edit(rows).to_pydict()
    spoil("INPUT_IMG", 0, {"bytes": truncated(published.png(rows[0].source)), "path": None})
    spoil("OUTPUT_IMG", 1, {"bytes": b"not a picture", "path": None})
    spoil("MASK_IMG", 2, None)
    spoil("EDITING_INSTRUCTION", 3, "  \n")
    spoil("OUTPUT_IMG", 4, published.cell(rows[4].target[:, :150]))
    spoil("MASK_IMG", 5, published.cell(np.full_like(rows[5].source, 200)))
    spoil("EDITING_INSTRUCTION", 6, None)
    published.write(tmp_path, "train", pa.table(cells, published.human_edit(rows).schema), shards=2)
    records = open_records("human_edit", path=tmp_path, cache=tmp_path / "cache")
    found = reasons(records)
    assert sorted(found) == [0, 1, 2, 3, 4, 5, 6]
    assert "source cannot be read as a picture" in found[0] and "truncated" in found[0]
    assert found[1] == "target cannot be read as a picture: of no known format"
    assert found[2] == "mask is missing" and found[3] == found[6] == "the instruction is empty"
    assert found[4] == "the pictures are not of one shape: source 256x256, target 150x256, mask 256x256"
    assert found[5].startswith("the mask marks nothing")
    with pytest.raises(Rejected) as error:
        records[5]
    line = error.value.line()
    assert line["file"].endswith("train-00001-of-00002.parquet") and (line["row"], line["file_row"]) == (5, 1)
    assert pickle.loads(pickle.dumps(error.value)).line() == line


# Folders -------------------------------------------------------------------------------------------------------------


def save(path, array: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def mine(rows, tmp_path):
    """Folders of one picture each role, and a .jsonl that says the same."""
    for row in rows:
        save(tmp_path / "source" / f"{row.name}.png", row.source)
        save(tmp_path / "target" / f"{row.name}.webp", row.target)
        save(tmp_path / "mask" / f"{row.name}.png", row.mask)
        (tmp_path / "instruction").mkdir(exist_ok=True)
        (tmp_path / "instruction" / f"{row.name}.txt").write_text(row.instruction + "\n")
    return tmp_path


def lines_of(rows) -> list[dict]:
    return [{"source": f"source/{row.name}.png", "target": f"target/{row.name}.webp", "mask": f"mask/{row.name}.png",
             "instruction": row.instruction} for row in rows]


def write_lines(path, lines) -> None:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def test_plain_folders_and_a_jsonl_say_the_same(mine, rows):
    folders = open_records("folder", path=mine)
    assert sorted(folders.ids) == sorted(row.name for row in rows)
    write_lines(mine / "records.jsonl", lines_of(rows))
    listed = open_records("folder", path=mine)
    for number, row in enumerate(rows):
        a, b = listed[number], folders[list(folders.ids).index(row.name)]
        assert np.array_equal(a.source, row.source) and np.array_equal(b.source, row.source)
        assert np.array_equal(a.mask, row.mask) and np.array_equal(b.mask, row.mask)
        assert a.instruction == b.instruction == row.instruction and np.array_equal(a.target, b.target)


def test_a_line_may_say_all_that_a_record_holds_under_names_of_its_own(mine, rows):
    line = lines_of(rows)[0]
    line = {"image_path": line["source"], "image_path_target": None, "prompt": "remove it", "id": 7,
            "optimized": "plain snow", "regions": [[10, 20, 30, 40], "background", {"keep": [1, 2, 3, 4]}],
            "steps": ["no cat", "plain\nsnow"], "source_caption": "a\ncat"}
    write_lines(mine / "dim.jsonl", [line])
    names = {"source": "image_path", "target": "image_path_target", "instruction": "prompt"}
    record = open_records("folder", path=mine, file="dim.jsonl", columns=names)[0]
    assert (record.id, record.instruction, record.target, record.mask) == ("7", "remove it", None, None)
    assert record.optimized == "plain snow" and record.source_caption == "a cat"
    assert record.regions == (Region("box", (10.0, 20.0, 30.0, 40.0)), Region("background"),
                              Region("keep", (1.0, 2.0, 3.0, 4.0)))
    assert from_regions(record.regions) == line["regions"] and record.steps == ("no cat", "plain snow")


def test_lines_that_cannot_be_read_are_rejected(mine, rows):
    good = lines_of(rows)
    (mine / "half.png").write_bytes(truncated((mine / "source" / "coffee.png").read_bytes()))
    bad = ['{"source": "a.png"', "[1]", {**good[0], "source": "nowhere.png"}, {**good[1], "instruction": ""},
           {name: value for name, value in good[2].items() if name != "target"}, {**good[3], "source": "half.png"},
           {**good[3], "regions": [[3, 2, 1, 0]]}, {**good[3], "source": 5}, {**good[3], "steps": "one"}]
    write_lines(mine / "records.jsonl", [*bad, good[4]])
    with open(mine / "records.jsonl", "ab") as file:
        file.write(b'{"instruction": "\xff"}\n')
    found = reasons(open_records("folder", path=mine))
    assert sorted(found) == [*range(9), 10]
    assert "no JSON" in found[0] and "no JSON object, but list" in found[1] and "there is no file" in found[2]
    assert found[3] == "the instruction is empty" and found[4] == "target is missing; null says that there is none"
    assert "truncated" in found[5] and "regions cannot be read: box must be" in found[6]
    assert found[8] == "steps must be a list of texts, got 'one'"
    assert found[7] == "source must be a picture or the path of one, got int" and "utf-8" in found[10]


def test_folders_that_do_not_fit_are_rejected(mine, rows):
    (mine / "target" / "coffee.webp").unlink()
    save(mine / "source" / "chelsea.jpg", rows[5].source)
    (mine / "instruction" / "rocket.txt").unlink()
    (mine / "instruction" / "extra.txt").write_text("paint it")
    (mine / "instruction" / "scene0.txt").write_bytes(b"\xff\xfe")
    records = open_records("folder", path=mine)
    found = {records.ids[row]: reason for row, reason in reasons(records).items()}
    assert found.pop("scene0").startswith("instruction is no UTF-8 text")
    assert found == {
        "coffee": "target is missing; null says that there is none",
        "chelsea": "source has chelsea.jpg and chelsea.png; keep one",
        "rocket": "the instruction is empty",
        "extra": "source, target, mask is missing; null says that there is none",
    }


def test_a_folder_without_anything_says_what_is_wanted(tmp_path):
    with pytest.raises(ValueError, match="has neither records.jsonl nor the folders source and instruction"):
        open_records("folder", path=tmp_path)
    write_lines(tmp_path / "records.jsonl", [{"image": "a.png", "text": "b"}])
    with pytest.raises(ValueError, match="needs a column for source.* has image, text: name it with --set columns.sou"):
        open_records("folder", path=tmp_path)
    with pytest.raises(ValueError, match="mask_paint must be white or black, got 'grey'"):
        open_records("folder", path=tmp_path, mask_paint="grey")


# Cells ---------------------------------------------------------------------------------------------------------------


def picture(array: np.ndarray) -> Image.Image:
    return open_picture("source", png_of(Image.fromarray(array)))


def test_pictures_of_every_mode_become_rgb():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(to_array(picture(grey))[..., 1], grey)
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(to_array(picture(deep))[..., 2], grey)  # 16 bits
    clear = np.dstack([grey, grey, grey, np.where(grey > 127, 255, 0)]).astype(np.uint8)
    assert np.array_equal(to_array(picture(clear))[..., 0], np.where(grey > 127, grey, 255))  # over white
    palette = open_picture("source", png_of(Image.fromarray(grey).convert("P")))
    assert np.array_equal(to_array(palette)[..., 0], grey)


def png_of(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_a_picture_on_its_side_is_put_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    array = np.zeros((4, 9, 3), np.uint8)
    array[0] = 255
    upright = to_array(open_picture("source", png_of(Image.fromarray(array), exif=exif)))
    assert upright.shape == (9, 4, 3) and (upright[:, -1] == 255).all() and not upright[:, :-1].any()


def test_a_transparent_part_is_the_mask_whatever_its_colour():
    source = np.full((8, 8, 3), 90, np.uint8)
    hole = np.zeros((8, 8), bool)
    hole[2:5, 3:6] = True
    clear = np.dstack([source, np.where(hole, 0, 255)]).astype(np.uint8)
    assert np.array_equal(painted_mask(Image.fromarray(clear), source, 0), hole)
    assert np.array_equal(drawn_mask(Image.fromarray(clear)), hole)


def test_black_and_white_masks_can_be_turned_round():
    half = np.zeros((4, 4), np.uint8)
    half[:, 2:] = 255
    assert np.array_equal(drawn_mask(Image.fromarray(half), 0), ~drawn_mask(Image.fromarray(half)))
    with pytest.raises(Unfit, match="marks nothing"):
        drawn_mask(Image.fromarray(half * 0))


def test_a_photograph_of_the_night_keeps_the_published_mask():
    night = np.zeros((16, 16, 3), np.uint8)
    assert painted_mask(Image.fromarray(night), night, 0).all()


def test_resolutions_are_brought_to_the_smallest_and_that_is_said():
    large, small = np.zeros((40, 60, 3), np.uint8), np.full((20, 30, 3), 9, np.uint8)
    arrays, notes = one_size(source=large, target=small, mask=np.ones((40, 60), bool))
    assert notes == (RESIZED,) and arrays["target"] is small
    assert arrays["source"].shape == (20, 30, 3) and arrays["mask"].dtype == bool and arrays["mask"].all()
    assert one_size(source=large, target=None) == ({"source": large, "target": None}, ())


def test_a_masks_parts_become_boxes_that_cover_it_and_specks_do_not(rows):
    for row in rows:
        regions = mask_regions(row.mask)
        covered = region_mask(regions, *row.mask.shape).numpy() > 0
        assert (covered | ~row.mask).mean() > 0.99 and 1 <= len(regions) <= 3
    two = np.zeros((100, 200), bool)
    two[10:20, 20:60] = two[50:90, 100:150] = two[0, 0] = True
    large, small = (500.0, 500.0, 750.0, 900.0), (100.0, 100.0, 300.0, 200.0)
    assert mask_regions(two) == (Region("box", large), Region("box", small))
    assert mask_regions(np.ones((4, 4), bool)) == (Region("background"),)


# Records -------------------------------------------------------------------------------------------------------------


def test_a_record_checks_its_own_shapes():
    source = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(ValueError, match=r"target of record a must be uint8\[4, 6, 3\], got uint8\[6, 4, 3\]"):
        EditRecord("a", "b", source, target=np.zeros((6, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"mask of record a must be bool\[4, 6\], got uint8\[4, 6\]"):
        EditRecord("a", "b", source, mask=np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"source of record a must be uint8"):
        EditRecord("a", "b", source.astype(np.float32))


def test_a_subset_has_its_own_row_numbers():
    part = Subset(open_records("world", count=5), [4, 1])
    assert part.ids == ["world1-4", "world1-1"] and len(part) == 2 and part[1].id == "world1-1"
    assert isinstance(part, Records)
