"""The mini's MODEL, CLIP and VAE are the host's own types, and compute what diffusers and transformers compute."""

from __future__ import annotations

import comfy.lora
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

import nodes
from mindedit_core.checkpoint import CheckpointError, load_tensors, read_metadata, save_checkpoint
from mindedit_core.hosts import comfy_managed, comfy_mini
from mindedit_core.hosts.comfy_text import encode_prompt
from mindedit_core.model_files import load_model
from mindedit_core.painters import unet as headless

PAINTERS = ("inpaint", "img2img")


@pytest.fixture(scope="module")
def vae(mini_folder):
    return comfy_mini.load_vae(mini_folder / "autoencoder.safetensors")


@pytest.fixture(scope="module")
def clip(mini_folder):
    return comfy_mini.load_clip(mini_folder / "clip.safetensors", mini_folder / "tokenizer.json")


@pytest.fixture(scope="module")
def models(mini_folder, vae):
    return {painter: comfy_mini.load_painter(mini_folder / comfy_mini.UNETS[painter], vae) for painter in PAINTERS}


@pytest.mark.parametrize("painter", PAINTERS)
def test_the_unet_is_the_hosts_own_and_equals_diffusers(painter, models, mini_folder, generator):
    model = models[painter].model.diffusion_model
    theirs = load_model(mini_folder / comfy_mini.UNETS[painter])
    assert type(model) is UNetModel
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}  # stored
    channels, width = theirs.config["in_channels"], theirs.config["cross_attention_dim"]
    latents = torch.randn(2, channels, 8, 8, generator=generator)
    tokens = torch.randn(2, 77, width, generator=generator)
    timestep = torch.tensor([981.0, 7.0])
    ours = model(latents, timestep, context=tokens)
    expected = theirs(latents, timestep, tokens).sample
    assert ours.dtype == torch.float32  # computed
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_only_the_inpainting_unet_is_an_inpainter(models):
    assert models["inpaint"].model.concat_keys == ("mask", "masked_image")
    assert models["img2img"].model.concat_keys == ()


def test_noise_levels_are_the_headless_ones(models):
    from mindedit_core.painters.schedule import NoiseSchedule

    sampling, schedule = models["inpaint"].get_model_object("model_sampling"), NoiseSchedule()
    torch.testing.assert_close(sampling.sigmas, schedule.sigmas, atol=0, rtol=2e-6)
    for fraction in (0.0, 0.3, 0.99, 1.0):
        assert sampling.percent_to_sigma(fraction) == pytest.approx(schedule.sigma_at(fraction), rel=1e-5)


@pytest.mark.parametrize(
    "text", ["", "make the small red cat at bottom left blue", "Zebra, unknown: words!", "tree " * 70]
)
def test_text_equals_transformers(text, clip, mini_folder):
    from mindedit_core.backbones.mini_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(mini_folder / "tokenizer.json")
    expected = headless.encode_text(load_model(mini_folder / "clip.safetensors"), tokenizer, text)
    encoded, _ = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
    assert type(clip) is comfy.sd.CLIP
    assert encoded.shape == expected.shape
    torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=1e-5)


def test_brackets_are_text_unless_emphasis_is_asked_for(clip, mini_folder):
    """T_opt may hold brackets; headless reads them as they stand."""
    from mindedit_core.backbones.mini_tokenizer import load_tokenizer

    text = "small (red) cat \\( at ((bottom left:1.3))"
    tokenizer = load_tokenizer(mini_folder / "tokenizer.json")
    expected = headless.encode_text(load_model(mini_folder / "clip.safetensors"), tokenizer, text)
    torch.testing.assert_close(encode_prompt(clip, text)[0][0], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(encode_prompt(clip, text, emphasis=True)[0][0], expected, atol=1e-3)


def test_pooled_text_is_the_end_tokens_state(clip, mini_folder):
    from mindedit_core.backbones.mini_tokenizer import load_tokenizer

    theirs, tokenizer = load_model(mini_folder / "clip.safetensors"), load_tokenizer(mini_folder / "tokenizer.json")
    ids = tokenizer("big tree", padding="max_length", max_length=77, return_tensors="pt").input_ids
    _, extras = clip.encode_from_tokens_scheduled(clip.tokenize("big tree"))[0]
    torch.testing.assert_close(extras["pooled_output"], theirs.text_model(ids).pooler_output, atol=1e-5, rtol=1e-5)


def test_text_beyond_77_tokens_becomes_a_second_chunk(clip):
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize("tree " * 100))[0][0]
    assert encoded.shape[1] == 154


