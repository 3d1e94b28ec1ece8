"""Draw-In-Mind's recipes: states, widening, dropout, three stages on a tiny world, and full size's path in tiny."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from mindedit_core.backbones.mini_tokenizer import save_tokenizer
from mindedit_core.backbones.qwen2_5_vl import Qwen25VL
from mindedit_core.backbones.qwen_mini import qwen_mini_config
from mindedit_core.checkpoint import read_metadata
from mindedit_core.losses import flow_loss
from mindedit_core.model_files import save_model
from mindedit_core.scenes import sample
from mindedit_core.scenes.blueprint import true_blueprint
from mindedit_core.systems.dim_files import load_dim
from mindedit_core.systems.tiny_dim import tiny_dim_parts, tiny_sana
from train import dim, dim_mllm, dim_records, dim_states, dim_talk, dim_tower, dim_world, latents
from train.dim_student import Student, connected, from_sana, widened
from train.words import qwen_tokenizer

TINY = {"hidden_size": 48, "intermediate_size": 64, "heads": 3, "text_layers": 5, "vision_layers": 1}


@pytest.fixture(autouse=True)
def a_new_process():
    """accelerate keeps one state a process; every test is a launch of its own, and so is what comes after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a random tiny MLLM that speaks the world's words."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(qwen_mini_config(qwen_tokenizer(), **TINY))
    save_model(folder / "mllm.safetensors", "mllm", model, {"recipe": "test", "steps": 0})
    save_tokenizer(qwen_tokenizer(), folder / "tokenizer.json")
    return folder


def parts(channels: int = 16):
    found = tiny_dim_parts(in_channels=channels)
    return connected(found["transformer"], 48, 160).trainable()


def batch(rows: int = 3, length: int = 9) -> dict:
    random = np.random.default_rng(0)
    shape = (rows, 16, 8, 8)
    clean, source = (torch.from_numpy(random.standard_normal(shape, np.float32)) for _ in range(2))
    states = torch.from_numpy(random.standard_normal((rows, length, 48), np.float32))
    mask = torch.arange(length) < torch.tensor([[length], [5], [7]])[:rows]
    return {"clean": clean, "source": source, "states": states, "mask": mask, **dim_world.chances(random, shape, 0.0)}


# The student ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_velocity_at_the_shifted_level():
    student, drawn = Student(parts()), batch()
    sigma = torch.sigmoid(drawn["level"])
    sigma = 3 * sigma / (1 + 2 * sigma)
    share, clean, noise = sigma[:, None, None, None], drawn["clean"], drawn["noise"]
    said = student.transformer(
        (1 - share) * clean + share * noise, encoder_hidden_states=student.projector(drawn["states"]),
        timestep=(sigma * 1000).floor(), encoder_attention_mask=drawn["mask"].float()).sample
    torch.testing.assert_close(student(drawn)["flow"], ((said - (noise - clean)) ** 2).mean())
    assert flow_loss(noise - clean, clean, noise) == 0


def test_whoever_is_dropped_hears_the_null_tokens():
    student, drawn = Student(parts()), batch()
    drawn["dropped"] = torch.tensor([True, False, True])
    tokens = student.tokens(drawn)
    assert torch.equal(tokens[0], student.null_tokens[:9]) and torch.equal(tokens[2], student.null_tokens[:9])
    assert torch.equal(tokens[1], student.projector(drawn["states"])[1])


def test_levels_are_normal_and_as_many_are_dropped_as_was_asked():
    drawn = dim_world.chances(np.random.default_rng(0), (4000, 2, 2, 2), 0.1)
    assert abs(drawn["level"].mean().item()) < 0.05 and abs(drawn["level"].std().item() - 1) < 0.05
    assert abs(drawn["noise"].std().item() - 1) < 0.05
    assert 0.08 < drawn["dropped"].float().mean().item() < 0.12
    assert not dim_world.chances(np.random.default_rng(0), (400, 1, 1, 1), 0.0)["dropped"].any()


