"""Saving, reading, and what is said when a file is not what it should be."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from mindedit_core.checkpoint import (
    CheckpointError,
    is_pickle,
    load_strict,
    load_tensors,
    read_metadata,
    save_checkpoint,
    weight_files,
)
from mindedit_core.kinds import detect
from mindedit_core.model_files import build_model, load_model, require_mini, save_model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture
def file(tmp_path, generator):
    tensors = {"a.weight": torch.randn(3, 4, generator=generator), "b.bias": torch.arange(5)}
    return save_checkpoint(tmp_path / "deep" / "file.safetensors", tensors, {"component": "test", "config": {"d": 4}})


# Writing and reading -------------------------------------------------------------------------------------------------


def test_what_is_saved_is_read_back(file):
    assert read_metadata(file) == {"format": 1, "component": "test", "config": {"d": 4}}
    tensors = load_tensors(file)
    assert torch.equal(tensors["a.weight"], torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert tensors["b.bias"].dtype == torch.int64
    assert list(load_tensors(file, prefix="a.")) == ["weight"]


def test_dtype_is_for_floating_tensors_and_overflow_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "x.safetensors", {"w": torch.ones(2), "i": torch.arange(2)}, {}, torch.float16)
    assert {key: t.dtype for key, t in load_tensors(path).items()} == {"w": torch.float16, "i": torch.int64}
    with pytest.raises(ValueError, match="w has values up to 1e.05, which torch.float16 cannot hold"):
        save_checkpoint(tmp_path / "x.safetensors", {"w": torch.tensor([1e5])}, {}, torch.float16)
    assert torch.equal(load_tensors(path)["w"], torch.ones(2, dtype=torch.float16))  # the old file stands


def test_views_and_transposes_are_saved_by_value(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    path = save_checkpoint(tmp_path / "x.safetensors", {"t": base.T, "row": base[1]}, {})
    assert torch.equal(load_tensors(path)["t"], base.T) and torch.equal(load_tensors(path)["row"], base[1])


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    path = save_checkpoint(tmp_path / "tied.safetensors", Tied().state_dict(), {})
    assert len(load_tensors(path)) == 1
    module = load_strict(Tied(), load_tensors(path), "tied")
    assert module.head.weight is module.embed.weight
    assert torch.equal(module.embed.weight.data, next(iter(load_tensors(path).values())))


def test_a_killed_writer_leaves_the_old_file_whole(file):
    before = file.read_bytes()
    code = (
        "import os, sys, torch, mindedit_core.checkpoint as c\n"
        "c.os.replace = lambda *a: os._exit(9)\n"
        "c.save_checkpoint(sys.argv[1], {'a': torch.zeros(9)}, {})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert done.returncode == 9 and file.read_bytes() == before


def test_a_failed_write_leaves_no_part_behind(file):
    with pytest.raises(TypeError):
        save_checkpoint(file, {"a": torch.zeros(1)}, {"score": object()})
    with pytest.raises(ValueError):
        save_checkpoint(file, {"a": torch.tensor([1e30])}, {}, torch.float16)
    assert os.listdir(file.parent) == ["file.safetensors"]


def test_a_file_of_somebody_else_has_empty_metadata(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert read_metadata(tmp_path / "x.safetensors") == {}
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors", metadata={"mindedit": "{oops"})
    with pytest.raises(CheckpointError, match="unreadable metadata under 'mindedit'"):
        read_metadata(tmp_path / "y.safetensors")


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 40, 0.5, -1])
@pytest.mark.parametrize("read", [read_metadata, load_tensors, detect])
def test_a_truncated_file_is_named_with_its_size(file, keep, read):
    content = file.read_bytes()
    cut = content[: int(len(content) * keep)] if isinstance(keep, float) else content[:keep]
    file.write_bytes(cut)
    with pytest.raises(
        CheckpointError, match=rf"file.safetensors \({len(cut)} bytes\) is not a complete safetensors.*agai"
    ):
        read(file)


def test_a_pickle_is_not_read(tmp_path):
    """By its content, whatever it is called; the message says which command makes it readable."""
    for name, out, zipped in (("x.bin", "x", True), ("x.safetensors", "x-converted", True), ("old.pt", "old", False)):
        torch.save({"a": torch.zeros(1)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        command = f"mindedit convert {tmp_path / name} {tmp_path / out}.safetensors`"
        with pytest.raises(CheckpointError, match=f"{name} is a pickle, which can run code .*{re.escape(command)}"):
            load_tensors(tmp_path / name)


@pytest.mark.parametrize("length", [0x0280, 0x4B50], ids=["as a pickle", "as a zip archive"])
def test_a_safetensors_file_that_begins_like_a_pickle_is_read(tmp_path, length):
    """Its first two bytes are those of its header's length."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    content = length.to_bytes(8, "little") + header + torch.arange(2.0).numpy().tobytes()
    (tmp_path / "a.safetensors").write_bytes(content)
    assert not is_pickle(tmp_path / "a.safetensors")
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["a"], torch.arange(2.0))


