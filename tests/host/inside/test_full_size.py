"""Full size without downloads: random weights in the published layouts, a real photograph, ComfyUI's own loaders.

SD1.5-inpainting as one checkpoint, `ip-adapter_sd15`, and a folder shaped as llava-onevision-qwen2-0.5b-ov-hf.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import comfy.sd
import comfy.utils
import full_size_mllm  # tests/host, which conftest.py puts on the path
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mindedit_core.hosts import comfy_folders, comfy_managed
from mindedit_core.hosts.comfy_adapter import attach, cross_attentions, load_adapter
from mindedit_core.hosts.comfy_mllm_loading import load_mllm
from mindedit_core.hosts.comfy_sampler import edit_sample
from mindedit_core.hosts.comfy_text import encode_prompt
from mindedit_core.tensors import pad_to_multiple

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 768, 1365
CLIP_DIM = full_size_mllm.CLIP_DIM
TOKEN_DIM, TOKENS = 768, 4  # ip-adapter_sd15: ViT-H to SD1.5
WISH, SEED, CFG, SCALE = "make it look like the end of a long summer day", 7, 5.0, 0.8
SD_SCALE = 0.18215


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    """float[1, 768, 1365, 3]: a photograph that scikit-image brings along, or the one that MINDEDIT_PHOTO names."""
    if "MINDEDIT_PHOTO" not in os.environ:
        pytest.importorskip("skimage")
    path = os.environ.get("MINDEDIT_PHOTO") or Path(__import__("skimage").__file__).parent / "data" / "coffee.png"
    picture = Image.open(path).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture).copy()).float()[None] / 255.0


# Published layouts, random weights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stable_diffusion():
    """diffusers' parts of SD1.5-inpainting; the VAE's distribution has no width, so that a sample is its mode."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.inference_mode(False):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            in_channels=9, cross_attention_dim=TOKEN_DIM, attention_head_dim=8, sample_size=64
        ).eval()
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        ).eval()
    return unet.requires_grad_(False), vae.requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(stable_diffusion, module_models):
    """One file, as `sd-v1-5-inpainting`: the host's names for the UNet; VAE and text as the host reads them too."""
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, vae = stable_diffusion
    with torch.inference_mode(False):
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    layout = {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
    }
    places = comfy.utils.unet_to_diffusers(layout)
    tensors = {f"model.diffusion_model.{places[key]}": value for key, value in unet.state_dict().items()}
    tensors |= {f"first_stage_model.{key}": value for key, value in vae.state_dict().items()}
    for key, value in text.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    path = module_models / "sd-v1-5-inpainting.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def ip_adapter(stable_diffusion, module_models):
    """models/ipadapter/ip-adapter_sd15.safetensors, its keys and shapes as published."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "image_proj.proj.weight": torch.randn(TOKENS * TOKEN_DIM, CLIP_DIM, generator=generator) * CLIP_DIM**-0.5,
        "image_proj.proj.bias": torch.zeros(TOKENS * TOKEN_DIM),
        "image_proj.norm.weight": torch.ones(TOKEN_DIM),
        "image_proj.norm.bias": torch.zeros(TOKEN_DIM),
    }
    unet = stable_diffusion[0]
    for k, name in enumerate(unet.attn_processors):
        if ".attn2." in name:
            shape = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
            for side in "kv":
                weight = 5.0 * torch.randn(shape, generator=generator) * TOKEN_DIM**-0.5
                tensors[f"ip_adapter.{k}.to_{side}_ip.weight"] = weight
    path = module_models / "ipadapter" / "ip-adapter_sd15.safetensors"
    path.parent.mkdir()
    save_file(tensors, path)
    return tensors


@pytest.fixture(scope="module")
def llava(module_models):
    with torch.inference_mode(False):
        folder = full_size_mllm.write_llava(Path(comfy.__path__[0]).parent, module_models)
    gc.collect()
    return folder


@pytest.fixture(scope="module")
def head(llava, module_models):
    with torch.inference_mode(False):
        return full_size_mllm.write_head(module_models)


# The MLLM -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def insight(llava, head, photograph):
    """Plan and insight, by the MLLM with its adapter; the MLLM is gone afterwards."""
    mllm = load_mllm(llava.name, head)
    assert comfy_managed.unmanaged(mllm.patcher.model) == []
    plan = mllm.design(photograph, WISH, max_new_tokens=3)
    found = mllm.encode(photograph, plan)
    del mllm
    gc.collect()
    return plan, found


def test_states_equal_transformers_own_forward(llava, photograph):
    """Without an adapter: bf16 stored, fp32 computed, against transformers' own model in fp32."""
    from transformers import LlavaOnevisionForConditionalGeneration

    mllm = load_mllm(llava.name)
    assert {parameter.dtype for parameter in mllm.core.model.parameters()} == {torch.bfloat16}
    assert mllm.dtype == torch.float32
    generations = mllm.core.generate(photograph, WISH, max_new_tokens=3)
    inputs = mllm.core.prepare(photograph, WISH)
    layer, ids, states = mllm.core.layer, generations[0].token_ids, generations[0].states.hidden
    assert inputs["input_ids"].shape[1] > 4000  # full anyres
    del mllm
    gc.collect()
    theirs = LlavaOnevisionForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    start = inputs["input_ids"].shape[1] - 1
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids[:-1]])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    output = theirs(**inputs, output_hidden_states=True, logits_to_keep=len(ids))
    assert output.logits[0].argmax(-1).tolist() == list(ids)
    expected = output.hidden_states[layer][:, start:]
    torch.testing.assert_close(states, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def test_the_insight_is_of_the_published_width(insight):
    plan, found = insight
    assert found.image_embeds.shape == (1, CLIP_DIM) and found.clip_space == "vit-h"
    assert plan.text


# The painter ----------------------------------------------------------------------------------------------------------


def test_the_whole_graph_runs_and_equals_diffusers(photograph, insight, checkpoint, ip_adapter, stable_diffusion):
    """One step on a photograph of 1365x768, padded and cropped back; the latent before decoding to 1e-3."""
    plan, found = insight
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_clip=True, output_vae=True)[:3]
    assert model.model.get_dtype() == torch.float32 and len(cross_attentions(model)) == 16
    adapter = load_adapter(comfy_folders.resolve_ip_adapter("ip-adapter_sd15.safetensors"))
    patched = attach(model, adapter, found, scale=SCALE)
    positive, negative = encode_prompt(clip, plan.text), encode_prompt(clip, "")
    mask = torch.zeros(1, HEIGHT, WIDTH)
    rows, columns = slice(HEIGHT // 32 * 8, HEIGHT // 16 * 8), slice(WIDTH // 32 * 8, WIDTH // 16 * 8)
    mask[:, rows, columns] = 1.0  # on the latent grid, where diffusers' nearest and the host's bilinear agree
    settings = {"seed": SEED, "steps": 1, "cfg": CFG, "sampler_name": "euler", "scheduler": "simple"}
    edited = edit_sample(patched, positive, negative, vae, photograph, mask, **settings)
    assert edited.image.shape == photograph.shape
    outside = mask[0] == 0
    assert torch.equal(edited.image[0][outside], photograph[0][outside])
    ours = edited.latent["samples"] * SD_SCALE
    sampling = model.get_model_object("model_sampling")
    padded, _ = pad_to_multiple(photograph, 8)
    start = start_of(sampling, vae, padded)
    del model, clip, vae, patched, adapter
    gc.collect()
    text = positive[0][0], negative[0][0]
    theirs = by_diffusers(stable_diffusion, ip_adapter, text, found.image_embeds, padded, mask, start)
    assert ours.shape == theirs.shape == (1, 4, padded.shape[1] // 8, padded.shape[2] // 8)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def start_of(sampling, vae, padded):
    """Where the host's sampler starts at full strength: latents + noise * sqrt(1 + sigma^2)."""
    latents = SD_SCALE * vae.encode(padded)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
    return sampling.noise_scaling(sampling.sigma_max, noise, latents, max_denoise=True)


def by_diffusers(parts, adapter, text, embeds, padded, mask, start):
    """The latent of diffusers' own pipeline with its own IP-Adapter."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionInpaintPipeline

    unet, vae = parts
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = EulerDiscreteScheduler(**betas, timestep_spacing="trailing", steps_offset=1)
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with torch.inference_mode(False):
        pipe = StableDiffusionInpaintPipeline(
            vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, **rest
        )
        nested = {"image_proj": {}, "ip_adapter": {}}
        for key, value in adapter.items():
            nested[key.split(".", 1)[0]][key.split(".", 1)[1]] = value
        pipe.load_ip_adapter(nested, subfolder="", weight_name="", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(SCALE)
    pipe.scheduler.set_timesteps(1)
    whole, _ = pad_to_multiple(mask, 8)
    greyed = torch.where(whole[..., None] > 0.5, 0.5, padded)
    images = torch.stack([torch.zeros_like(embeds), embeds])
    return pipe(
        prompt_embeds=text[0].clone(),
        negative_prompt_embeds=text[1].clone(),
        ip_adapter_image_embeds=[images],
        guidance_scale=CFG,
        image=padded.movedim(-1, 1),
        mask_image=whole[:, None],
        masked_image_latents=SD_SCALE * vae.encode(greyed.movedim(-1, 1) * 2 - 1).latent_dist.mode(),
        latents=start / pipe.scheduler.init_noise_sigma,
        height=padded.shape[1],
        width=padded.shape[2],
        strength=1.0,
        num_inference_steps=1,
        output_type="latent",
    ).images
