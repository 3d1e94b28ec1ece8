"""One MLLM under several adapters: the host patches the weights that are there, and nothing is read or copied again."""

from __future__ import annotations

import gc
import json
import os
import weakref

import comfy.model_management as mm
import pytest
import torch
from safetensors.torch import save_file
from tiny_llava import write_adapter, write_llava  # tests/host, which conftest.py puts on the path

from mindedit_core.backbones import adapter_files, lora
from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.contracts import Misfit
from mindedit_core.hosts import comfy_folders, comfy_mllm_loading
from mindedit_core.hosts.comfy_mllm_loading import adapted, from_paths, load_mllm

WISH = "make the small red cat big"
NAME, A, B = "llava-tiny", "a.safetensors", "b.safetensors"
TOKENS = 6


@pytest.fixture(scope="module")
def models(tiny_parts, module_models):
    """models/LLM/llava-tiny in bf16 and two adapters in models/mindedit, as a host's only models."""
    with torch.inference_mode(False):
        write_llava(module_models / "LLM" / NAME, tiny_parts)
        for seed, name in enumerate((A, B)):
            write_adapter(module_models / "mindedit" / name, tiny_parts, seed)
    return module_models


@pytest.fixture
def image(generator):
    return torch.rand(1, 90, 160, 3, generator=generator)


def said(mllm, image):
    """Token states and insight of one reading: all that an MLLM gives."""
    plan = mllm.design(image, WISH, max_new_tokens=TOKENS)
    return plan.text, plan.states.hidden, mllm.encode(image, plan).image_embeds


def same(one, two):
    return one[0] == two[0] and torch.equal(one[1], two[1]) and torch.equal(one[2], two[2])


def weights(mllm):
    return {name: value.clone() for name, value in mllm.core.model.state_dict().items()}


# The same weights ----------------------------------------------------------------------------------------------------


def test_another_adapter_is_another_patch_on_the_same_weights(models):
    a, b, bare = load_mllm(NAME, A), load_mllm(NAME, B), load_mllm(NAME, None)
    assert a.core.model is b.core.model is bare.core.model
    assert a.patcher.model is b.patcher.model is bare.patcher.model
    assert len({each.patcher.patches_uuid for each in (a, b, bare)}) == 3
    assert not bare.patcher.patches and not bare.has_head and a.has_head and b.has_head
    assert len({a.name, b.name, bare.name}) == 3


def test_swapping_reads_no_file(models, monkeypatch):
    a = load_mllm(NAME, A)
    monkeypatch.setattr(LlavaOnevision, "from_folder", lambda *_, **__: pytest.fail("the MLLM was read again"))
    b = load_mllm(NAME, B)
    assert adapted(b, A).core.model is a.core.model
    assert load_mllm(NAME, comfy_folders.NO_ADAPTER).core.model is a.core.model


def test_each_says_what_it_says_alone_however_often_they_take_turns(models, image):
    """A, B, A, bare, B: bit for bit what a model of its own says under that adapter."""
    folder, place = models / "LLM" / NAME, models / "mindedit"
    alone = {name: said(from_paths(folder, place / name), image) for name in (A, B)}
    assert not torch.equal(alone[A][1], alone[B][1]) and not torch.equal(alone[A][2], alone[B][2])
    a, b, bare = load_mllm(NAME, A), load_mllm(NAME, B), load_mllm(NAME, None)
    plain = bare.design(image, WISH, max_new_tokens=TOKENS).states.hidden
    for mllm, name in ((a, A), (b, B), (a, A), (b, B)):
        assert same(said(mllm, image), alone[name])
        assert torch.equal(bare.design(image, WISH, max_new_tokens=TOKENS).states.hidden, plain)


def test_taking_turns_leaves_no_trace_in_the_weights(models):
    a, b, bare = load_mllm(NAME, A), load_mllm(NAME, B), load_mllm(NAME, None)
    mm.load_models_gpu([bare.patcher])
    before, places = weights(bare), {name: p.data_ptr() for name, p in bare.core.model.named_parameters()}
    for mllm in (a, b, a):
        mm.load_models_gpu([mllm.patcher])
        changed = {name for name, value in weights(mllm).items() if not torch.equal(value, before[name])}
        assert changed == {f"{module}.weight" for module in mllm.core.adapter.pairs}
    mm.load_models_gpu([bare.patcher])
    assert all(torch.equal(value, before[name]) for name, value in weights(bare).items())
    assert places == {name: p.data_ptr() for name, p in bare.core.model.named_parameters()}, "weights were copied"