def test_the_vae_equals_the_autoencoder(vae, mini_folder, generator):
    theirs = load_model(mini_folder / "autoencoder.safetensors")
    image = torch.rand(2, 128, 96, 3, generator=generator)
    latents = vae.encode(image)
    assert latents.shape == (2, vae.latent_channels, 8, 6)
    torch.testing.assert_close(vae.scaling_factor * latents, headless.encode(theirs, image), atol=1e-5, rtol=1e-5)
    expected = headless.decode(theirs, vae.scaling_factor * latents)
    torch.testing.assert_close(vae.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_the_hosts_vae_nodes_take_it(vae, generator):
    image = torch.rand(1, 192, 128, 3, generator=generator)
    (latent,) = nodes.VAEEncode().encode(vae, image)
    (tiled,) = nodes.VAEEncodeTiled().encode(vae, image, tile_size=128, overlap=32)
    assert latent["samples"].shape == tiled["samples"].shape == (1, 16, 12, 8)
    (whole,) = nodes.VAEDecode().decode(vae, latent)
    (parts,) = nodes.VAEDecodeTiled().decode(vae, latent, tile_size=128, overlap=32)
    assert whole.shape == parts.shape == image.shape
    assert 0 <= whole.min() and whole.max() <= 1


def test_the_vae_is_the_boxed_autoencoder_and_nothing_else(vae):
    assert comfy_managed.unmanaged(vae.first_stage_model) == []
    assert vae.patcher.model is vae.first_stage_model
    assert {parameter.dtype for parameter in vae.first_stage_model.parameters()} == {torch.float16}
    parameters = sum(parameter.numel() * 2 for parameter in vae.first_stage_model.parameters())
    assert vae.get_ram_usage() >= parameters and vae.size < 1.5 * parameters + 10_000


def test_blank_latents_are_those_of_grey(models, vae):
    blank = models["inpaint"].model.blank_inpaint_image_like(torch.zeros(2, vae.latent_channels, 8, 8))
    grey = models["inpaint"].model.process_latent_in(vae.encode(torch.full((1, 128, 128, 3), 0.5)))
    assert blank.shape == (2, vae.latent_channels, 8, 8)
    torch.testing.assert_close(blank.mean(dim=(0, 2, 3)), grey.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_previews_show_colours(models, vae):
    """The previewer's linear map beats the best constant on pictures it was not fitted to."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    from mindedit_core.scenes import sample

    image = torch.from_numpy(sample(1234).source_image.copy()).float()[None] / 255.0
    latents = models["inpaint"].model.process_latent_in(vae.encode(image))
    latent_format = models["inpaint"].model.latent_format
    args.preview_method = LatentPreviewMethod.Latent2RGB
    preview = latent_preview.get_previewer(latents.device, latent_format).decode_latent_to_preview(latents)
    assert preview.size == (8, 8)


@pytest.mark.parametrize("painter", PAINTERS)
def test_a_core_lora_changes_the_model_and_goes_off_bit_exactly(painter, models, generator):
    model = models[painter]
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q"
    weight = model.model.state_dict()[f"{name}.weight"]
    up, down = (
        torch.randn(weight.shape[0], 2, generator=generator),
        torch.randn(2, weight.shape[1], generator=generator),
    )
    lora = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert list(patched.patches) == [f"{name}.weight"]
    before = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    patched.patch_model()
    changed = [key for key, tensor in model.model.state_dict().items() if not torch.equal(tensor, before[key])]
    assert changed == [f"{name}.weight"]
    patched.unpatch_model()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.model.state_dict().items())


def test_a_clone_of_the_model_shares_the_weights(models):
    clone = models["inpaint"].clone()
    assert clone.model is models["inpaint"].model


def test_a_unet_the_host_cannot_build_says_so(mini_folder, tmp_path, vae):
    path = mini_folder / "unet.safetensors"
    metadata = read_metadata(path)
    metadata["config"] = {**metadata["config"], "norm_num_groups": 8}
    wrong = save_checkpoint(tmp_path / "unet.safetensors", load_tensors(path), metadata)
    with pytest.raises(CheckpointError, match="32 groups.*got .*8 groups"):
        comfy_mini.load_painter(wrong, vae)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="a mini needs 7 files, .* lacks mllm.safetensors, mind_edit"):
        comfy_mini.require_files(tmp_path, "inpaint")
    with pytest.raises(ValueError, match="unknown painter 'oil'; have inpaint, img2img"):
        comfy_mini.require_files(tmp_path, "oil")
