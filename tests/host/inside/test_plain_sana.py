"""SANA1.5 as published for text-to-image: stock CLIP Text Encode, our MODEL and VAE, diffusers' pipeline's latents."""

from __future__ import annotations

import json
import shutil

import comfy.latent_formats
import comfy.sample
import folder_paths
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, SanaPipeline
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2Model

import nodes
from mindedit_core.checkpoint import CheckpointError, save_checkpoint
from mindedit_core.contracts import Insight, Misfit
from mindedit_core.hosts import comfy_flow, comfy_painters, comfy_sana
from mindedit_core.hosts.comfy_managed import stored_in, unmanaged
from mindedit_core.hosts.comfy_sana_text import SanaText
from mindedit_core.model_files import config_of
from mindedit_core.systems.tiny import LATENT_CHANNELS
from mindedit_core.systems.tiny_dim import TOKEN_DIM, tiny_dim_parts

from .test_painters import models  # noqa: F401

TEXT, NEGATIVE = "A Big red cat , the tree", "blue"


@pytest.fixture
def pipeline(models):  # noqa: F811
    """A diffusers folder of a tiny SANA under models/diffusers, and the pipeline that it is."""
    parts = tiny_dim_parts(in_channels=LATENT_CHANNELS)
    tokenizer = parts["tokenizer"]
    tokenizer.padding_side = "right"
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=TOKEN_DIM, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=20, pad_token_id=0, query_pre_attn_scalar=20,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="dpmsolver++"
    )
    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        encoder = Gemma2Model(config).eval()
        for name, parameter in encoder.named_parameters():
            if "norm" in name:
                parameter.normal_()
        found = SanaPipeline(tokenizer, encoder, parts["autoencoder"], parts["transformer"], scheduler)
        found.save_pretrained(models / "diffusers" / "sana")
    return found


@pytest.fixture
def alone(pipeline, models):  # noqa: F811
    """The same transformer as `mindedit convert sana` writes it, and no longer in the pipeline's folder."""
    said = {"component": "sana", "class": "SanaTransformer2DModel", "config": config_of(pipeline.transformer)}
    save_checkpoint(models / "diffusion_models" / "sana.safetensors", pipeline.transformer.state_dict(), said)
    shutil.rmtree(models / "diffusers" / "sana" / "transformer")
    return models


def painted(model, clip, vae):
    """Scaled latents of the host's own nodes around our parts."""
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (TEXT, NEGATIVE))
    latent = torch.zeros(1, LATENT_CHANNELS, 8, 8)
    found = comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(latent, 5), 4.5, comfy_flow.flow_sampler(), comfy_flow.flow_sigmas(model, 4),
        positive, negative, latent,
    )  # fmt: skip
    return found * vae.scaling_factor


def by_diffusers(pipeline):
    return pipeline(
        TEXT, NEGATIVE, num_inference_steps=4, guidance_scale=4.5, height=128, width=128, output_type="latent",
        generator=torch.Generator().manual_seed(5), complex_human_instruction=None, use_resolution_binning=False,
        clean_caption=False,
    ).images  # fmt: skip


def test_latents_are_those_of_diffusers_pipeline(pipeline):
    loaded = comfy_painters.load_painter("sana/transformer")
    torch.testing.assert_close(painted(*loaded), by_diffusers(pipeline), atol=1e-4, rtol=1e-4)


# In half precision ---------------------------------------------------------------------------------------------------