def test_what_cannot_be_opened_is_no_pickle(tmp_path):
    assert not is_pickle(tmp_path) and not is_pickle(tmp_path / "nowhere.bin")


def test_a_folder_of_pickles_says_what_to_convert(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle.*mindedit convert .*pytorch_model.bin"):
        load_tensors(tmp_path)


def test_a_missing_file_says_where_it_goes(tmp_path):
    with pytest.raises(CheckpointError, match="no weights at .*nothing.safetensors: neither file nor folder; put"):
        load_tensors(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="no weights file at .*nothing.safetensors; put it there"):
        read_metadata(tmp_path / "nothing.safetensors")


# Folders of shards ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_shards_are_read_together(shards):
    assert set(load_tensors(shards)) == {"a", "b"}


def test_a_missing_shard_is_named(shards):
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="lacks 1 of 2 shards named in model.*json, first: model-00002.*fetch them"
    ):
        load_tensors(shards)


def test_the_usual_name_wins_over_its_variants(tmp_path):
    for name in ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "diffusion_pytorch_model.non_ema"):
        save_checkpoint(tmp_path / f"{name}.safetensors", {name: torch.zeros(1)}, {})
    assert list(load_tensors(tmp_path)) == ["diffusion_pytorch_model"]


def test_a_broken_index_is_named(shards):
    (shards / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="index.json is not a weight index"):
        weight_files(shards)


def test_a_folder_without_safetensors_says_what_is_in_it(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="found pytorch_model.bin. Fetch .*mindedit convert"):
        load_tensors(tmp_path)


# Into a module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bias"), "checkpoint x lacks 1 of 2 keys, first: bias; was it made for another model"),
        (lambda t: t.update(extra=torch.zeros(1)), "checkpoint x has 1 keys too many, first: extra"),
        (
            lambda t: t.update(weight=torch.zeros(2, 9)),
            "weight is .2, 9., needed .2, 3.; it belongs to a model of anoth",
        ),
    ],
)
def test_load_strict_accounts_for_every_key(change, message):
    tensors = dict(nn.Linear(3, 2).state_dict())
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_strict(nn.Linear(3, 2), tensors, "x")


def test_load_strict_casts_to_the_module(generator):
    tensors = {key: value.half() for key, value in nn.Linear(3, 2).state_dict().items()}
    module = load_strict(nn.Linear(3, 2), tensors, "x")
    assert module.weight.dtype == torch.float32 and torch.equal(module.weight.data, tensors["weight"].float())


# Models that describe themselves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "autoencoder", "unet", "unet_inpaint"])
def test_a_model_survives_its_file(tiny_parts, tiny_folder, name):
    model = load_model(tiny_folder / f"{name}.safetensors")
    original = tiny_parts[name].state_dict()
    assert type(model) is type(tiny_parts[name]) and not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, original[key].half().float() if value.is_floating_point() else original[key])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_saving_what_was_loaded_gives_the_same_file(tiny_folder, tmp_path):
    path = tiny_folder / "unet.safetensors"
    said = {key: value for key, value in read_metadata(path).items() if key in ("recipe", "seed", "steps", "data")}
    again = save_model(tmp_path / "unet.safetensors", "unet", load_model(path), said)
    assert again.read_bytes() == path.read_bytes()


def test_loading_does_not_disturb_the_global_generator(tiny_folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(tiny_folder / "autoencoder.safetensors")
    assert torch.equal(torch.rand(3), expected)


def test_a_file_cannot_choose_what_code_runs():
    with pytest.raises(ValueError, match="unknown model class 'os.system'; have AutoencoderDC"):
        build_model({"class": "os.system", "config": {}}, "evil.safetensors")
    with pytest.raises(CheckpointError, match="old.safetensors does not say what it is .metadata has nothing"):
        build_model({}, "old.safetensors")


def test_a_mini_with_missing_files_names_them(tiny_folder, tmp_path):
    assert require_mini(tiny_folder) == tiny_folder
    (tmp_path / "unet.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="8 files, .* lacks mllm.safetensors, mind_.*tokenizer.json; fetc"):
        require_mini(tmp_path)
