"""Edit Sampler is VAEEncode or InpaintModelConditioning, KSampler, VAEDecode in a row, and equals headless."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.sd
import pytest
import torch

import nodes
from mindedit_core.contracts import Misfit, PaintSettings, Plan
from mindedit_core.hosts import comfy_mini, comfy_sampler
from mindedit_core.hosts.comfy_adapter import attach, load_adapter
from mindedit_core.hosts.comfy_sampler import edit_sample
from mindedit_core.hosts.comfy_text import encode_prompt
from mindedit_core.painters.unet import grey_out, latent_mask
from mindedit_core.systems import load_system
from mindedit_core.tensors import fit_mask, to_rgb

SETTINGS = {"seed": 3, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
TEXT, NEGATIVE = "small red cat at bottom left, grass background", "big tree"


@pytest.fixture(scope="module")
def inpaint():
    return comfy_mini.load_mini("inpaint")


@pytest.fixture(scope="module")
def img2img():
    return comfy_mini.load_mini("img2img")


@pytest.fixture(scope="module")
def conds(inpaint):
    return encode_prompt(inpaint.clip, TEXT), encode_prompt(inpaint.clip, NEGATIVE)


@pytest.fixture
def image(generator):
    return torch.rand(1, 128, 128, 3, generator=generator)


@pytest.fixture
def mask():
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 16:80] = 1.0
    return mask


def edit(parts, conds, image, mask=None, model=None, **changes):
    return edit_sample(model or parts.model, *conds, parts.vae, image, mask, **{**SETTINGS, **changes})


def ksampler(model, positive, negative, latent, strength):
    (sampled,) = nodes.KSampler().sample(
        model, 3, 4, 3.0, "euler", "simple", positive, negative, latent, denoise=strength
    )
    return sampled["samples"]


# Equal to the host's own nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting_equals_the_hosts_own_nodes(strength, inpaint, conds, image, mask):
    chained = nodes.InpaintModelConditioning().encode(*conds, image, inpaint.vae, mask, noise_mask=False)
    expected = ksampler(inpaint.model, *chained, strength)
    edited = edit(inpaint, conds, image, mask, strength=strength, composite=False)
    torch.testing.assert_close(edited.latent["samples"], expected, atol=1e-4, rtol=0)
    (decoded,) = nodes.VAEDecode().decode(inpaint.vae, {"samples": expected})
    torch.testing.assert_close(edited.image, decoded, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_img2img_equals_the_hosts_own_nodes(strength, img2img, conds, image):
    (latent,) = nodes.VAEEncode().encode(img2img.vae, image)
    expected = ksampler(img2img.model, *conds, latent, strength)
    edited = edit(img2img, conds, image, strength=strength)
    torch.testing.assert_close(edited.latent["samples"], expected, atol=1e-4, rtol=0)


def test_without_a_mask_an_inpainter_repaints_everything(inpaint, conds, image):
    ones = torch.ones(1, 128, 128)
    chained = nodes.InpaintModelConditioning().encode(*conds, image, inpaint.vae, ones, noise_mask=False)
    edited = edit(inpaint, conds, image)
    torch.testing.assert_close(edited.latent["samples"], ksampler(inpaint.model, *chained, 1.0), atol=1e-4, rtol=0)


def test_with_a_mask_any_other_model_is_held_to_it_by_a_noise_mask(img2img, conds, image, mask):
    (latent,) = nodes.VAEEncode().encode(img2img.vae, image)
    (held,) = nodes.SetLatentNoiseMask().set_mask(latent, mask)
    edited = edit(img2img, conds, image, mask)
    torch.testing.assert_close(edited.latent["samples"], ksampler(img2img.model, *conds, held, 1.0), atol=1e-4, rtol=0)
    outside = latent_mask(mask, (8, 8))[:, 0] == 0
    kept, source = edited.latent["samples"].movedim(1, -1)[outside], latent["samples"].movedim(1, -1)[outside]
    torch.testing.assert_close(kept, source, atol=1e-4, rtol=1e-4)


def test_the_patched_model_is_the_same_in_both(inpaint, conds, image, mask):
    patched = attach(inpaint.model, load_adapter(inpaint.ipadapter), insight_of(inpaint, image))
    chained = nodes.InpaintModelConditioning().encode(*conds, image, inpaint.vae, mask, noise_mask=False)
    edited = edit(inpaint, conds, image, mask, model=patched, composite=False)
    torch.testing.assert_close(edited.latent["samples"], ksampler(patched, *chained, 1.0), atol=1e-4, rtol=0)
    assert not torch.allclose(edited.latent["samples"], ksampler(inpaint.model, *chained, 1.0), atol=1e-3)


def insight_of(parts, image):
    return parts.mllm.encode(image, parts.mllm.design(image, "make the cat red", max_new_tokens=4))


def test_a_core_lora_changes_the_picture(inpaint, conds, image, mask, generator):
    name = "diffusion_model.output_blocks.0.1.transformer_blocks.0.attn1.to_v"
    shape = inpaint.model.model.state_dict()[f"{name}.weight"].shape
    lora = {
        f"{name}.lora_up.weight": torch.randn(shape[0], 4, generator=generator),
        f"{name}.lora_down.weight": torch.randn(4, shape[1], generator=generator),
    }
    patched, _ = comfy.sd.load_lora_for_models(inpaint.model, None, lora, 1.0, 0.0)
    plain = edit(inpaint, conds, image, mask).image
    changed = edit(inpaint, conds, image, mask, model=patched).image
    assert (plain - changed).abs().mean() > 1e-3
    assert torch.equal(edit(inpaint, conds, image, mask).image, plain)


# Equal to headless ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system(mini_folder):
    with torch.inference_mode(False):
        return load_system(mini_folder)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("masked", [True, False])
def test_the_whole_graph_equals_headless(masked, window, inpaint, img2img, system, image, mask):
    """Wish to latent: the same words, the same insight, the same latent; and the same picture to 2/255."""
    parts, room = (inpaint, mask) if masked else (img2img, None)
    wish = "make the small cat red"
    plan = parts.mllm.design(image, wish, max_new_tokens=12)
    insight = parts.mllm.encode(image, plan)
    options = {"scale": 0.8, "start": window[0], "end": window[1]}
    model = attach(parts.model, load_adapter(parts.ipadapter), insight, **options)
    conds = encode_prompt(parts.clip, plan.text), encode_prompt(parts.clip, "")
    ours = edit(parts, conds, image, room, model=model, composite=False)
    settings = PaintSettings(
        steps=4,
        guidance_scale=3.0,
        seed=3,
        mask=room,
        composite=False,
        insight_scale=0.8,
        start=window[0],
        end=window[1],
    )
    their_plan = system.designer.design(image, wish, max_new_tokens=12)
    condition = system.bridge(system.mllm.encode(image, their_plan))
    theirs = system.painter.paint(image, their_plan, condition, settings)
    their_latents = system.painter.paint_latents(image, their_plan, condition, settings)
    assert plan.text == their_plan.text
    torch.testing.assert_close(ours.latent["samples"] * parts.vae.scaling_factor, their_latents, atol=2e-3, rtol=2e-3)
    inside = slice(None) if room is None else room[0].bool()
    assert (ours.image[0][inside] - theirs[0][inside]).abs().mean() < 0.1 / 255


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_model_without_mask_channels_is_held_to_the_mask_as_headless(strength, img2img, conds, system, image, mask):
    ours = edit(img2img, conds, image, mask, strength=strength, composite=False)
    own = system.painter
    alone = type(own)(own.unet, None, own.vae, own.text_encoder, own.tokenizer)
    settings = PaintSettings(
        steps=4, guidance_scale=3.0, seed=3, negative=NEGATIVE, mask=mask, strength=strength, composite=False
    )
    theirs = alone.paint_latents(image, Plan(TEXT, TEXT), system.bridge(no_insight()), settings)
    scaled = ours.latent["samples"] * img2img.vae.scaling_factor
    torch.testing.assert_close(scaled, theirs, atol=2e-3, rtol=2e-3)


def test_batches_are_painted_as_headless(img2img, conds, system, generator):
    images = torch.rand(3, 96, 64, 3, generator=generator)
    ours = edit(img2img, conds, images)
    plan = system.designer.design(images[:1], TEXT, max_new_tokens=2)
    plan = type(plan)(TEXT, TEXT)
    settings = PaintSettings(steps=4, guidance_scale=3.0, seed=3, negative=NEGATIVE)
    theirs = system.painter.paint(images, plan, system.bridge(no_insight()), settings)
    torch.testing.assert_close(ours.image, theirs, atol=2e-3, rtol=0)


def no_insight():
    from mindedit_core.contracts import Insight

    return Insight(None, None, note="off")


# The source is kept --------------------------------------------------------------------------------------------------


@pytest.fixture
def unet_calls(inpaint, img2img):
    calls = []
    unets = [parts.model.model.diffusion_model for parts in (inpaint, img2img)]
    hooks = [unet.register_forward_pre_hook(lambda *_: calls.append(1)) for unet in unets]
    yield calls
    for hook in hooks:
        hook.remove()


def test_strength_zero_returns_the_source_without_a_model_call(inpaint, conds, image, mask, unet_calls):
    edited = edit(inpaint, conds, image, mask, strength=0.0)
    assert torch.equal(edited.image, image) and edited.image is not image
    assert torch.equal(edited.latent["samples"], inpaint.vae.encode(image))
    assert not unet_calls


def test_an_empty_mask_returns_the_source_and_says_so(inpaint, conds, image, unet_calls):
    edited = edit(inpaint, conds, image, torch.zeros(1, 64, 64))
    assert torch.equal(edited.image, image)
    assert not unet_calls
    assert any("the mask is empty" in note for note in edited.notes)


def test_outside_the_mask_the_source_comes_back_to_the_pixel(inpaint, conds, image, mask):
    edited = edit(inpaint, conds, image, mask).image
    outside = mask[0] == 0
    assert torch.equal(edited[0][outside], image[0][outside])
    assert not torch.allclose(edited[0][~outside], image[0][~outside], atol=1e-2)
    whole = edit(inpaint, conds, image, mask, composite=False).image
    assert not torch.equal(whole[0][outside], image[0][outside])
    assert torch.equal(whole[0][~outside], edited[0][~outside])


# Any picture, any mask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (100, 70), (17, 130)])
@pytest.mark.parametrize("masked", [True, False])
def test_any_size_is_padded_and_cropped_back(size, masked, inpaint, conds, generator):
    image = torch.rand(1, *size, 3, generator=generator)
    mask = torch.ones(1, *size) if masked else None
    edited = edit(inpaint, conds, image, mask, steps=1)
    assert edited.image.shape == image.shape
    assert tuple(edited.latent["samples"].shape[2:]) == tuple(-(-side // 16) for side in size)


def test_alpha_is_laid_over_white_and_said(inpaint, conds, generator):
    image = torch.rand(1, 64, 64, 4, generator=generator)
    edited = edit(inpaint, conds, image, strength=0.0)
    assert torch.equal(edited.image, to_rgb(image))
    assert any("alpha" in note for note in edited.notes)


def test_a_mask_of_another_size_is_resized_and_said(inpaint, conds, image, mask):
    small = mask[:, ::2, ::2]
    edited = edit(inpaint, conds, image, small, steps=1)
    assert any("the mask is 64x64, the picture 128x128" in note for note in edited.notes)
    expected = edit(inpaint, conds, image, fit_mask(small, image), steps=1)
    assert torch.equal(edited.image, expected.image)


def test_one_mask_serves_a_batch_and_a_wrong_number_is_refused(inpaint, conds, generator, mask):
    images = torch.rand(3, 128, 128, 3, generator=generator)
    edited = edit(inpaint, conds, images, mask, steps=1)
    assert edited.image.shape == images.shape
    with pytest.raises(ValueError, match="one for each of the 3 pictures, got 2 masks"):
        edit(inpaint, conds, images, mask.repeat(2, 1, 1), steps=1)


def test_the_greyed_picture_is_the_hosts(inpaint, conds, image, mask):
    soft = mask * 0.8
    positive, _, _ = nodes.InpaintModelConditioning().encode(*conds, image, inpaint.vae, soft, noise_mask=False)
    assert torch.equal(positive[0][1]["concat_latent_image"], inpaint.vae.encode(grey_out(image, soft)))


# Beside painting -----------------------------------------------------------------------------------------------------


def test_the_given_conditionings_are_untouched(inpaint, conds, image, mask):
    before = [sorted(each[0][1]) for each in conds]
    edit(inpaint, conds, image, mask, steps=1)
    assert [sorted(each[0][1]) for each in conds] == before


def test_the_same_seed_gives_the_same_picture(inpaint, conds, image, mask):
    one, two, three = (edit(inpaint, conds, image, mask, seed=seed).image for seed in (7, 7, 8))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_an_interrupted_run_ends_and_the_next_one_works(inpaint, conds, image, mask, monkeypatch):
    expected = edit(inpaint, conds, image, mask).image
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        edit(inpaint, conds, image, mask)
    assert torch.equal(edit(inpaint, conds, image, mask).image, expected)


def test_every_step_reports_with_a_preview(inpaint, conds, image, mask, monkeypatch):
    import comfy.utils
    from comfy.cli_args import LatentPreviewMethod, args

    seen = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: seen.append((value, total, preview))
    )
    edit(inpaint, conds, image, mask, steps=3)
    assert [(value, total) for value, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(preview[1].size == (8, 8) for _, _, preview in seen)


def test_a_vae_of_another_model_is_refused(inpaint, conds, image):
    other = comfy.sd.VAE(sd={"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3)})
    with pytest.raises(Misfit, match="VAE makes latents of 4 channels, this MODEL paints 16"):
        edit(inpaint._replace(vae=other), conds, image)
    with pytest.raises(Misfit, match="there is no VAE"):
        edit(inpaint._replace(vae=None), conds, image)


def test_names_for_the_combos():
    names, schedulers = comfy_sampler.samplers()
    assert "euler" in names and "simple" in schedulers


def test_texts_of_a_batch_become_rows(inpaint):
    rows = encode_prompt(inpaint.clip, [TEXT, NEGATIVE])
    assert rows[0][0].shape[0] == 2 and rows[0][1]["pooled_output"].shape[0] == 2
    assert torch.equal(rows[0][0][:1], encode_prompt(inpaint.clip, TEXT)[0][0])
    longer = encode_prompt(inpaint.clip, [TEXT, "tree " * 100])
    assert longer[0][0].shape[1] == 154
    with pytest.raises(ValueError, match="there is no CLIP"):
        encode_prompt(None, TEXT)
