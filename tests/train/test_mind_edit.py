"""MIND-Edit's recipe: what each variant trains, that its file is what was trained, and where its data come from."""

from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.nn import functional as F

from mindedit_core.backbones.adapter_files import read_adapter
from mindedit_core.checkpoint import read_metadata
from mindedit_core.contracts import Plan
from mindedit_core.model_files import MINI_FOLDER
from train import checkpoints, mind_edit, mind_edit_scores
from train.clip_target import clip_target
from train.config import read_config
from train.examples import Endless, Epochs, answer
from train.loop import total
from train.mind_edit import PRESETS, Student, load_mllm
from train.readers import open_records

pytestmark = pytest.mark.weights
PLAN = replace(PRESETS["mini"], steps=2, batch_size=3, held_out=2, log_every=1, warm_up=1, precision="no", trackers=(),
               data_options=("count=8",))


def student(**changes) -> Student:
    config = replace(PLAN, **changes)
    torch.manual_seed(0)
    return Student(load_mllm(config), clip_target("mini", config, None), config)


def batch() -> dict:
    records = Endless(0, 3, 0, programs=0.34).rows(5)
    return {"records": records, "found": [{}] * 3, "number": 5}


def gradients(pupil: Student) -> dict[str, torch.Tensor]:
    pupil.train()
    total(pupil(batch())).backward()
    return {name: parameter.grad for name, parameter in checkpoints.trained(pupil).items()}


# What is trained -----------------------------------------------------------------------------------------------------


def test_joint_training_moves_the_lora_and_the_head_and_nothing_else():
    moved = gradients(student())
    assert all(name.startswith("head.") or ".lora_" in name for name in moved)
    assert all(gradient is not None for gradient in moved.values())  # two processes would wait for one that is None


@pytest.mark.parametrize(("variant", "losses"), [("text", {"text"}), ("insight", {"insight"})])
def test_a_half_has_its_own_loss_and_trains_what_that_needs(variant, losses):
    pupil = student(variant=variant)
    assert set(pupil(batch())) == losses
    moved = gradients(pupil)
    assert any(name.startswith("head.") for name in moved) == (variant == "insight")
    assert all(gradient is not None for gradient in moved.values())
    layers = {name.split("layers.")[1].split(".")[0] for name in moved if "layers." in name}
    assert max(map(int, layers)) == (4 if variant == "insight" else 5)  # above layer m nothing foresees


def test_the_independent_insight_reads_the_wish_alone():
    pupil = student(variant="insight")
    out, _ = pupil.read(batch())
    assert out.mask.sum(1).tolist() == [1, 1, 1]  # the state of the last prompt token


def test_activations_that_are_computed_again_give_the_same_gradients():
    plain, again = gradients(student()), gradients(student(checkpoint_activations=True))
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], again[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("together", [1, 2])
def test_answers_read_by_length_give_the_gradients_of_one_pass(together):
    whole, parts = gradients(student(together=None)), gradients(student(together=together))
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=1e-4)


def test_a_text_alone_asks_nothing_of_the_target():
    pupil = student(variant="text")
    assert set(pupil.encoder.parts) == {"picture", "tokens"}
    assert pupil.read(batch())[1] is None


def test_every_record_weighs_the_same_however_long_its_answer():
    pupil = student()
    whole = pupil(batch())["text"]
    each = [pupil({"records": [record], "found": [{}]})["text"] for record in batch()["records"]]
    torch.testing.assert_close(whole, torch.stack(each).mean(), atol=1e-5, rtol=1e-5)


# What is saved -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both independent halves of two steps each, by the command line, and a joint one."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"steps": 2, "batch_size": 3, "held_out": 2, "trackers": "", "runs": folder, "data_options": "count=8",
                "out": folder / "mind_edit.safetensors", "log_every": 1}
    for variant in ("joint", "independent"):
        said = {**settings, "variant": variant}
        words = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["mind_edit", *words])
            patch.setattr(AcceleratorState, "_shared_state", {})
            mind_edit.main()
    return folder


def test_one_flag_trains_both_independent_halves(trained):
    names = {"mind_edit.safetensors", "mind_edit-text.safetensors", "mind_edit-insight.safetensors"}
    assert names <= {path.name for path in trained.iterdir()}
    joint, text, insight = (read_adapter(trained / name) for name in sorted(names, key=len))
    assert joint.head and insight.head and text.head is None
    assert [adapter.config["variant"] for adapter in (joint, text, insight)] == ["joint", "text", "insight"]


