"""LLaVA-OneVision folders as published: 0.5B, 7B and 72B by shapes, shards, both key layouts, what a load costs."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from itertools import islice

import pytest
import torch
import transformers
from safetensors.torch import save_file

from mindedit_core.backbones import hf_weights, llava_loading
from mindedit_core.backbones.hf_weights import TEXT_HEAD, empty_model, load_weights
from mindedit_core.backbones.llava_loading import FAMILY
from mindedit_core.checkpoint import CheckpointError, load_tensors, read_shapes
from mindedit_core.systems.tiny import tiny_parts as make_tiny_parts

SHARD_BYTES = 5 * 10**9  # save_pretrained's at the time these were published
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
SIGLIP = {**VISION, "image_size": 384, "patch_size": 14, "vision_use_head": False}
SIZES = {  # text tower (hidden, MLP, layers, heads, key-value heads, vocabulary), tied, shards, parameters in billions
    "0.5b": ((896, 4864, 24, 14, 2, 152000), True, 1, 0.89),
    "7b": ((3584, 18944, 28, 28, 4, 152128), False, 4, 8.03),
    "72b": ((8192, 29568, 80, 64, 8, 152128), False, 31, 73.2),
}


def config_of(text, vision, tied):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text_config = transformers.Qwen2Config(**dict(zip((*names, "vocab_size"), text, strict=True)))
    text_config.tie_word_embeddings = tied
    return transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**vision), text_config=text_config, tie_word_embeddings=tied
    )


def as_published(key: str) -> str:
    """The key under which the model's own `key` lies in the published files."""
    if key == TEXT_HEAD:
        return "language_model.lm_head.weight"
    key = key.replace("model.language_model.", "language_model.model.", 1).removeprefix("model.")
    if key.startswith("vision_tower.") and "vision_model." not in key:
        key = key.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return key


def as_saved_by_5(key: str) -> str:
    """The key that transformers 5 itself has in memory."""
    return key.replace("vision_tower.vision_model.", "vision_tower.", 1)


def sharded(sizes: dict[str, int], most: int = SHARD_BYTES) -> list[list[str]]:
    """Keys of each shard, filled in order up to `most` bytes, as save_pretrained does."""
    shards, filled = [[]], 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards, filled = [*shards, []], 0
        shards[-1].append(key)
        filled += size
    return shards


def shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def write_index(folder, shards) -> None:
    if len(shards) > 1:
        names = {key: shard_name(n, len(shards)) for n, keys in enumerate(shards) for key in keys}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


# Full size, without its bytes ----------------------------------------------------------------------------------------


