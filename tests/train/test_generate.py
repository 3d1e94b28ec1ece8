"""Benchmarks in their published layouts, painted under the names that their scorers read, killed runs and all."""

import copy
import doctest
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mindedit_core.contracts import Plan
from mindedit_core.designers.transport import AskFailed, EndpointUnusable
from mindedit_core.pictures import to_uint8
from mindedit_core.pipeline import edit
from mindedit_core.scenes import sample
from mindedit_core.scenes.blueprint import true_blueprint, true_sections
from mindedit_core.systems import load_system
from mindedit_core.systems.tiny_dim import save_tiny_dim
from train import benchmarks, generate, painted_run, written_blueprints
from train.journal import Journal

pytestmark = pytest.mark.weights  # the shipped mini paints

TWO_STEPS = ["--set", "steps=2"]
TYPES = ("add", "remove", "style", "background", "extract", "action")
TASKS = ("subject-add", "ps_human", "text_change")


once = cache(load_system)  # the real systems, each read from the disk once


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "load_system", once)
        yield


def main(*words) -> int:
    return generate.main([str(word) for word in words])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, said) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in said))
    return path


def run_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert (picture.mode, picture.format) == ("RGB", "PNG")
        return np.array(picture)


def painted(wish: str, source: np.ndarray, plan: Plan | None = None, **settings) -> np.ndarray:
    """What the mini paints when it is asked directly."""
    system = once("mini")
    if plan:
        system = replace(system, designer=type("Told", (), {"design": lambda *_, **__: plan})())
    image = torch.from_numpy(source.copy())[None].float() / 255
    asked = system.settings_for(None).but(**{"steps": 2, "seed": 0, **settings})
    return to_uint8(edit(system, image, wish, asked).image[0])


# ImgEdit-Bench -------------------------------------------------------------------------------------------------------