def test_the_file_says_what_it_is_for_and_its_settings_lie_beside_it(trained):
    metadata = read_metadata(trained / "mind_edit.safetensors")
    assert {"mllm", "layer", "clip_space", "rank", "prompt"} <= set(metadata["config"])
    assert metadata["recipe"] == "train.mind_edit" and "exact" in metadata["score"] and metadata["steps"] == 2
    config = read_config(PRESETS, "", ["--config", str(trained / "mind_edit.config.json")])
    assert config.steps == 2 and config.data_options == ("count=8",)


@pytest.mark.parametrize("variant", ["joint", "text", "insight"])
def test_a_second_stage_goes_on_from_its_file_wherever_that_lies(variant, trained, tmp_path, monkeypatch):
    """Its steps are counted on, and its checkpoints are its own."""
    name = "mind_edit.safetensors" if variant == "joint" else f"mind_edit-{variant}.safetensors"
    out = tmp_path / "elsewhere.safetensors"
    out.write_bytes((trained / name).read_bytes())
    monkeypatch.setattr(mind_edit, "mini_system", lambda *_: None)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    mind_edit.train_one(replace(PLAN, variant=variant, out=out, runs=tmp_path, warm=True))
    assert read_metadata(out)["steps"] == 4
    assert (tmp_path / "elsewhere-after-2" / "log.jsonl").exists()


def test_the_saved_adapter_gives_what_the_trained_student_gave(trained):
    """fp16 lies between them."""
    pupil = student(runs=trained, out=trained / "mind_edit.safetensors")
    pupil.go_on_from(read_adapter(trained / "mind_edit.safetensors"))
    loaded = load_mllm(PLAN)
    loaded.attach(trained / "mind_edit.safetensors")
    record = open_records("world", count=1, first=9)[0]
    with torch.no_grad():
        out, _ = pupil.read({"records": [record], "found": [{}]})
        ours = pupil.head(out.states, out.mask)
    plan = Plan(record.instruction, record.optimized, sections={"answer": answer(record)})
    image = torch.from_numpy(record.source)[None].float() / 255
    theirs = loaded.encode(image, plan).image_embeds
    assert F.cosine_similarity(ours, theirs).item() > 0.9999


def test_what_is_being_trained_writes_and_paints_as_it_will_be_used():
    pupil = student(weights=MINI_FOLDER)
    records = Endless(0, 2, 2).held_out
    shown = mind_edit_scores.painted(mind_edit_scores.mini_system(pupil, pupil.config), records)["painted"]
    assert shown.shape == (3 * 128, 2 * 128, 3)
    assert torch.equal(shown[:128, :128], torch.from_numpy(records[0].source).float() / 255)
    assert mind_edit_scores.mini_system(student(variant="text"), PLAN) is None  # no insight to paint with


# What it learns from -------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_record_once_and_the_next_in_another_order():
    data = Epochs(open_records("world", count=12), seed=3, batch_size=5, held_out=2)
    ids = [record.id for number in range(4) for record in data.rows(number)]
    first, second = ids[:10], ids[10:]
    held = {record.id for record in data.held_out}
    assert set(first) == set(second) and first != second and len(set(first)) == 10 and not held & set(first)
    assert [record.id for record in data.rows(2)] == ids[10:15]  # a function of the number alone


def test_more_held_out_than_there_is_is_refused():
    with pytest.raises(ValueError, match="hold out fewer"):
        Epochs(open_records("world", count=4), 0, 2, held_out=4)


def test_a_record_without_t_opt_is_refused_with_the_way_to_get_one():
    record = replace(open_records("world", count=1)[0], optimized=None)
    with pytest.raises(ValueError, match="train.build_t_opt"):
        answer(record)


def test_scores_count_exact_texts_and_overlapping_masks():
    records = Endless(0, 2, 3).held_out
    assert mind_edit_scores.overlap(records[0].regions, records[0]) == 1.0
    assert mind_edit_scores.overlap((), records[0]) == 0.0
    kinds = mind_edit_scores.by_kind([1.0, 0.0, 1.0], records)
    assert kinds == {record.kind: value for record, value in zip(records, [1.0, 0.0, 1.0], strict=True)}