def write_hollow(folder, config) -> dict:
    """A folder of the published layout and full size in fp16 whose files are holes: zeros that no disk holds."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    own = empty_model(config, FAMILY.model).state_dict()
    tied = config.tie_word_embeddings
    shapes = {as_published(key): list(x.shape) for key, x in own.items() if not (tied and key == TEXT_HEAD)}
    shards = sharded({key: 2 * math.prod(shape) for key, shape in shapes.items()})
    for number, keys in enumerate(shards):
        hollow_file(folder / shard_name(number, len(shards)), {key: shapes[key] for key in keys})
    write_index(folder, shards)
    return shapes


def hollow_file(path, shapes) -> None:
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture
def hollow(tmp_path):
    """`hollow(name)`: the folder of a published size, gone after the test."""
    folders = []

    def write(name):
        text, tied, _, _ = SIZES[name]
        folders.append(tmp_path / name)
        write_hollow(folders[-1], config_of(text, SIGLIP, tied))
        return folders[-1]

    yield write
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            file.unlink()


@pytest.mark.parametrize("name", SIZES)
def test_every_key_of_a_published_size_finds_its_place(hollow, name, caplog):
    """Loaded for real, in the dtype of the files: every parameter has its shape, and nothing is left over."""
    text, tied, shards, billions = SIZES[name]
    folder = hollow(name)
    assert len(list(folder.glob("*.safetensors"))) == shards
    with caplog.at_level(logging.WARNING):
        model = load_weights(folder, torch.float16, FAMILY)
    assert not caplog.records
    parameters = dict(model.named_parameters())
    assert not any(x.is_meta for x in [*parameters.values(), *model.buffers()])
    assert {x.dtype for x in parameters.values()} == {torch.float16}
    assert sum(x.numel() for x in parameters.values()) / 1e9 == pytest.approx(billions, abs=0.05)
    assert len(read_shapes(folder)) == len(parameters)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    layers, heads = text[2], text[3:5]
    attention = model.get_submodule("model.language_model").layers[layers - 1].self_attn
    assert attention.k_proj.weight.shape == (text[0] // heads[0] * heads[1], text[0])


COST = """
import re, sys, torch
from pathlib import Path
from mindedit_core.backbones.hf_weights import load_weights
from mindedit_core.backbones.llava_loading import FAMILY
def held(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024
load_weights(Path(sys.argv[1]), getattr(torch, sys.argv[3]), FAMILY)  # once: what the libraries' first use costs
before, all_before = held("RssAnon"), held("VmRSS")
model = load_weights(Path(sys.argv[2]), getattr(torch, sys.argv[3]), FAMILY)
torch.stack([parameter.flatten()[::1024].sum() for parameter in model.parameters()])  # every page of every weight
sys.stdout.write(f"{held('RssAnon') - before} {held('VmHWM') - all_before}")
"""


def cost(small, folder, dtype) -> tuple[int, int]:
    """Bytes beyond what the process had: its own memory after a load, and all its pages at the highest."""
    command = [sys.executable, "-c", COST, str(small), str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    own, peak = map(int, done.stdout.split())
    return own, peak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(("dtype", "times"), [("bfloat16", 0), ("float32", 2)])
def test_a_load_costs_the_weights_once(like_7b, tmp_path, dtype, times, capsys):
    """As they are stored: nothing of its own, the files are mapped. In another dtype: that, and the files' pages."""
    small = write_like_7b(tmp_path / "small", hidden=56)
    size = sum(file.stat().st_size for file in like_7b.glob("*.safetensors"))
    own, peak = cost(small, like_7b, dtype)
    with capsys.disabled():
        sys.stdout.write(f"\n{size / 1e6:.0f} MB of bf16 as {dtype}: {own / 1e6:.0f} MB, {peak / 1e6:.0f} MB at most ")
    assert own < (times + 0.25) * size
    assert peak < (times + 1.35) * size


# A small model of the 7B's structure ---------------------------------------------------------------------------------


def write_like_7b(folder, hidden=448, tied=False, rename=as_published, most=20 * 10**6):
    """28 layers, 28 heads on 4 key-value heads, an untied head; random weights in bf16."""
    text = (hidden, 5 * hidden, 28, 28, 4, 4096)
    vision = {**SIGLIP, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = config_of(text, {**vision, "image_size": 28}, tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlavaOnevisionForConditionalGeneration(config).to(torch.bfloat16)
    tensors = {rename(key): x for key, x in model.state_dict().items() if not (tied and key == TEXT_HEAD)}
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write_tensors(folder, tensors, most)
    return folder


def write_tensors(folder, tensors, most) -> None:
    shards = sharded({key: x.numel() * x.element_size() for key, x in tensors.items()}, most)
    for number, keys in enumerate(shards):
        content = {key: tensors[key].contiguous() for key in keys}
        save_file(content, folder / shard_name(number, len(shards)), {"format": "pt"})
    write_index(folder, shards)


@pytest.fixture(scope="module")
def like_7b(tmp_path_factory):
    folder = write_like_7b(tmp_path_factory.mktemp("like-7b"))
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.mark.parametrize("rename", [as_published, as_saved_by_5], ids=["published", "transformers 5"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_both_key_layouts_give_the_same_weights(tmp_path, rename, tied):
    folder = write_like_7b(tmp_path / "llava", hidden=56, tied=tied, rename=rename, most=200_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    model, stored = load_weights(folder, torch.bfloat16, FAMILY), load_tensors(folder)
    own = model.state_dict()
    assert len(stored) == len(own) - tied
    for key, tensor in own.items():
        if not (tied and key == TEXT_HEAD):
            assert torch.equal(tensor, stored[rename(key)]), key
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_it_computes_what_transformers_own_loading_computes(tmp_path):
    """Logits bit for bit, buffers that no file holds (rotary frequencies, positions) among them."""
    folder = write_like_7b(tmp_path / "llava", hidden=56)
    ours = load_weights(folder, torch.float32, FAMILY)
    theirs = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
        tower = [model.model.vision_tower for model in (ours, theirs)]
        picture = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
        assert torch.equal(*(each(picture).last_hidden_state for each in tower))
    buffers = dict(theirs.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())
    assert ours.config._attn_implementation == theirs.config._attn_implementation


def test_a_tie_that_only_the_text_config_names_is_kept(tmp_path):
    """Some files of 0.5B have no text head and say so in text_config alone."""
    folder = write_like_7b(tmp_path / "llava", hidden=56, tied=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    model = load_weights(folder, torch.bfloat16, FAMILY)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_an_untied_head_that_is_not_there_is_named(tmp_path):
    folder = write_like_7b(tmp_path / "llava", hidden=56, most=10**9)
    tensors = {key: x for key, x in load_tensors(folder).items() if "lm_head" not in key}
    write_tensors(folder, tensors, 10**9)
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's weights.*lm_head\.weight; fetch"):
        load_weights(folder, torch.bfloat16, FAMILY)


def test_weights_of_another_size_are_named(tmp_path):
    folder = write_like_7b(tmp_path / "llava", hidden=56)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lacks 84 of the model's weights, or has them in another size.*mlp"):
        load_weights(folder, torch.bfloat16, FAMILY)


def test_weights_of_no_place_are_said_and_old_buffers_are_not(tmp_path, caplog):
    folder = write_like_7b(tmp_path / "llava", hidden=56, most=10**9)
    extra = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1),
        "value_head.weight": torch.zeros(1),
    }
    write_tensors(folder, load_tensors(folder) | extra, 10**9)
    with caplog.at_level(logging.WARNING):
        load_weights(folder, torch.bfloat16, FAMILY)
    (record,) = caplog.records
    assert "1 weights belong to nothing in the model, first: value_head.weight" in record.getMessage()


def test_loading_draws_no_random_number_and_changes_no_default(tmp_path):
    folder = write_like_7b(tmp_path / "llava", hidden=56)
    state, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    load_weights(folder, torch.float16, FAMILY)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_default_dtype() == dtype
    assert torch.empty(1).device.type == "cpu"


def test_writing_into_mapped_weights_leaves_the_file_alone(tmp_path):
    """A LoRA is merged in place; the file is mapped privately."""
    folder = write_like_7b(tmp_path / "llava", hidden=56, most=10**9)
    content = (folder / "model.safetensors").read_bytes()
    model = load_weights(folder, torch.bfloat16, FAMILY)
    for parameter in islice(model.parameters(), 3):
        parameter.data.zero_()
    assert (folder / "model.safetensors").read_bytes() == content
    assert not any(parameter.any() for parameter in islice(model.parameters(), 3))


# Configs as they were published --------------------------------------------------------------------------------------


def test_a_config_of_the_first_publication_is_read(tmp_path):
    """Before `image_token_id` and `dtype` had their names; single-image (`-si`) models differ in weights alone."""
    parts = make_tiny_parts()
    folder = tmp_path / "llava-onevision-tiny-si-hf"
    parts["mllm"].save_pretrained(folder)
    parts["tokenizer"].save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = config.pop("image_token_id", None) or config["image_token_index"]
    config["torch_dtype"] = config.pop("dtype", None) or "float32"
    config |= {"use_image_newline_parameter": True, "transformers_version": "4.45.0.dev0"}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = llava_loading.load_folder(folder)
    assert loaded.model.config.image_token_id == parts["mllm"].config.image_token_id
    assert torch.equal(loaded.model.lm_head.weight, parts["mllm"].lm_head.weight)


def test_weights_keep_the_layout_in_memory_of_this_version(tmp_path):
    model = load_weights(write_like_7b(tmp_path / "llava", hidden=56), torch.bfloat16, FAMILY)
    expected = hf_weights.build_model(model.config.to_dict(), FAMILY).state_dict()
    assert model.state_dict().keys() == expected.keys()