def basic_edit(folder: Path, published, count: int = 4, inside: str = "singleturn") -> Path:
    """As published: basic_edit.json, and pictures in folders of their subjects."""
    said = {str(100 + n): {"id": f"animal/{n:06d}.png", "prompt": sample(n).instruction, "edit_type": TYPES[n % 6]}
            for n in range(count)}
    for n, entry in enumerate(said.values()):
        file = folder / inside / entry["id"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(published.png(sample(n).source_image))
    (folder / "basic_edit.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def imgedit(published, tmp_path):
    return basic_edit(tmp_path / "Benchmark", published)


def imgedit_words(data: Path, out: Path, *more) -> list:
    return ["--benchmark", "imgedit", "--data", data, "--system", "mini", "--out", out, *TWO_STEPS, *more]


def pictures_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
                  and path.name not in ("run.json", "failures.jsonl"))


@pytest.mark.parametrize("inside", ["singleturn", ""])
def test_imgedit_has_a_picture_a_key_and_each_is_the_edit_of_its_prompt(published, tmp_path, inside):
    data, out = basic_edit(tmp_path / "data", published, inside=inside), tmp_path / "out"
    assert main(*imgedit_words(data, out, "--seed", 3)) == 0
    assert pictures_in(out) == ["100.png", "101.png", "102.png", "103.png"]
    for n in range(4):
        wanted = painted(sample(n).instruction, sample(n).source_image, seed=3)
        assert np.array_equal(pixels(out / f"{100 + n}.png"), wanted)
    assert (out / "failures.jsonl").read_text() == ""


def test_lines_of_dim_are_imgedit_too_and_n_takes_the_first(imgedit, tmp_path, capsys):
    said = json.loads((imgedit / "basic_edit.json").read_text())
    told = [{"id": key, "image_path": f"singleturn/{entry['id']}", "prompt": entry["prompt"]}
            for key, entry in said.items()]
    file = write_lines(imgedit / "tos_dataset_imgedit.jsonl", told)
    assert main(*imgedit_words(file, tmp_path / "a", "--n", 2)) == 0
    assert pictures_in(tmp_path / "a") == ["100.png", "101.png"]
    assert main(*imgedit_words(imgedit / "basic_edit.json", tmp_path / "b", "--n", 2)) == 0
    assert np.array_equal(pixels(tmp_path / "a" / "101.png"), pixels(tmp_path / "b" / "101.png"))
    assert "2 of 2 samples are painted" in capsys.readouterr().out
    assert main(*imgedit_words(file, tmp_path / "a")) == 0  # the rest of the same run
    assert len(pictures_in(tmp_path / "a")) == 4


def test_the_seed_is_the_systems_own_unless_it_is_said(imgedit, tmp_path, monkeypatch):
    system = once("mini")
    monkeypatch.setattr(generate, "load_system", lambda _: replace(system, settings=system.settings.but(seed=233)))
    assert main(*imgedit_words(imgedit, tmp_path, "--n", 1)) == 0 and run_of(tmp_path)["seed"] == 233
    wanted = painted(sample(0).instruction, sample(0).source_image, seed=233)
    assert np.array_equal(pixels(tmp_path / "100.png"), wanted)


def test_run_json_says_what_was_painted_with_what(imgedit, tmp_path):
    words = imgedit_words(imgedit, tmp_path / "out", "--seed", 5, "--set", "guidance_scale=2.5")
    assert main(*words) == 0
    said = run_of(tmp_path / "out")
    assert said["counts"] == {"samples": 4, "painted": 4, "failed": 0} and said["seconds"] > 0 and said["finished"]
    assert (said["benchmark"], said["system"], said["designer"], said["seed"]) == ("imgedit", "mini", "SelfMLLM", 5)
    assert (said["settings"]["steps"], said["settings"]["guidance_scale"]) == (2, 2.5)
    assert said["settings"]["strength"] == once("mini").settings_for(None).strength
    assert said["provenance"]["unet.safetensors"]["recipe"] and "config" not in said["provenance"]["unet.safetensors"]
    assert said["command"] == f"python -m train.generate {' '.join(map(str, words))}"


# GEdit-Bench ---------------------------------------------------------------------------------------------------------


def gedit_table(published, count: int = 6) -> pa.Table:
    """As published; every third instruction is in Chinese."""
    cells = pa.array([published.cell(sample(n).source_image) for n in range(count)],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table({
        "task_type": [TASKS[n % 3] for n in range(count)], "key": [f"{n:032x}" for n in range(count)],
        "instruction": [sample(n).instruction for n in range(count)],
        "instruction_language": ["cn" if n % 3 == 2 else "en" for n in range(count)],
        "input_image": cells, "input_image_raw": pa.array([None] * count, cells.type),
        "Intersection_exist": [n % 2 == 0 for n in range(count)],
    })


def saved(folder: Path, table: pa.Table) -> Path:
    """What `DatasetDict.save_to_disk` of `datasets` 5.2 writes: Arrow streams in shards, and a cache beside them."""
    part = folder / "train"
    part.mkdir(parents=True)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    half = len(table) // 2
    shards = {"data-00000-of-00002": table[:half], "data-00001-of-00002": table[half:], "cache-0123abcd": table}
    for name, rows in shards.items():
        with pa.OSFile(str(part / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=2)
    files = [{"filename": f"{name}.arrow"} for name in shards if name.startswith("data")]
    (part / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    (part / "dataset_info.json").write_text("{}")
    return folder


def as_lines(folder: Path, table: pa.Table) -> Path:
    """DIM's form of it: the picture by its path, the instruction as `prompt`."""
    folder.mkdir()
    told = []
    for row in table.drop_columns("input_image_raw").to_pylist():
        (folder / f"{row['key']}.png").write_bytes(row.pop("input_image")["bytes"])
        told.append({**row, "id": row["key"], "image_path": f"{row['key']}.png", "prompt": row.pop("instruction")})
    return write_lines(folder / "gedit.jsonl", told)


def as_parquet(folder: Path, table: pa.Table) -> Path:
    folder.mkdir()
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder


def gedit_words(data: Path, out: Path, *more) -> list:
    return ["--benchmark", "gedit", "--data", data, "--system", "mini", "--out", out, *TWO_STEPS, *more]


@pytest.fixture(scope="module")
def english() -> dict[str, np.ndarray]:
    """What is to lie in the folder for the English samples 0, 1, 3 and 4."""
    found = {}
    for n in (0, 1, 3, 4):
        place = f"mini/fullset/{TASKS[n % 3]}/en/{n:032x}"
        found[f"{place}.png"] = painted(sample(n).instruction, sample(n).source_image)
        found[f"{place}_SRCIMG.png"] = sample(n).source_image
    return found


@pytest.mark.parametrize("layout", [saved, as_parquet, as_lines])
def test_gedit_of_every_layout_is_painted_where_its_scorer_looks(published, tmp_path, monkeypatch, layout, english):
    monkeypatch.chdir(tmp_path)  # parquet is unpacked to runs/rows here
    data, out = layout(tmp_path / "data", gedit_table(published)), tmp_path / "out"
    assert main(*gedit_words(data, out)) == 0
    assert pictures_in(out) == sorted(english)
    (out / next(name for name in english if "SRCIMG" in name)).unlink()
    assert main(*gedit_words(data, out)) == 0
    assert pictures_in(out) == sorted(english)  # a picture without its source was not done
    assert all(np.array_equal(pixels(out / name), wanted) for name, wanted in english.items())


@pytest.mark.parametrize("kind", ["MIND-Edit", "Draw-In-Mind"])
def test_a_system_from_a_folder_gives_its_folder_the_name(published, tmp_path, tiny_folder, kind):
    folder = tiny_folder if kind == "MIND-Edit" else save_tiny_dim(tmp_path / "dim-tiny")
    data = as_lines(tmp_path / "data", gedit_table(published))
    file = write_lines(tmp_path / "blueprints.jsonl", [{"id": f"{0:032x}", "prompt": "a small red cat"}])
    words = gedit_words(data, tmp_path / "out", "--n", 1, "--system", folder, "--blueprints", file)
    assert main(*words) == 0
    place = f"{folder.name}/fullset/subject-add/en/{0:032x}"
    assert pictures_in(tmp_path / "out") == [f"{place}.png", f"{place}_SRCIMG.png"]
    assert run_of(tmp_path / "out")["system"] == str(folder)
    assert pixels(tmp_path / "out" / f"{place}.png").shape == (128, 128, 3)


def test_gedit_in_another_language(published, tmp_path, capsys):
    data, out = saved(tmp_path / "data", gedit_table(published)), tmp_path / "out"
    assert main(*gedit_words(data, out, "--language", "cn")) == 0
    place = "mini/fullset/text_change/cn/"
    assert pictures_in(out) == [f"{place}{n:032x}{end}.png" for n in (2, 5) for end in ("", "_SRCIMG")]
    one = write_lines(tmp_path / "en.jsonl", lines(as_lines(tmp_path / "c", gedit_table(published)))[:2])
    assert main(*gedit_words(one, tmp_path / "b", "--language", "cn")) == 2
    assert "has no sample in language cn, but en (2); choose another --language" in capsys.readouterr().err


def test_gedit_without_its_columns_or_shards_says_so(published, tmp_path, capsys):
    data = saved(tmp_path / "data", gedit_table(published).drop_columns("input_image"))
    assert main(*gedit_words(data, tmp_path / "out")) == 2
    assert "data-00000-of-00002.arrow lacks input_image; GEdit-Bench has task_type, key" in capsys.readouterr().err
    rest = saved(tmp_path / "rest", gedit_table(published))
    (rest / "train" / "data-00001-of-00002.arrow").write_bytes(b"torn")
    assert main(*gedit_words(rest, tmp_path / "out")) == 2
    assert "cannot be read as Arrow" in capsys.readouterr().err
    (rest / "train" / "data-00001-of-00002.arrow").unlink()
    assert main(*gedit_words(rest, tmp_path / "out", "--n", 1)) == 0
    assert "note: 1 of the files data-* are not here, the first is number 1" in capsys.readouterr().out


def test_without_pyarrow_lines_are_painted_and_the_rest_says_what_is_missing(published, tmp_path, monkeypatch, capsys):
    file = as_lines(tmp_path / "data", gedit_table(published))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in [name for name in sys.modules if name in ("train.readers.parquet", "pyarrow.parquet")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(*gedit_words(tmp_path / "data", tmp_path / "out")) == 2
    assert "is read by pyarrow, which is not here" in capsys.readouterr().err
    assert main(*gedit_words(file, tmp_path / "out", "--n", 1)) == 0


# Blueprints ----------------------------------------------------------------------------------------------------------


def test_a_blueprint_takes_the_designers_place_and_a_sample_without_one_fails(imgedit, tmp_path, capsys):
    told = [{"id": str(100 + n), "image_path": "x", "prompt": true_blueprint(sample(n))} for n in (0, 1, 3)]
    file, out = write_lines(tmp_path / "blueprints.jsonl", told), tmp_path / "out"
    words = imgedit_words(imgedit, out, "--blueprints", file)
    assert main(*words) == 1
    for n in (0, 1, 3):
        item = sample(n)
        plan = Plan(item.instruction, true_blueprint(item), "file")
        assert np.array_equal(pixels(out / f"{100 + n}.png"), painted(item.instruction, item.source_image, plan))
    assert not np.array_equal(pixels(out / "100.png"), painted(sample(0).instruction, sample(0).source_image))
    assert pictures_in(out) == ["100.png", "101.png", "103.png"]
    (failure,) = lines(out / "failures.jsonl")
    assert (failure["name"], failure["reason"]) == ("102", "the file of blueprints has none for it")
    said = capsys.readouterr().out
    assert "note: 1 samples have no blueprint in the file and fail: 102" in said
    assert run_of(out)["designer"] == "file" and run_of(out)["notes"]
    write_lines(file, [*told, {"id": "102", "prompt": "a blueprint of no form"}])  # it may come later
    assert main(*words) == 0 and len(pictures_in(out)) == 4
    assert "1 samples have a blueprint without any of its five sections: 102" in capsys.readouterr().out


def test_the_plan_of_a_blueprint_has_its_text_and_sections():
    item = sample(4)
    plan = written_blueprints.Written(true_blueprint(item)).design(torch.zeros(1, 8, 8, 3), " paint\nit ")
    assert (plan.raw, plan.text, plan.designer) == ("paint it", true_blueprint(item), "file")
    assert plan.sections == true_sections(item.instruction, item.source, item.target)


def test_gedits_blueprints_are_found_by_key_in_their_language(published, tmp_path):
    table = gedit_table(published)
    told = [{"id": n, "key": f"{n:032x}", "instruction_language": language, "prompt": f"{language} {n}"}
            for n in range(6) for language in ("en", "cn")]
    file = write_lines(tmp_path / "blueprints.jsonl", told)
    samples, _ = benchmarks.gedit(saved(tmp_path / "data", table), language="en", model="mini")
    found = written_blueprints.with_blueprints(samples, written_blueprints.read_blueprints(file, "en"))
    assert [each.blueprint for each in found] == ["en 0", "en 1", "en 3", "en 4"]


def test_prompts_that_are_blueprints_need_no_other_file(imgedit, tmp_path, capsys):
    told = [{"id": str(n), "image_path": f"singleturn/animal/{n:06d}.png", "prompt": true_blueprint(sample(n))}
            for n in range(2)]
    assert main(*imgedit_words(write_lines(imgedit / "cot.jsonl", told), tmp_path / "out")) == 0
    assert "2 prompts of" in capsys.readouterr().out
    plan = Plan(sample(1).instruction, true_blueprint(sample(1)), "file")
    wanted = painted(sample(1).instruction, sample(1).source_image, plan)
    assert np.array_equal(pixels(tmp_path / "out" / "1.png"), wanted)


@pytest.mark.parametrize(("told", "word"), [
    ([{"id": "100", "prompt": "a"}, {"id": "100", "prompt": "b"}], "row 1 has another blueprint for 100 than a row"),
    ([{"id": "100", "text": "a"}], "row 0 must have an id (or key) and a prompt, got id, text"),
])
def test_a_file_of_blueprints_that_contradicts_itself_is_refused(imgedit, tmp_path, capsys, told, word):
    file = write_lines(tmp_path / "blueprints.jsonl", told)
    assert main(*imgedit_words(imgedit, tmp_path / "out", "--blueprints", file)) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "out").exists()


# Failures ------------------------------------------------------------------------------------------------------------


def test_a_sample_that_fails_is_written_down_and_the_others_are_painted(imgedit, tmp_path, capsys):
    broken, gone = (imgedit / "singleturn" / "animal" / f"{n:06d}.png" for n in (0, 2))
    contents = [path.read_bytes() for path in (broken, gone)]
    broken.write_bytes(contents[0][:300])
    gone.unlink()
    said = json.loads((imgedit / "basic_edit.json").read_text())
    (imgedit / "basic_edit.json").write_text(json.dumps({**said, "103": {**said["103"], "prompt": " "}}))
    assert main(*imgedit_words(imgedit, tmp_path / "out")) == 1
    told = {line["name"]: line for line in lines(tmp_path / "out" / "failures.jsonl")}
    assert "the picture cannot be read as a picture: image file is truncated" in told["100"]["reason"]
    assert told["102"]["reason"] == f"the picture: there is no file {imgedit / 'animal/000002.png'}"
    assert told["103"]["reason"].startswith("the instruction is empty")
    assert pictures_in(tmp_path / "out") == ["101.png"]
    assert run_of(tmp_path / "out")["counts"] == {"samples": 4, "painted": 1, "failed": 3}
    assert "1 of 4 samples are painted" in capsys.readouterr().out
    for path, content in zip((broken, gone), contents, strict=True):
        path.write_bytes(content)
    assert main(*imgedit_words(imgedit, tmp_path / "out")) == 1  # 103 alone
    assert pictures_in(tmp_path / "out") == ["100.png", "101.png", "102.png"]
    assert [(line["name"], line["attempt"]) for line in lines(tmp_path / "out" / "failures.jsonl")][3:] == [("103", 2)]


class Sick:
    """The mini's painter, to which something happens at its second picture."""

    def __init__(self, painter, happens: BaseException):
        self.painter, self.accepts, self.happens, self.calls = painter, painter.accepts, happens, 0

    def paint(self, *arguments, **options):
        self.calls += 1
        if self.calls == 2:
            raise self.happens
        return self.painter.paint(*arguments, **options)


def fall_ill(monkeypatch, happens: BaseException) -> None:
    system = once("mini")
    monkeypatch.setattr(generate, "load_system", lambda _: replace(system, painter=Sick(system.painter, happens)))


@pytest.mark.parametrize("happens", [torch.OutOfMemoryError("not enough"), AskFailed("not enough")])
def test_what_happens_to_one_picture_is_its_own_failure(imgedit, tmp_path, monkeypatch, happens):
    fall_ill(monkeypatch, happens)
    assert main(*imgedit_words(imgedit, tmp_path)) == 1
    assert [line["reason"] for line in lines(tmp_path / "failures.jsonl")] == ["not enough"]
    assert {"100.png", "102.png", "103.png"} <= set(pictures_in(tmp_path)) and not (tmp_path / "101.png").exists()


def test_an_endpoint_that_answers_nobody_stops_the_run(imgedit, tmp_path, monkeypatch, capsys):
    fall_ill(monkeypatch, EndpointUnusable("wrong key"))
    assert main(*imgedit_words(imgedit, tmp_path / "out")) == 2
    assert "generate: error: wrong key" in capsys.readouterr().err and pictures_in(tmp_path / "out") == ["100.png"]
    assert lines(tmp_path / "out" / "failures.jsonl") == []


def test_ctrl_c_keeps_what_was_painted(imgedit, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    fall_ill(monkeypatch, KeyboardInterrupt())
    assert main(*imgedit_words(imgedit, out)) == 130
    assert "the same command goes on from there" in capsys.readouterr().err and pictures_in(out) == ["100.png"]
    monkeypatch.setattr(generate, "load_system", once)
    assert main(*imgedit_words(imgedit, out)) == 0 and len(pictures_in(out)) == 4


@pytest.mark.parametrize(("entry", "word"), [
    ({"../100": {}}, "key names a file and must be plain, without slashes or a dot in front, got '../100'"),
    ({"100": "a.png"}, "must be {key: {id, prompt, edit_type}}, but '100' is 'a.png'"),
    ([], "must be a JSON object, got list"),
])
def test_a_benchmark_of_another_form_is_refused(tmp_path, capsys, entry, word):
    (tmp_path / "basic_edit.json").write_text(json.dumps(entry))
    assert main(*imgedit_words(tmp_path, tmp_path / "out")) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "word"), [
    (["--set", "stepz=3"], "there is no setting 'stepz'; did you mean steps"),
    (["--set", "steps=many"], "steps takes an int, got 'many'"),
    (["--set", "seed=3"], "--set takes neither seed nor mask, got 'seed=3'"),
    (["--data", "nowhere"], "there is no nowhere/basic_edit.json; give the folder"),
    (["--system", "minnie"], "unknown system 'minnie'"),
])
def test_a_wrong_command_ends_with_a_sentence(imgedit, tmp_path, capsys, more, word):
    assert main(*imgedit_words(imgedit, tmp_path / "out", *more)) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_key_that_is_there_twice_is_painted_once(imgedit, tmp_path, capsys):
    told = [{"id": "a", "image_path": "singleturn/animal/000000.png", "prompt": sample(n).instruction} for n in (0, 1)]
    assert main(*imgedit_words(write_lines(imgedit / "twice.jsonl", told), tmp_path / "out")) == 0
    assert "1 samples have the key of another, the first is a; only the first of each" in capsys.readouterr().out
    assert np.array_equal(pixels(tmp_path / "out" / "a.png"), painted(sample(0).instruction, sample(0).source_image))


# Going on ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(imgedit, tmp_path):
    """A run's folder after two pictures."""
    assert main(*imgedit_words(imgedit, tmp_path / "out", "--n", 2)) == 0
    return tmp_path / "out"


def state(folder: Path) -> dict:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.png")}


def test_what_is_whole_stays_and_what_is_torn_is_painted_again(imgedit, begun):
    before, seconds = state(begun), run_of(begun)["seconds"]
    data = before["101.png"][1]
    for cut in (0, 7, 40, len(data) // 2, len(data) - 13):
        (begun / "101.png").write_bytes(data[:cut])
        (begun / ".101.png.1234.part").write_bytes(data[:cut])  # of a run that was killed
        assert main(*imgedit_words(imgedit, begun, "--n", 2)) == 0
        after = state(begun)
        assert after["100.png"] == before["100.png"] and after["101.png"][1] == data, cut
        assert pictures_in(begun) == ["100.png", "101.png"]
    assert run_of(begun)["seconds"] > seconds


@pytest.mark.parametrize(("more", "word"), [
    (["--seed", 4], "seed was 0 and is 4"), (["--set", "strength=0.5"], "settings.strength was 0.85 and is 0.5"),
    (["--blueprints", "some.jsonl"], "designer was 'SelfMLLM' and is 'file'"),
    (["--data", "others.jsonl"], "samples was "),
])
def test_a_folder_of_another_run_is_refused(imgedit, begun, tmp_path, monkeypatch, capsys, more, word):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "some.jsonl", [{"id": "100", "prompt": "x"}])
    write_lines(tmp_path / "others.jsonl", [{"id": "100", "image_path": "x", "prompt": "x"}])
    before = state(begun)
    assert main(*imgedit_words(imgedit, begun, *more)) == 2
    error = capsys.readouterr().err
    assert f"holds a run that was begun otherwise: {word}" in error and "choose another --out, or go on with" in error
    assert error.count(" was ") == 2 and state(begun) == before


def test_another_designer_of_the_same_class_is_another_run(imgedit, tmp_path, monkeypatch, capsys):
    system, out = once("mini"), tmp_path / "asked"
    for identity, code in (("model a", 0), ("model b", 2)):
        designer = copy.copy(system.designer)
        designer.identity = identity
        monkeypatch.setattr(generate, "load_system", lambda _, own=designer: replace(system, designer=own))
        assert main(*imgedit_words(imgedit, out, "--n", 1)) == code
    assert "designer was 'SelfMLLM " in capsys.readouterr().err


def test_other_weights_are_another_run(imgedit, begun, monkeypatch, capsys):
    system = once("mini")
    told = {**system.provenance, "unet.safetensors": {**system.provenance["unet.safetensors"], "seed": 77}}
    monkeypatch.setattr(generate, "load_system", lambda _: replace(system, provenance=told))
    assert main(*imgedit_words(imgedit, begun)) == 2
    assert "provenance.unet.safetensors.seed was " in capsys.readouterr().err


def test_another_blueprint_of_a_sample_is_another_run(imgedit, tmp_path, capsys):
    file, out = tmp_path / "blueprints.jsonl", tmp_path / "out"
    for text, code in (("one", 0), ("one", 0), ("two", 2)):
        write_lines(file, [{"id": "100", "prompt": text}])
        assert main(*imgedit_words(imgedit, out, "--n", 1, "--blueprints", file)) == code
    assert "begun otherwise: the blueprint of 100 is another; choose" in capsys.readouterr().err


def test_pictures_from_elsewhere_are_not_taken_for_ours(imgedit, tmp_path, capsys):
    shutil.copy(imgedit / "singleturn" / "animal" / "000000.png", tmp_path / "101.png")
    assert main(*imgedit_words(imgedit, tmp_path)) == 2
    assert "has 101.png, and no run.json that tells how it was painted" in capsys.readouterr().err
    assert not (tmp_path / "failures.jsonl").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no advisory locks")
def test_two_runs_into_one_folder_are_refused(imgedit, begun, capsys):
    first = Journal(begun / "failures.jsonl")
    assert main(*imgedit_words(imgedit, begun)) == 2
    assert "another process is writing" in capsys.readouterr().err and len(pictures_in(begun)) == 2
    first.close()
    assert main(*imgedit_words(imgedit, begun)) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_run_goes_on_and_ends_as_one_that_was_left_alone(published, root, tmp_path):
    data = saved(tmp_path / "data", gedit_table(published, count=12))
    words = ["--benchmark", "gedit", "--data", data, "--system", "mini", "--set", "steps=6", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "",
                   "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "train.generate", *map(str, words), str(tmp_path / "killed")]
    child = subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list(tmp_path.glob("killed/mini/fullset/*/en/*.png"))) < 3:
        time.sleep(0.002)
    time.sleep(0.1)  # somewhere in the next picture
    child.kill()
    assert child.wait() == -signal.SIGKILL, "the run ended before it was killed; give it more pictures"
    before = state(tmp_path / "killed")
    assert 3 <= len(before) < 16 and run_of(tmp_path / "killed")["finished"] is None
    assert main(*words, tmp_path / "killed") == 0 and main(*words, tmp_path / "whole") == 0
    ended, whole = state(tmp_path / "killed"), state(tmp_path / "whole")
    assert pictures_in(tmp_path / "killed") == pictures_in(tmp_path / "whole") and len(whole) == 16
    assert {name: data for name, (_, data) in ended.items()} == {name: data for name, (_, data) in whole.items()}
    kept = [name for name in before if not name.startswith(".") and ended[name] == before[name]]
    assert len(kept) >= len(before) - 2  # at most a source without its result was written again
    assert run_of(tmp_path / "killed")["counts"] == run_of(tmp_path / "whole")["counts"]


def test_docstring_examples_hold():
    results = doctest.testmod(painted_run)
    assert results.attempted and not results.failed
