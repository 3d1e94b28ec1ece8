"""The adapter file: read, checked, merged, taken off."""

import copy

import pytest
import torch

from mindedit_core.backbones import adapter_files, lora
from mindedit_core.backbones.vision_head import VisionHead
from mindedit_core.checkpoint import CheckpointError, save_checkpoint
from mindedit_core.contracts import Misfit
from mindedit_core.systems.tiny import tiny_mind_edit

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def model(tiny_parts):
    return copy.deepcopy(tiny_parts["mllm"])


@pytest.fixture
def adapter(model):
    return tiny_mind_edit(model)


@pytest.fixture
def path(adapter, tmp_path):
    return adapter_files.save_adapter(
        tmp_path / "mind_edit.safetensors", adapter.pairs, adapter.head, adapter.config, recipe="test"
    )


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def fit(adapter, model, hidden_size=36, num_layers=2):
    lora.require_match(adapter, model, hidden_size, num_layers)


def test_a_merge_equals_peft_s_own(model, generator):
    peft = pytest.importorskip("peft")
    from train.lora import pairs_of

    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    pairs = pairs_of(wrapped.base_model.model)
    assert len(pairs) == 2 * len(TARGETS) and all(pair.rank == 3 for pair in pairs.values())
    lora.merge(model, pairs)
    for key, value in wrapped.merge_and_unload().state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, atol=1e-6, rtol=1e-5)


def test_unmerging_gives_the_weights_back_bit_for_bit(model, adapter):
    before = weights(model)
    originals = lora.merge(model, adapter.pairs)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert sorted(changed) == sorted(f"{module}.weight" for module in adapter.pairs)
    lora.unmerge(model, originals)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_sum_is_fp32_and_cast_once(model, adapter):
    module, pair = next(iter(adapter.pairs.items()))
    half = copy.deepcopy(model).half()
    expected = half.get_submodule(module).weight.float() + pair.alpha / pair.rank * (pair.up @ pair.down)
    lora.merge(half, adapter.pairs)
    assert torch.equal(half.get_submodule(module).weight, expected.half())


@pytest.mark.parametrize("strength", [0.0, 0.5, -2.0])
def test_strength_scales_what_is_added(model, adapter, strength):
    before = weights(model)
    originals = lora.merge(model, adapter.pairs, strength=strength)
    for module, pair in adapter.pairs.items():
        expected = before[f"{module}.weight"] + strength * pair.delta()
        torch.testing.assert_close(model.get_submodule(module).weight, expected, atol=1e-6, rtol=1e-6)
    if strength == 0.0:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    lora.unmerge(model, originals)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_read_from_an_fp16_file_merge_as_a_host_that_keeps_fp16(model, adapter):
    half = copy.deepcopy(model).half()
    single = copy.deepcopy(half).float()
    lora.merge(half, adapter.pairs)
    lora.merge(single, adapter.pairs, stored=torch.float16)
    assert all(torch.equal(value.float(), single.state_dict()[key]) for key, value in half.state_dict().items())


def test_a_saved_adapter_reads_back_the_same(adapter, path):
    read = adapter_files.read_adapter(path)
    assert set(read.pairs) == set(adapter.pairs) and read.layer == 1 and read.clip_space == "tiny-clip"
    for module, pair in adapter.pairs.items():
        assert torch.equal(read.pairs[module].down, pair.down) and torch.equal(read.pairs[module].up, pair.up)
        assert read.pairs[module].alpha == pair.alpha
    for key, value in adapter.head.state_dict().items():
        assert torch.equal(read.head.state_dict()[key], value)
    assert read.provenance["recipe"] == "test" and read.digest == adapter.digest and not read.head.training


def test_the_key_map_names_a_parameter_of_the_model_for_every_lora(model, adapter):
    keys = lora.weight_keys(adapter)
    assert len(keys) == len(adapter.pairs) and set(keys.values()) <= set(model.state_dict())
    assert all(key == f"lora.{weight.removesuffix('.weight')}" for key, weight in keys.items())


def test_an_adapter_without_a_head_has_none(adapter, tmp_path):
    path = adapter_files.save_adapter(tmp_path / "a.safetensors", adapter.pairs, None, adapter.config)
    assert adapter_files.read_adapter(path).head is None


def test_another_mllm_is_refused_by_its_dimensions(model, adapter):
    with pytest.raises(
        Misfit, match="trained for tiny with hidden_size 36 and 2 layers; this MLLM has hidden_size 896"
    ):
        fit(adapter, model, hidden_size=896, num_layers=24)


def test_a_layer_the_mllm_does_not_have_is_refused(model, adapter):
    wrong = lora.Adapter("w", {**adapter.config, "layer": 3}, adapter.pairs, adapter.head)
    with pytest.raises(Misfit, match=r"reads layer 3, this MLLM has layers 1\.\.2"):
        fit(wrong, model)


def test_a_module_that_is_absent_or_of_another_size_is_refused(model, adapter):
    pair = next(iter(adapter.pairs.values()))
    for module, said in [("model.nowhere", "does not have"), ("model.language_model.layers.0.mlp.up_proj", "of size")]:
        with pytest.raises(Misfit, match=said):
            fit(lora.Adapter("w", adapter.config, {module: pair}), model)


def test_a_head_that_contradicts_its_metadata_is_refused(model, adapter):
    with pytest.raises(Misfit, match="VisionHead from 36 to 7"):
        fit(lora.Adapter("w", adapter.config, adapter.pairs, VisionHead(36, 7)), model)


def test_files_that_are_no_adapter_are_refused(adapter, path, tmp_path):
    with pytest.raises(CheckpointError, match="no weights"):
        adapter_files.read_adapter(tmp_path / "nowhere.safetensors")
    other = save_checkpoint(tmp_path / "unet.safetensors", {"conv_in.weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError):
        adapter_files.read_adapter(other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        adapter_files.read_adapter(broken)
    tensors = {"lora.m.lora_A.weight": torch.zeros(2, 3), "lora.m.lora_B.weight": torch.zeros(3, 2)}
    mute = save_checkpoint(tmp_path / "mute.safetensors", tensors, {"component": "mind_edit"})
    with pytest.raises(CheckpointError, match="no hidden_size, num_layers, layer, clip_space"):
        adapter_files.read_adapter(mute)


def test_half_a_pair_is_refused(adapter):
    with pytest.raises(CheckpointError, match=r"lacks lora\.m\.lora_B\.weight"):
        lora.parse_pairs({"m.lora_A.weight": torch.zeros(2, 3)}, "file")
    with pytest.raises(CheckpointError, match="no known form"):
        lora.parse_pairs({"m.lora_C": torch.zeros(2, 3)}, "file")