def test_every_part_learns():
    student, drawn = Student(parts(32)), batch()
    drawn["dropped"] = torch.tensor([True, False, False])
    student(drawn)["flow"].backward()
    still = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_the_quick_attention_gives_the_same_numbers():
    quick = Student(parts(32))
    plain = copy.deepcopy(quick)
    from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0

    for block in plain.transformer.transformer_blocks:
        block.attn2.set_processor(SanaAttnProcessor2_0())
    torch.testing.assert_close(quick(batch())["flow"], plain(batch())["flow"])


@pytest.mark.parametrize("zero_init", [True, False])
def test_a_widened_painter_keeps_what_it_knew(zero_init):
    narrow = tiny_sana(16)
    wide = widened(narrow, zero_init)
    x, source = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    told = {"encoder_hidden_states": torch.randn(2, 5, 40), "timestep": torch.tensor([500, 20])}
    blind = wide(torch.cat([x, torch.zeros_like(source)], 1), **told).sample
    torch.testing.assert_close(blind, narrow(x, **told).sample)
    seeing = wide(torch.cat([x, source], 1), **told).sample
    assert torch.equal(seeing, blind) == zero_init


# States --------------------------------------------------------------------------------------------------------------


def test_the_readers_of_a_stage_serve_the_next(weights, tmp_path):
    from mindedit_core.model_files import load_model

    first, second, third = (dim_mllm.Student(load_model(weights / "mllm.safetensors")) for _ in range(3))
    first.keep_readers(tmp_path / "readers.pt")
    second.know_readers(tmp_path / "readers.pt")
    third.know_readers(tmp_path / "no such file")
    for name in ("reader", "change_reader"):
        kept, known, new = (getattr(student, name).state_dict() for student in (first, second, third))
        assert all(torch.equal(kept[key], known[key]) for key in kept)
        assert any(not torch.equal(kept[key], new[key]) for key in kept)


def test_cached_states_are_those_of_the_backbone(weights, tmp_path):
    items = [sample(number) for number in range(3)]
    mllm = Qwen25VL.from_folder(weights)
    images = [torch.from_numpy(item.source_image.copy())[None].float() / 255 for item in items]
    edits = [mllm.turn(mllm.read(image), true_blueprint(item)).hidden[0]
             for image, item in zip(images, items, strict=True)]
    captions = [mllm.turn(mllm.read(None), item.target_caption).hidden[0] for item in items]
    world = copy.deepcopy(mllm.model)
    world.model.language_model.config._attn_implementation = "eager"
    dim_tower.see_together(world.model.visual)
    for stage, expected in (("edit2", edits), ("t2i", captions)):
        turns = [dim_world.turn_of(stage, item) for item in items]
        kept = dim_states.cached(tmp_path, stage, world, 3, turns.__getitem__)
        assert len(kept) == 3
        for number, row in enumerate(expected):  # kept in half precision, computed under autocast
            assert (kept[number].float() - row).abs().mean() < 0.05 * row.abs().mean()
        exact = dim_states.turn_states(world, turns)
        assert all(torch.allclose(found, row, atol=1e-4) for found, row in zip(exact, expected, strict=True))


def test_rows_are_padded_under_a_mask():
    states, mask = dim_states.padded([torch.ones(2, 4), torch.ones(5, 4)])
    assert states.shape == (2, 5, 4) and mask.sum(1).tolist() == [2, 5]
    assert not states[0, 2:].any()


# The mini ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(weights, tmp_path):
    return replace(dim.MINI, steps=2, batch_size=4, count=6, weights=weights, runs=tmp_path / "runs", trackers=(),
                   precision="no", autoencoder=weights / "autoencoder.safetensors")


@pytest.fixture
def tiny_world(monkeypatch, weights):
    """A narrow painter, and few pictures to validate on."""
    save_model(weights / "autoencoder.safetensors", "autoencoder", tiny_dim_parts()["autoencoder"], {"recipe": "test"})
    monkeypatch.setattr(dim, "mini_parts", lambda hidden_size: connected(tiny_sana(16), hidden_size, 320))
    monkeypatch.setattr(dim_world, "VALIDATION", 4)
    monkeypatch.setattr(latents, "CHUNK", 6)


def trained(config, monkeypatch) -> None:
    monkeypatch.setattr(dim, "read_config", lambda *_: config)
    dim.main()