class Widened(TorchDispatchMode):
    """Shapes of the fp32 tensors in memory that are made under it."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float32 and not found.is_meta:
            self.shapes.add(tuple(found.shape))
        return found


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_never_widened_and_computed_in_fp32(pipeline, models, stored):  # noqa: F811
    with torch.inference_mode(False):
        for name in ("transformer", "text_encoder"):
            stored_in(getattr(pipeline, name), stored).save_pretrained(models / "diffusers" / "sana" / name)
    with Widened() as widened:
        model, clip, vae = comfy_painters.load_painter("sana/transformer")
    own = [*model.model.diffusion_model.parameters(), *clip.patcher.model.parameters()]
    assert {parameter.dtype for parameter in own} == {stored}
    matrices = {tuple(parameter.shape) for parameter in own if parameter.ndim > 1}
    matrices -= {tuple(parameter.shape) for parameter in vae.first_stage_model.parameters()}
    assert len(matrices) > 10 and not matrices & widened.shapes
    pipeline.transformer.float()
    pipeline.text_encoder.float()
    torch.testing.assert_close(painted(model, clip, vae), by_diffusers(pipeline), atol=1e-4, rtol=1e-4)


# A transformer alone -------------------------------------------------------------------------------------------------


def test_a_converted_file_takes_its_other_parts_from_a_folder(pipeline, alone):
    assert "sana.safetensors" in comfy_painters.list_painters()
    loaded = comfy_painters.load_painter("sana.safetensors")
    torch.testing.assert_close(painted(*loaded), by_diffusers(pipeline), atol=1e-4, rtol=1e-4)


def test_a_bare_transformer_folder_does_too(pipeline, alone):
    with torch.inference_mode(False):
        pipeline.transformer.save_pretrained(alone / "diffusers" / "bare")
    assert "bare" in comfy_painters.list_painters()
    loaded = comfy_painters.load_painter("bare")
    torch.testing.assert_close(painted(*loaded), by_diffusers(pipeline), atol=1e-4, rtol=1e-4)


def test_without_one_the_clip_says_what_to_put_where(alone):
    shutil.rmtree(alone / "diffusers" / "sana" / "text_encoder")
    model, clip, _ = comfy_painters.load_painter("sana.safetensors")
    with pytest.raises(Misfit, match=f"Gemma-2 of width {TOKEN_DIM}.*put text_encoder and tokenizer .* into {alone}"):
        nodes.CLIPTextEncode().encode(clip, TEXT)
    with pytest.raises(Misfit, match="clip of the Painter Loader"):
        comfy_sana.conditioning(comfy_sana.painter_of(model), Insight(torch.zeros(1, 2, 48), torch.ones(1, 2).bool()))


def test_a_text_encoder_of_another_width_is_not_its_own(alone):
    config = alone / "diffusers" / "sana" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 8}))
    assert isinstance(comfy_painters.load_painter("sana.safetensors").clip, comfy_sana.NoTextEncoder)


def test_a_text_encoder_that_comes_later_is_found(alone):
    folder = alone / "diffusers" / "sana" / "text_encoder"
    folder.rename(alone / "apart")
    before = comfy_painters.fingerprint("sana.safetensors", comfy_painters.OWN)
    (alone / "apart").rename(folder)
    assert comfy_painters.fingerprint("sana.safetensors", comfy_painters.OWN) != before
    assert isinstance(comfy_painters.load_painter("sana.safetensors").clip, SanaText)


def test_without_an_autoencoder_the_error_says_what_to_fetch(alone):
    shutil.rmtree(alone / "diffusers" / "sana" / "vae")
    with pytest.raises(CheckpointError, match="fetch mit-han-lab/dc-ae"):
        comfy_painters.load_painter("sana.safetensors")
    assert comfy_painters.load_painter("sana.safetensors", "dc-ae").vae.latent_channels == LATENT_CHANNELS


def test_a_file_without_sizes_is_refused(pipeline, models):  # noqa: F811
    shutil.copyfile(models / "diffusers" / "sana" / "transformer" / "diffusion_pytorch_model.safetensors",
                    models / "diffusion_models" / "bare.safetensors")
    folder_paths.filename_list_cache.clear()
    with pytest.raises(CheckpointError, match="does not say its sizes"):
        comfy_painters.load_painter("bare.safetensors")


# Sizes ---------------------------------------------------------------------------------------------------------------


def test_the_loader_says_which_size_an_empty_latent_needs(pipeline, monkeypatch):
    model, _, _ = comfy_painters.load_painter("sana/transformer")
    format = model.get_model_object("latent_format")
    assert format.spacial_downscale_ratio == 16  # newer hosts fit an empty latent to it
    is_newer = hasattr(comfy.latent_formats.LatentFormat, "spacial_downscale_ratio")
    if not is_newer:
        assert "Empty Latent Image of 64x64" in comfy_painters.describe(model)
        (latent,) = nodes.EmptyLatentImage().generate(64, 64)
        assert comfy.sample.fix_empty_latent_channels(model, latent["samples"]).shape == (1, LATENT_CHANNELS, 8, 8)
    monkeypatch.setattr(comfy.latent_formats.LatentFormat, "spacial_downscale_ratio", 8, raising=False)
    assert "Empty Latent Image of 128x128" in comfy_painters.describe(model)


def test_the_text_encoder_can_be_offloaded(pipeline):
    _, clip, _ = comfy_painters.load_painter("sana/transformer")
    assert unmanaged(clip.patcher.model) == []


def test_it_paints_no_states(pipeline):
    model, _, _ = comfy_painters.load_painter("sana/transformer")
    assert not model.model.reads_source
    with pytest.raises(Misfit, match="wire CLIP Text Encode"):
        comfy_sana.conditioning(comfy_sana.painter_of(model), Insight(torch.zeros(1, 2, 48), torch.ones(1, 2).bool()))
