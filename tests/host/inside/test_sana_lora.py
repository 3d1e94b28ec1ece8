"""LoRA on SANA: diffusers' and peft's keys, the sum that peft computes, what matches nothing is said."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mindedit_core.contracts import Misfit
from mindedit_core.hosts import comfy_mini
from mindedit_core.hosts.comfy_sana_lora import key_map, with_lora
from mindedit_core.systems.tiny import LATENT_CHANNELS
from mindedit_core.systems.tiny_dim import tiny_dim_parts

from .test_sana import hosted

MODULES = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_v", "transformer_blocks.1.attn1.to_out.0")
RANK = 3


@pytest.fixture(scope="module")
def parts():
    return tiny_dim_parts()


@pytest.fixture
def model(parts):
    return hosted(parts)[0]


def pairs():
    generator = torch.Generator().manual_seed(2)
    return {name: (torch.randn(RANK, 224, generator=generator), torch.randn(224, RANK, generator=generator))
            for name in MODULES}


def written(path, form, more=None):
    tensors = {}
    for name, (down, up) in pairs().items():
        tensors |= {form.format(name) + ".lora_A.weight": down, form.format(name) + ".lora_B.weight": up}
    save_file(tensors | (more or {}), path)
    return str(path)


def output(model, strength_of_patches=True):
    """Velocity of the MODEL's transformer with its patches merged."""
    model.patch_model(device_to=torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 32, 8, 8, generator=generator)
    tokens = torch.randn(1, 7, 40, generator=generator)
    try:
        return model.model.diffusion_model(x, torch.tensor([500.0]), tokens).clone()
    finally:
        model.unpatch_model(device_to=torch.device("cpu"))


@pytest.mark.parametrize("form", ["transformer.{}", "base_model.model.{}", "{}", "diffusion_model.{}"])
def test_every_way_of_writing_keys_gives_the_sum(parts, model, tmp_path, form):
    patched, strange = with_lora(model, written(tmp_path / "lora.safetensors", form), 0.5)
    assert strange == []
    merged = {name: part for name, part in tiny_dim_parts().items()}
    for name, (down, up) in pairs().items():
        weight = merged["transformer"].get_submodule(name).weight
        weight.add_(0.5 * up @ down)
    expected = output(hosted(merged)[0])
    torch.testing.assert_close(output(patched), expected, atol=1e-5, rtol=1e-5)


def test_the_model_itself_is_left_alone(model, tmp_path):
    before = output(model)
    patched, _ = with_lora(model, written(tmp_path / "lora.safetensors", "transformer.{}"), 1.0)
    assert (output(patched) - before).abs().max() > 1e-3
    assert torch.equal(output(model), before)


def test_keys_that_match_nothing_are_named(model, tmp_path):
    more = {"transformer.transformer_blocks.9.attn1.to_q.lora_A.weight": torch.zeros(RANK, 224)}
    _, strange = with_lora(model, written(tmp_path / "lora.safetensors", "transformer.{}", more), 1.0)
    assert strange == list(more)


def test_keys_of_another_width_are_named_too(model, tmp_path):
    """As of SANA-0.6B on 1.6B: every name is there, and the host would skip the pair with a line in its log."""
    wide = "transformer.transformer_blocks.0.attn2.to_k"
    more = {f"{wide}.lora_A.weight": torch.zeros(RANK, 112), f"{wide}.lora_B.weight": torch.zeros(224, RANK)}
    more["transformer.proj_out.diff"] = torch.zeros(LATENT_CHANNELS, 112)
    patched, strange = with_lora(model, written(tmp_path / "lora.safetensors", "transformer.{}", more), 1.0)
    assert set(strange) == set(more) and len(patched.patches) == len(MODULES)


def test_a_lora_of_nothing_but_another_width_is_refused(model, tmp_path):
    name = f"transformer.{MODULES[0]}"
    tensors = {f"{name}.lora_A.weight": torch.zeros(RANK, 112), f"{name}.lora_B.weight": torch.zeros(112, RANK)}
    save_file(tensors, tmp_path / "narrow.safetensors")
    with pytest.raises(Misfit, match="none matches in name and size"):
        with_lora(model, str(tmp_path / "narrow.safetensors"), 1.0)


def test_convolutions_and_added_weights_fit(model, tmp_path):
    conv = "transformer.transformer_blocks.0.ff.conv_depth"
    width = len(model.model.state_dict()[f"diffusion_model.{conv}.weight"])
    tensors = {f"{conv}.lora_A.weight": torch.ones(RANK, 1, 3, 3)}
    tensors[f"{conv}.lora_B.weight"] = torch.ones(width, RANK, 1, 1)
    tensors["transformer.proj_out.diff"] = torch.ones(LATENT_CHANNELS, 224)
    save_file(tensors, tmp_path / "conv.safetensors")
    patched, strange = with_lora(model, str(tmp_path / "conv.safetensors"), 1.0)
    assert strange == [] and len(patched.patches) == 2
    assert (output(patched) - output(model)).abs().max() > 1e-3


def test_a_lora_for_another_model_is_refused(model, tmp_path):
    save_file({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "sd.safetensors")
    with pytest.raises(Misfit, match="has nothing for this SANA"):
        with_lora(model, str(tmp_path / "sd.safetensors"), 1.0)


def test_another_model_is_refused(tmp_path):
    with pytest.raises(Misfit, match="Load LoRA"):
        with_lora(comfy_mini.load_mini("img2img").model, "unused", 1.0)


def test_every_matrix_can_be_reached(model):
    assert {"transformer.proj_out", "proj_out", "lora_transformer_proj_out"} <= set(key_map(model))