def test_three_stages_follow_each_other(config, tiny_world, monkeypatch, weights):
    for stage, file in dim.FILES.items():
        trained(replace(config, stage=stage), monkeypatch)
        said = read_metadata(weights / f"{file}.safetensors")
        assert said["steps"] == 2 and {"success", "rmse"} <= set(said["score"])
    first, last = (load_dim(weights / f"{dim.FILES[stage]}.safetensors").transformer for stage in ("t2i", "edit2"))
    assert (first.config.in_channels, last.config.in_channels) == (16, 32)


def test_a_stage_goes_on_as_often_as_it_is_asked_to(config, tiny_world, monkeypatch, weights):
    file, known = weights / "dim_t2i.safetensors", []
    for number in range(3):
        trained(replace(config, warm=number > 0), monkeypatch)
        assert read_metadata(file)["steps"] == 2 * (number + 1)
        known.append(load_dim(file).transformer.proj_out.weight)
    assert not torch.equal(known[0], known[1]) and not torch.equal(known[1], known[2])


def test_a_run_that_is_resumed_ends_where_it_would_have(config, tiny_world, monkeypatch, tmp_path, weights):
    whole, halves = (replace(config, steps=4, runs=tmp_path / name, decay=0.0) for name in ("whole", "halves"))
    trained(whole, monkeypatch)
    expected = load_dim(weights / "dim_t2i.safetensors").transformer.state_dict()
    from train import loop

    monkeypatch.setattr(loop, "time_to_save", lambda run, _: run.step == 2)
    steps = loop.steps
    monkeypatch.setattr(loop, "steps", lambda run, batch_of: islice(steps(run, batch_of), 2))
    trained(halves, monkeypatch)
    monkeypatch.setattr(loop, "steps", steps)
    trained(halves, monkeypatch)
    found = load_dim(weights / "dim_t2i.safetensors").transformer.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# Full size, in tiny --------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path, weights):
    """Folders in the published layouts: Qwen2.5-VL, SANA1.5, DC-AE, and DIM-Edit with four scenes."""
    found, mllm = tiny_dim_parts(in_channels=16), Qwen25VL.from_folder(weights)
    mllm.model.save_pretrained(tmp_path / "qwen")
    mllm.tokenizer.save_pretrained(tmp_path / "qwen")
    found["autoencoder"].save_pretrained(tmp_path / "dc-ae")
    found["transformer"].save_pretrained(tmp_path / "sana" / "transformer")
    data = tmp_path / "DIM-Edit"
    data.mkdir()
    lines = []
    for number in range(4):
        item = sample(number)
        for role, array in (("source", item.source_image), ("target", item.target_image)):
            Image.fromarray(array).save(data / f"{number}-{role}.png")
        lines.append({"id": str(number), "image_path": f"{number}-source.png", "prompt": true_blueprint(item),
                      "image_path_target": f"{number}-target.png"})
    (data / "tos_dataset_edit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    captions = [{"id": str(number), "image_path": f"{number}-target.png", "prompt": sample(number).target_caption}
                for number in range(4)]
    (data / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    return replace(
        dim.PRESETS["edit2"], steps=2, batch_size=2, accumulate=1, warm_up=0, held_out=1, workers=0, precision="no",
        trackers=(), validate_every=1, runs=tmp_path / "runs", weights=tmp_path / "out", cache=tmp_path / "encoded",
        mllm=tmp_path / "qwen", sana=tmp_path / "sana", autoencoder=tmp_path / "dc-ae", resolution=64, factor=16,
        side=84, data_options=(f"path={data}",))


def test_published_layouts_train_through_the_stages(full, monkeypatch):
    data = full.data_options[0].removeprefix("path=")
    options = (f"path={data}/captions.jsonl", f"images={data}")
    trained(replace(full, stage="t2i", data="dim_t2i", data_options=options), monkeypatch)
    trained(replace(full, stage="edit1"), monkeypatch)
    trained(full, monkeypatch)
    said = read_metadata(full.weights / "dim.safetensors")
    assert said["data"] == "dim_edit, blueprints" and np.isfinite(said["score"]["flow_held_out"])
    parts = load_dim(full.weights / "dim.safetensors")
    assert parts.transformer.config.in_channels == 32 and len(parts.null_tokens) == 8192


def test_with_and_without_a_cache_the_losses_are_the_same(full):
    monkey = from_sana(full.sana, 48).trainable()
    monkey = monkey._replace(transformer=widened(monkey.transformer, False))
    source = dim_records.open_source(full)
    losses = []
    for config in (replace(full, cache=None), full, full):  # the third time it is read from disk
        student = dim_records.FullStudent(copy.deepcopy(monkey), config)
        made = dim_records.batches(config, source, student, 16)(0)
        losses.append(student(made)["flow"].item())
    assert losses[0] == losses[1] == losses[2]
    assert len(list(full.cache.rglob("*.safetensors"))) == 4


def test_a_stage_without_its_text_says_what_to_do(full):
    record = dim_records.open_source(full).rows(0)[0]
    with pytest.raises(ValueError, match="needs a caption"):
        dim_records.text_of(record, "t2i")


# The MLLM's own recipes ----------------------------------------------------------------------------------------------


def test_the_language_model_begins_as_the_minis():
    model = dim_tower.build()
    mini, ours = dim_tower.tokenizer(), qwen_tokenizer()
    from mindedit_core.checkpoint import load_tensors
    from mindedit_core.model_files import MINI_FOLDER

    tensors = load_tensors(MINI_FOLDER / "mllm.safetensors", "model.language_model.")
    word = mini.get_vocab()["Ġcat"]
    place = ours.get_vocab()["Ġcat"]
    assert torch.equal(model.get_input_embeddings().weight[place], tensors["embed_tokens.weight"][word].float())
    key = "layers.3.mlp.up_proj.weight"
    assert torch.equal(model.model.language_model.state_dict()[key], tensors[key].float())


def test_what_is_learnt_of_a_dialogue_is_its_answers():
    asked, labels = dim_talk.encode(("where is the cat", "top left"))
    learnt = [token for token, label in zip(asked, labels, strict=True) if label != -100]
    assert qwen_tokenizer().decode(learnt).strip() == "top left<|im_end|>"


def test_copied_tokens_are_those_of_the_wish():
    """Whatever a token is told to look at is what comes next."""
    from train.data import scenes

    random = np.random.default_rng(0)
    for scene in scenes(0, 0, 8):
        turn = dim_talk.design(scene, random)
        row, _ = dim_talk.encode(turn)
        copied = dim_talk.copied(turn)
        told = {place: source for place, source in enumerate(copied) if source != dim_talk.UNSAID}
        assert len(copied) == len(row) and len(told) == len(dim_talk.ids(turn.question)) - len(dim_talk.ids("design:"))
        assert all(row[place + 1] == row[source] for place, source in told.items())
    assert set(dim_talk.copied(("where is the cat", "top left"))) == {dim_talk.UNSAID}


def test_what_changes_is_recalled_from_the_last_token_before_a_blueprint():
    from train.data import scenes

    turn = dim_talk.design(scenes(0, 0, 1)[0], np.random.default_rng(0))
    (row, labels), recalled, said = dim_talk.encode(turn), dim_talk.recalled(turn), qwen_tokenizer().decode
    first = next(place for place, label in enumerate(labels) if label != dim_talk.IGNORED) - 1
    telling = [place for place, source in enumerate(recalled) if source != dim_talk.UNSAID]
    assert len(recalled) == len(row) and {recalled[place] for place in telling} == {first}
    assert first == dim_talk.before_answer(turn)
    assert said(row[:telling[0] + 1]).endswith("edit area localization:") and telling[-1] == len(row) - 2
    assert said(row[first + 1:]).strip().startswith("1. edit instruction")


def test_a_step_teaches_every_part(weights):
    from mindedit_core.model_files import load_model

    model = load_model(weights / "mllm.safetensors").requires_grad_(True)
    student = dim_mllm.Student(model)
    config = replace(dim_mllm.PRESETS["mini"], batch_size=3, readings=2)
    losses = student(dim_talk.batches(config, model.config)(0))
    assert set(losses) == {"answer", "word", "look", "copy", "recall", "change", "told", "caption"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if "reader.layers" not in name)