def test_states_read_under_one_adapter_are_not_taken_for_the_others(models, image):
    a, b = load_mllm(NAME, A), load_mllm(NAME, B)
    plan = a.design(image, WISH, max_new_tokens=TOKENS)
    under_b = b.encode(image, plan).image_embeds
    assert not torch.equal(under_b, b.core.head(plan.states.hidden, plan.states.mask))
    own = b.encode(image, b.design(image, WISH, max_new_tokens=TOKENS)).image_embeds
    assert under_b.shape == own.shape


def test_an_adapter_takes_the_place_of_another_and_none_takes_it_off(models, image):
    a = load_mllm(NAME, A)
    assert same(said(adapted(a, B), image), said(load_mllm(NAME, B), image))
    assert adapted(a, comfy_folders.NO_ADAPTER) is load_mllm(NAME, None)


def test_an_adapter_of_another_mllm_is_refused_and_changes_nothing(models, tmp_path):
    adapter = adapter_files.read_adapter(models / "mindedit" / A)
    other = {**adapter.config, "hidden_size": 896}
    path = adapter_files.save_adapter(tmp_path / "x.safetensors", adapter.pairs, None, other)
    bare = load_mllm(NAME, None)
    with pytest.raises(Misfit, match="hidden_size 896"):
        bare.with_adapter(path)
    assert not bare.patcher.patches and bare.core.adapter is None


# The sum -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.35, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_patched_weights_equal_the_headless_merge_bit_for_bit(tiny_parts, models, tmp_path, dtype, strength):
    with torch.inference_mode(False):
        folder = write_llava(tmp_path / "llava", tiny_parts, dtype)
    patched = from_paths(folder).with_adapter(models / "mindedit" / A, strength)
    headless = LlavaOnevision.from_folder(folder, dtype)
    headless.attach(models / "mindedit" / A, strength=strength)
    mm.load_models_gpu([patched.patcher])
    ours, theirs = patched.core.model.state_dict(), headless.model.state_dict()
    assert {value.dtype for name, value in ours.items() if name.endswith("q_proj.weight")} == {dtype}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_lora_that_peft_saved_is_patched_in_as_it_is_merged(models, tmp_path, image):
    """adapter_config.json beside adapter_model.safetensors: the text changes, and there is no insight."""
    pairs = adapter_files.read_adapter(models / "mindedit" / A).pairs
    tensors = {f"base_model.model.{module}.lora_A.weight": pair.down for module, pair in pairs.items()}
    tensors |= {f"base_model.model.{module}.lora_B.weight": pair.up for module, pair in pairs.items()}
    path = tmp_path / "adapter_model.safetensors"
    with torch.inference_mode(False):
        save_file(tensors, path)
    path.with_name("adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 5, "use_rslora": True}))
    patched, headless = from_paths(models / "LLM" / NAME, path), from_paths(models / "LLM" / NAME).core.model
    lora.merge(headless, adapter_files.read_adapter(path).pairs)
    mm.load_models_gpu([patched.patcher])
    ours = patched.core.model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in headless.state_dict().items())
    insight = patched.encode(image, patched.design(image, WISH, max_new_tokens=2))
    assert insight.image_embeds is None and "insight is off" in insight.note


def test_strength_zero_is_the_bare_model(models, image):
    off, bare = load_mllm(NAME, A, strength=0.0), load_mllm(NAME, None)
    plans = [mllm.design(image, WISH, max_new_tokens=TOKENS) for mllm in (off, bare)]
    assert torch.equal(plans[0].states.hidden, plans[1].states.hidden)
    assert off.name != load_mllm(NAME, A).name, "states under one strength would be taken for those under another"


# How long ------------------------------------------------------------------------------------------------------------


def test_weights_live_as_long_as_a_view_of_them(models):
    """The table of what is there holds nothing: no view, no weights."""
    a, b = load_mllm(NAME, A), load_mllm(NAME, B)
    mm.load_models_gpu([a.patcher])
    model = weakref.ref(a.core.model)
    del a
    gc.collect()
    assert load_mllm(NAME, None).core.model is b.core.model is model()
    del b
    gc.collect()
    assert model() is None
    assert not [key for key in comfy_mllm_loading.ALIVE if NAME in key[0]]


def test_a_file_that_changed_is_read_anew(models):
    before = load_mllm(NAME, None)
    shard = sorted((models / "LLM" / NAME).glob("*.safetensors"))[0]
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    after = load_mllm(NAME, None)
    assert after.core.model is not before.core.model


def test_another_dtype_is_another_model(models):
    assert load_mllm(NAME, A, "bf16").core.model is not load_mllm(NAME, A, "fp32").core.model
