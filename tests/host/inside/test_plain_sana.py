"""SANA1.5 as published for text-to-image: stock CLIP Text Encode, our MODEL and VAE, diffusers' pipeline's latents."""

from __future__ import annotations

import comfy.sample
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, SanaPipeline
from transformers import Gemma2Config, Gemma2Model

import nodes
from mindedit_core.contracts import Insight, Misfit
from mindedit_core.hosts import comfy_flow, comfy_painters, comfy_sana
from mindedit_core.hosts.comfy_managed import unmanaged
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


def test_latents_are_those_of_diffusers_pipeline(pipeline):
    model, clip, vae = comfy_painters.load_painter("sana/transformer")
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (TEXT, NEGATIVE))
    latent = torch.zeros(1, LATENT_CHANNELS, 8, 8)
    found = comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(latent, 5), 4.5, comfy_flow.flow_sampler(), comfy_flow.flow_sigmas(model, 4),
        positive, negative, latent,
    )  # fmt: skip
    expected = pipeline(
        TEXT, NEGATIVE, num_inference_steps=4, guidance_scale=4.5, height=128, width=128, output_type="latent",
        generator=torch.Generator().manual_seed(5), complex_human_instruction=None, use_resolution_binning=False,
        clean_caption=False,
    ).images  # fmt: skip
    torch.testing.assert_close(found * vae.scaling_factor, expected, atol=1e-4, rtol=1e-4)


def test_the_text_encoder_can_be_offloaded(pipeline):
    _, clip, _ = comfy_painters.load_painter("sana/transformer")
    assert unmanaged(clip.patcher.model) == []


def test_it_paints_no_states(pipeline):
    model, _, _ = comfy_painters.load_painter("sana/transformer")
    assert not model.model.reads_source
    with pytest.raises(Misfit, match="wire CLIP Text Encode"):
        comfy_sana.conditioning(comfy_sana.painter_of(model), Insight(torch.zeros(1, 2, 48), torch.ones(1, 2).bool()))
