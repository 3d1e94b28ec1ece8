"""Encode once: what is kept, what a change touches, and that training does not notice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from mindedit_core.model_files import MINI_FOLDER
from train import mind_edit
from train.clip_target import clip_target
from train.encoding import Cache, Encoder, Part
from train.mind_edit import PRESETS, Student, load_mllm
from train.readers import open_records

pytestmark = pytest.mark.weights
RECORDS = open_records("world", count=6, programs=0.4)
PLAN = replace(PRESETS["mini"], steps=6, batch_size=3, data="world", data_options=("count=10",), held_out=2,
               log_every=1, validate_every=6, precision="no", trackers=(), warm_up=1, save_every=1e9)


class Counter:
    """Encoders that are counted: how often the text, and the picture, was really encoded."""

    def __init__(self, folder, settings="v1"):
        self.made = []
        parts = [Part("text", settings, lambda record: [record.instruction.encode()], self.text),
                 Part("picture", settings, lambda record: [record.source.tobytes()], self.picture)]
        self.encoder = Encoder(parts, folder)

    def text(self, record):
        self.made.append(f"text {record.id}")
        return {"length": torch.tensor([len(record.instruction)])}

    def picture(self, record):
        self.made.append(f"picture {record.id}")
        return {"mean": torch.tensor([float(record.source.mean())])}

    def encode(self, record):
        return self.encoder.fill(record, self.encoder.find(record))


def test_what_was_encoded_is_not_encoded_again(tmp_path):
    first, again = Counter(tmp_path), Counter(tmp_path)
    wanted = [first.encode(RECORDS[row]) for row in range(6)]
    assert len(first.made) == 12
    found = [again.encode(RECORDS[row]) for row in range(6)]
    assert again.made == [] and all(one == other for one, other in zip(wanted, found, strict=True))


def test_a_changed_input_is_encoded_again_and_nothing_else(tmp_path):
    Counter(tmp_path).encode(RECORDS[0])
    other, record = Counter(tmp_path), RECORDS[0]
    picture = record.source.copy()
    picture[0, 0, 0] ^= 1
    other.encode(replace(record, source=picture))
    assert other.made == [f"picture {record.id}"]
    other.encode(replace(record, instruction="something else"))
    assert other.made[1:] == [f"text {record.id}"]
    other.encode(record)
    assert len(other.made) == 2  # the first ones are still there


def test_another_model_or_setting_encodes_everything_again(tmp_path):
    Counter(tmp_path).encode(RECORDS[0])
    other = Counter(tmp_path, settings="v2")
    other.encode(RECORDS[0])
    assert len(other.made) == 2


def test_a_torn_file_is_made_again(tmp_path):
    first = Counter(tmp_path)
    wanted = first.encode(RECORDS[0])
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    again = Counter(tmp_path)
    assert again.encode(RECORDS[0]) == wanted and len(again.made) == 2
    assert Cache(tmp_path).get("text-0") is None and Cache(None).get("text-0") is None


@pytest.fixture(scope="module")
def student():
    return Student(load_mllm(PLAN), clip_target("mini", PLAN, None), PLAN)


def test_a_record_is_encoded_as_the_models_see_it(student):
    """Against the models' own batched path, and against the tokens of a `training_batch`."""
    record = RECORDS[1]
    sample = student.encoder.fill(record, {})
    whole = student.mllm.training_batch(record.source[None], record.instruction, [mind_edit.answer(record)])
    prompt, answer = sample["prompt"].tolist(), sample["answer"].tolist()
    assert whole["input_ids"][0].tolist() == prompt + answer
    features = student.mllm.image_features(whole["pixel_values"])[0]
    torch.testing.assert_close(sample["features"], features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample["target"], student.target(record.target[None])[0])
    batch = student.mllm.token_batch([prompt], [answer], [sample["features"]])
    with torch.no_grad():
        ours, theirs = student.mllm.answer_pass(batch, 5), student.mllm.answer_pass(whole, 5)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.mask, theirs.mask) and torch.equal(ours.targets, theirs.targets)


def test_a_picture_that_is_not_square_takes_its_own_number_of_tokens(student):
    picture = np.zeros((1, 100, 180, 3), np.uint8)
    features = student.mllm.picture_features(picture)
    assert len(features) == student.mllm.image_tokens(picture) != student.mllm.image_tokens(picture[:, :, :100])


def test_a_target_of_any_size_is_brought_to_that_of_clip(student):
    picture = RECORDS[0].target
    large = picture.repeat(2, 0).repeat(2, 1)[None]
    alike = torch.nn.functional.cosine_similarity(student.target(large), student.target(picture[None])).item()
    assert alike > 0.95 and torch.equal(student.target(picture[None]), student.target(picture[None].copy()))


def test_a_retrained_tower_encodes_its_pictures_again_and_nothing_else(student):
    def keys(pupil):
        return {name: part.key(RECORDS[0]) for name, part in pupil.encoder.parts.items()}

    mllm = load_mllm(PLAN)
    with torch.no_grad():
        next(mllm.model.model.vision_tower.parameters()).add_(1)
    other = keys(Student(mllm, clip_target("mini", PLAN, None), PLAN))
    own = keys(student)
    assert own == keys(Student(load_mllm(PLAN), clip_target("mini", PLAN, None), PLAN))
    assert [name for name in own if own[name] != other[name]] == ["picture"]


def losses_of(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("text", "insight")} for line in lines if "text" in line]


def test_training_with_and_without_a_cache_gives_the_same_losses_to_the_bit(tmp_path, monkeypatch):
    """Two epochs in fp32: the second one comes from the disk."""
    curves = {}
    for name, cache in (("without", None), ("with", tmp_path / "cache")):
        AcceleratorState._reset_state(reset_partial_state=True)
        runs = tmp_path / name
        config = replace(PLAN, runs=runs, out=runs / "mind_edit.safetensors", cache=cache, weights=MINI_FOLDER)
        monkeypatch.setattr(mind_edit, "mini_system", lambda *_: None)
        mind_edit.train_one(config)
        curves[name] = losses_of(runs / "mind_edit")
    assert curves["with"] == curves["without"] and len(curves["with"]) == 6
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3 * 10
