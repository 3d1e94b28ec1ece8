"""The headless painter against diffusers' pipelines on SD1.5's layout, its laws, and what it says to odd input."""

from __future__ import annotations

import weakref

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.contracts import Condition, Insight, Interrupted, Misfit, Painter, PaintSettings, Plan
from mindedit_core.painters import PAINTERS, painter
from mindedit_core.painters.schedule import NoiseSchedule, cpu_noise
from mindedit_core.painters.unet import UNetPainter, decode, encode, encode_text, grey_out, latent_mask
from mindedit_core.systems.tiny import tiny_autoencoder, tiny_clip, tiny_ip_adapter, tiny_tokenizer
from mindedit_core.systems.tiny import tiny_unet as mini_unet

EMBED, TOKEN = 24, 32
PLAN = Plan(raw="make it red", text="small red cat at bottom left, grass background")
SETTINGS = PaintSettings(steps=4, guidance_scale=5.0, negative="blue tree", seed=7)


def sd15_unet(in_channels: int) -> UNet2DConditionModel:
    """SD1.5's blocks with few channels; its output is spread out, so that steps matter."""
    torch.manual_seed(in_channels)
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(16, 16, 32, 32),
        in_channels=in_channels,
        out_channels=4,
        attention_head_dim=8,
        norm_num_groups=8,
        cross_attention_dim=TOKEN,
        sample_size=64,
    )
    return unet.eval().requires_grad_(False)


def random_adapter(unet) -> IPAdapter:
    torch.manual_seed(5)
    adapter = IPAdapter.for_unet(unet, embed_dim=EMBED, clip_space="tiny")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    return adapter.requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def sd15(tokenizer) -> UNetPainter:
    torch.manual_seed(0)
    sizes = {"hidden_size": TOKEN, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = (
        CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=3))
        .eval()
        .requires_grad_(False)
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    unet = sd15_unet(4)
    return UNetPainter(unet, sd15_unet(9), vae.eval().requires_grad_(False), text, tokenizer, random_adapter(unet))


@pytest.fixture(scope="module")
def mini(tokenizer) -> UNetPainter:
    torch.manual_seed(0)
    unets = [mini_unet(16), mini_unet(33)]
    adapter = IPAdapter.from_state_dict(tiny_ip_adapter(unets[0]))
    parts = [*unets, tiny_autoencoder(), tiny_clip(tokenizer)]
    return UNetPainter(*(part.eval().requires_grad_(False) for part in parts), tokenizer, adapter)


@pytest.fixture(scope="module")
def condition(sd15) -> Condition:
    embeds = torch.randn(1, EMBED, generator=torch.Generator().manual_seed(8))
    return sd15.adapter(Insight(hidden=None, mask=None, image_embeds=embeds, clip_space="tiny"))


def picture(height: int = 64, width: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(height * width + batch))


def square_mask(height: int = 64, width: int = 64) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, width // 4 :] = 1.0
    return mask


# Against diffusers' pipelines --------------------------------------------------------------------------------------


def their_scheduler() -> EulerDiscreteScheduler:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return EulerDiscreteScheduler(**betas, timestep_spacing="trailing", steps_offset=1)  # trailing ignores the offset


def their_pipeline(kind, ours: UNetPainter, in_channels: int):
    """Its own copy of the UNet, with diffusers' own IP-Adapter loaded from the same weights."""
    unet = sd15_unet(in_channels)
    parts = {"vae": ours.vae, "text_encoder": ours.text_encoder, "tokenizer": ours.tokenizer, "unet": unet}
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = kind(**parts, scheduler=their_scheduler(), **rest)
    nested = {"image_proj": {}, "ip_adapter": {}}
    for key, value in ours.adapter.state_dict().items():
        nested[key.split(".", 1)[0]][key.split(".", 1)[1]] = value
    pipe.load_ip_adapter(nested, subfolder="", weight_name="", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.8)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def their_inputs(ours: UNetPainter, embeds: torch.Tensor) -> dict:
    text = {
        name: encode_text(ours.text_encoder, ours.tokenizer, words)
        for name, words in (("prompt_embeds", PLAN.text), ("negative_prompt_embeds", SETTINGS.negative))
    }
    images = torch.stack([torch.zeros_like(embeds), embeds])  # [2, 1, Dc]: zeros first
    return {**text, "ip_adapter_image_embeds": [images], "guidance_scale": 5.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def embeds() -> torch.Tensor:
    return torch.randn(1, EMBED, generator=torch.Generator().manual_seed(8))


def test_inpainting_equals_diffusers_pipeline_with_its_ip_adapter(sd15, condition, embeds):
    image, mask = picture(), square_mask()
    settings = SETTINGS.but(mask=mask, insight_scale=0.8, steps=5)
    found = sd15.paint_latents(image, PLAN, condition, settings)
    bare = sd15.paint_latents(image, PLAN, condition, settings.but(insight_scale=0.0))

    pipe = their_pipeline(StableDiffusionInpaintPipeline, sd15, 9)
    pipe.scheduler.set_timesteps(5)
    # diffusers starts from noise * sigma_max; the host from latents + noise * sqrt(1 + sigma_max^2)
    noise = cpu_noise((1, 4, 8, 8), SETTINGS.seed)
    start = sd15.schedule.start(noise, encode(sd15.vae, image), sd15.schedule.sigmas[-1])
    expected = pipe(
        **their_inputs(sd15, embeds),
        image=image.movedim(-1, 1),
        mask_image=mask[:, None],
        masked_image_latents=encode(sd15.vae, grey_out(image, mask)),
        latents=start / pipe.scheduler.init_noise_sigma,
        height=64,
        width=64,
        strength=1.0,
        num_inference_steps=5,
    ).images
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert (found - bare).abs().max() > 0.05  # the adapter counts


def test_img2img_equals_diffusers_pipeline_with_its_ip_adapter(sd15, condition, embeds):
    image = picture()
    settings = SETTINGS.but(strength=0.5, insight_scale=0.8, steps=5)  # the host's: the last 5 of 10 steps
    found = sd15.paint_latents(image, PLAN, condition, settings)
    expected = their_pipeline(StableDiffusionImg2ImgPipeline, sd15, 4)(
        **their_inputs(sd15, embeds),
        image=encode(sd15.vae, image),
        generator=torch.Generator().manual_seed(SETTINGS.seed),
        strength=0.5,
        num_inference_steps=10,
    ).images
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert (found - sd15.paint_latents(image, PLAN, Condition(), settings)).abs().max() > 0.05


# The schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 20, 25, 50])
def test_simple_is_diffusers_trailing_where_steps_divide_1000(steps):
    theirs, schedule = their_scheduler(), NoiseSchedule()
    theirs.set_timesteps(steps)
    sigmas = schedule.simple(steps)
    torch.testing.assert_close(sigmas, theirs.sigmas, rtol=3e-6, atol=1e-6)
    assert [int(schedule.timestep(sigma)) for sigma in sigmas[:-1]] == theirs.timesteps.long().tolist()


def test_strength_is_the_tail_of_a_longer_schedule():
    schedule = NoiseSchedule()
    assert torch.equal(schedule.for_strength(10, 0.5), schedule.simple(20)[-11:])
    assert torch.equal(schedule.for_strength(10, 0.3), schedule.simple(33)[-11:])
    assert torch.equal(schedule.for_strength(10, 1.0), schedule.simple(10))
    assert len(schedule.for_strength(10, 0.0)) == 0


def test_the_start_is_scaled_as_in_the_host():
    schedule, noise, latents = NoiseSchedule(), torch.ones(1), torch.full((1,), 3.0)
    assert schedule.start(noise, latents, schedule.sigmas[-1]).item() == pytest.approx(14.649 + 3.0, abs=1e-3)
    assert schedule.start(noise, latents, torch.tensor(2.0)).item() == pytest.approx(2.0 + 3.0)


def test_the_window_is_open_on_both_ends_of_the_schedule():
    schedule = NoiseSchedule()
    sigmas = schedule.simple(4)[:-1]
    assert [schedule.is_within(sigma, 0.0, 1.0) for sigma in sigmas] == [True] * 4
    assert [schedule.is_within(sigma, 0.0, 0.5) for sigma in sigmas] == [True, True, False, False]
    assert [schedule.is_within(sigma, 0.5, 1.0) for sigma in sigmas] == [False, False, True, True]
    assert [schedule.is_within(sigma, 0.0, 0.0) for sigma in sigmas] == [False] * 4


def test_noise_is_that_of_a_seeded_cpu():
    torch.manual_seed(2**64 - 1)
    assert torch.equal(cpu_noise((2, 4, 8, 8), 2**64 - 1), torch.randn(2, 4, 8, 8))


# Laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, square_mask()], ids=["img2img", "inpaint"])
def test_the_same_seed_gives_the_same_bits(sd15, condition, mask):
    settings = SETTINGS.but(mask=mask)
    first, again = (sd15.paint(picture(), PLAN, condition, settings) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sd15.paint(picture(), PLAN, condition, settings.but(seed=8)))


@pytest.mark.parametrize("mask", [None, square_mask()], ids=["img2img", "inpaint"])
@pytest.mark.parametrize("off", [{"insight_scale": 0.0}, {"start": 1.0, "end": 1.0}, {"start": 0.0, "end": 0.0}])
def test_insight_switched_off_is_the_bare_model_bit_for_bit(sd15, condition, mask, off):
    settings = SETTINGS.but(mask=mask)
    bare = sd15.paint_latents(picture(), PLAN, Condition(), settings)
    assert torch.equal(sd15.paint_latents(picture(), PLAN, condition, settings.but(**off)), bare)
    assert not torch.equal(sd15.paint_latents(picture(), PLAN, condition, settings), bare)


def test_steps_outside_the_window_are_the_bare_model_bit_for_bit(sd15, condition):
    outputs: list[torch.Tensor] = []
    hook = sd15.unet.register_forward_hook(lambda _, __, out: outputs.append(out.sample))
    sd15.paint_latents(picture(), PLAN, condition, SETTINGS.but(start=0.5))
    sd15.paint_latents(picture(), PLAN, Condition(), SETTINGS)
    hook.remove()
    late, bare = outputs[:4], outputs[4:]
    assert [torch.equal(ours, theirs) for ours, theirs in zip(late, bare, strict=True)] == [True, True, False, False]


def test_strength_zero_returns_the_source_without_a_model_call(sd15, condition):
    calls: list[str] = []
    modules = (sd15.unet, sd15.unet_inpaint, sd15.vae.encoder, sd15.vae.decoder, sd15.text_encoder)
    hooks = [module.register_forward_hook(lambda *_: calls.append("called")) for module in modules]
    for mask in (None, square_mask()):
        image = picture(37, 50)
        found = sd15.paint(image, PLAN, condition, SETTINGS.but(strength=0.0, mask=mask))
        assert torch.equal(found, image) and found is not image
    for hook in hooks:
        hook.remove()
    assert calls == []


def test_outside_the_mask_the_source_is_kept_pixel_exact(sd15, condition):
    image, mask = picture(37, 50), square_mask(37, 50)
    found = sd15.paint(image, PLAN, condition, SETTINGS.but(mask=mask))
    assert torch.equal(found[mask == 0], image[mask == 0])
    assert not torch.equal(found[mask == 1], image[mask == 1])
    free = sd15.paint(image, PLAN, condition, SETTINGS.but(mask=mask, composite=False))
    assert torch.equal(free[mask == 1], found[mask == 1]) and not torch.equal(free[mask == 0], image[mask == 0])


def test_keys_and_values_are_computed_once_a_run_and_freed(sd15, condition):
    calls, alive = [], []

    def seen(module, args, output):
        calls.append(module)
        alive.append(weakref.ref(output))

    linears = [linear for layer in sd15.adapter.ip_adapter.values() for linear in (layer.to_k_ip, layer.to_v_ip)]
    hooks = [linear.register_forward_hook(seen) for linear in linears]
    for mask in (None, square_mask()):
        calls.clear()
        sd15.paint(picture(), PLAN, condition, SETTINGS.but(mask=mask))
        assert calls == linears and all(ref() is None for ref in alive)
    for hook in hooks:
        hook.remove()


def test_the_unets_are_left_as_they_were(sd15, condition):
    for unet, mask in ((sd15.unet, None), (sd15.unet_inpaint, square_mask())):
        processors, state = unet.attn_processors, {key: value.clone() for key, value in unet.state_dict().items()}
        sd15.paint(picture(), PLAN, condition, SETTINGS.but(mask=mask))
        assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
        after = unet.state_dict()
        assert list(after) == list(state) and all(torch.equal(after[key], value) for key, value in state.items())


def test_guidance_runs_both_branches_in_one_batch_uncond_first(sd15):
    seen: list[torch.Tensor] = []
    hook = sd15.unet.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    sd15.paint_latents(picture(), PLAN, Condition(), SETTINGS.but(steps=1))
    sd15.paint_latents(picture(), PLAN, Condition(), SETTINGS.but(steps=1, guidance_scale=1.0))
    hook.remove()
    negative, positive = (encode_text(sd15.text_encoder, sd15.tokenizer, t) for t in (SETTINGS.negative, PLAN.text))
    assert torch.equal(seen[0], torch.cat([negative, positive])) and torch.equal(seen[1], positive)


def test_guidance_one_is_the_limit_of_guidance(sd15, condition):
    settings = SETTINGS.but(guidance_scale=1.0)
    one = sd15.paint_latents(picture(), PLAN, condition, settings)
    near = sd15.paint_latents(picture(), PLAN, condition, settings.but(guidance_scale=1.0 + 1e-5))
    torch.testing.assert_close(one, near, atol=1e-3, rtol=0)


# Batches and sizes ---------------------------------------------------------------------------------------------------


def test_a_batch_paints_each_picture_with_its_own_plan_and_insight(sd15):
    images = picture(64, 64, batch=2)
    other = Plan(raw="", text="big blue tree")
    embeds = torch.randn(2, EMBED, generator=torch.Generator().manual_seed(1))
    both = sd15.adapter(Insight(None, None, image_embeds=embeds))
    settings = SETTINGS.but(mask=square_mask())
    found = sd15.paint(images, [PLAN, other], both, settings)
    first = sd15.adapter(Insight(None, None, image_embeds=embeds[:1]))
    torch.testing.assert_close(found[:1], sd15.paint(images[:1], PLAN, first, settings), atol=1e-4, rtol=0)
    swapped = sd15.paint(images, [PLAN, PLAN], both, settings)
    assert torch.equal(swapped[0], found[0]) and not torch.equal(swapped[1], found[1])


@pytest.mark.parametrize("size", [(1, 1), (9, 70), (64, 40)])
@pytest.mark.parametrize("masked", [False, True])
def test_any_size_comes_back_in_its_size(sd15, mini, condition, size, masked):
    image = picture(*size, batch=2)
    mask = torch.ones(1, *size) if masked else None
    for each, tokens in ((sd15, condition), (mini, Condition())):
        found = each.paint(image, PLAN, tokens, SETTINGS.but(mask=mask, steps=2))
        assert found.shape == image.shape and found.min() >= 0 and found.max() <= 1 and torch.isfinite(found).all()


def test_padding_repeats_the_edge_and_is_cropped_away(sd15):
    image = picture(60, 60)
    padded = torch.cat([image, image[:, -1:].expand(-1, 4, -1, -1)], dim=1)
    padded = torch.cat([padded, padded[:, :, -1:].expand(-1, -1, 4, -1)], dim=2)
    small, large = (sd15.paint(each, PLAN, Condition(), SETTINGS) for each in (image, padded))
    assert torch.equal(small, large[:, :60, :60])


def test_the_mini_paints_with_its_own_classes(mini):
    embeds = torch.randn(1, mini.adapter.embed_dim, generator=torch.Generator().manual_seed(2))
    tokens = mini.adapter(Insight(None, None, image_embeds=embeds))
    assert mini.factor == 16 and encode(mini.vae, picture(128, 128)).shape == (1, 16, 8, 8)
    for mask in (None, square_mask(128, 128)):
        settings = SETTINGS.but(mask=mask, steps=2)
        found = mini.paint(picture(128, 128), PLAN, tokens, settings)
        assert found.shape == (1, 128, 128, 3)
        assert not torch.equal(found, mini.paint(picture(128, 128), PLAN, Condition(), settings))


def test_latents_are_scaled_both_ways(mini):
    z = mini.vae.encode(picture(32, 32).movedim(-1, 1) * 2 - 1).latent
    assert torch.equal(encode(mini.vae, picture(32, 32)), z * mini.vae.config["scaling_factor"])
    expected = (mini.vae.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(decode(mini.vae, z * mini.vae.config["scaling_factor"]), expected)


# Masks ---------------------------------------------------------------------------------------------------------------


def test_masks_follow_the_hosts_rounding():
    mask = torch.tensor([[[0.0, 0.4, 0.5, 0.6, 1.0]]])  # 0.5 rounds to even, to 0
    seen = grey_out(torch.ones(1, 1, 5, 3), mask)
    assert seen[0, 0, :, 0].tolist() == [1.0, 1.0, 1.0, 0.5, 0.5]
    wide = torch.zeros(1, 8, 16)
    wide[:, :, 4:] = 1.0  # half of the first cell: its middle two columns average to 0.5, which rounds to 0
    assert latent_mask(wide, (1, 2)).flatten().tolist() == [0.0, 1.0]


def test_a_mask_of_another_size_is_resized_and_said(sd15, condition):
    notes: list[str] = []
    found = sd15.paint(picture(), PLAN, condition, SETTINGS.but(mask=square_mask(32, 32)), on_note=notes.append)
    assert len(notes) == 1 and "the mask is 32x32, the picture 64x64" in notes[0]
    fitted = torch.nn.functional.interpolate(square_mask(32, 32)[None], size=(64, 64), mode="bilinear")[0]
    assert torch.equal(found, sd15.paint(picture(), PLAN, condition, SETTINGS.but(mask=fitted)))


def test_an_empty_mask_returns_the_source_and_says_so(sd15, condition, caplog):
    image = picture(37, 50)
    found = sd15.paint(image, PLAN, condition, SETTINGS.but(mask=torch.zeros(1, 37, 50), composite=False))
    assert torch.equal(found, image) and "nothing to edit" in caplog.text


def test_a_mask_finer_than_the_latent_is_said(sd15, condition):
    notes: list[str] = []
    mask = torch.zeros(1, 64, 64)
    mask[:, 0, 0] = 1.0
    sd15.paint(picture(), PLAN, condition, SETTINGS.but(mask=mask, steps=1), on_note=notes.append)
    assert len(notes) == 1 and "8 px of a latent cell" in notes[0]


def test_a_missing_unet_is_replaced_and_said(sd15):
    parts = (sd15.vae, sd15.text_encoder, sd15.tokenizer)
    one_step, mask = SETTINGS.but(steps=1), square_mask()
    notes: list[str] = []
    only_inpaint = UNetPainter(None, sd15.unet_inpaint, *parts)
    whole = only_inpaint.paint(picture(), PLAN, Condition(), one_step, on_note=notes.append)
    full = one_step.but(mask=torch.ones(1, 64, 64))
    assert torch.equal(whole, sd15.paint(picture(), PLAN, Condition(), full)) and "repaints the whole" in notes[0]
    only_img2img = UNetPainter(sd15.unet, None, *parts)
    kept = only_img2img.paint(picture(), PLAN, Condition(), one_step.but(mask=mask), on_note=notes.append)
    assert torch.equal(kept[mask == 0], picture()[mask == 0]) and "no inpainting UNet" in notes[1]


def test_an_img2img_unet_is_held_to_the_mask(sd15, condition):
    """Where the mask is 0 the latents stay the source's; where it is 1 everywhere, it is as if there were none."""
    alone = UNetPainter(sd15.unet, None, sd15.vae, sd15.text_encoder, sd15.tokenizer, sd15.adapter)
    mask, image = torch.zeros(1, 64, 64), picture()
    mask[:, :, 32:] = 1.0
    held = alone.paint_latents(image, PLAN, condition, SETTINGS.but(mask=mask))
    source = encode(sd15.vae, image)
    torch.testing.assert_close(held[..., :4], source[..., :4], atol=1e-5, rtol=0)
    assert (held[..., 4:] - source[..., 4:]).abs().mean() > 0.05
    free = alone.paint_latents(image, PLAN, condition, SETTINGS)
    everywhere = alone.paint_latents(image, PLAN, condition, SETTINGS.but(mask=torch.ones(1, 64, 64)))
    assert torch.equal(free, everywhere) and not torch.allclose(free[..., 4:], held[..., 4:], atol=1e-2)


# Interruption and progress -------------------------------------------------------------------------------------------


def test_progress_counts_every_step(sd15):
    seen: list[tuple[int, int]] = []
    sd15.paint_latents(picture(), PLAN, Condition(), SETTINGS.but(strength=0.6), on_step=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interrupt_stops_within_one_step_and_the_next_run_works(sd15, condition):
    seen: list[int] = []
    before, processors = sd15.paint(picture(), PLAN, condition, SETTINGS), sd15.unet.attn_processors
    with pytest.raises(Interrupted, match="after 2 of 4 steps"):
        sd15.paint(
            picture(),
            PLAN,
            condition,
            SETTINGS,
            on_step=lambda step, _: seen.append(step),
            should_stop=lambda: len(seen) == 2,
        )
    assert seen == [1, 2]
    assert all(sd15.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(sd15.paint(picture(), PLAN, condition, SETTINGS), before)


# Text ----------------------------------------------------------------------------------------------------------------


def test_text_is_clips_last_states_padded_to_77(sd15, mini, tokenizer):
    ids = tokenizer(PLAN.text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    for each in (sd15, mini):
        found = encode_text(each.text_encoder, tokenizer, PLAN.text)
        text_model = getattr(each.text_encoder, "text_model", each.text_encoder)
        assert found.shape == (1, 77, TOKEN)
        assert torch.equal(found, text_model(input_ids=ids).last_hidden_state)


def test_a_text_too_long_for_clip_is_cut_and_said(sd15):
    notes: list[str] = []
    found = encode_text(sd15.text_encoder, sd15.tokenizer, "red cat " * 1250, notes.append)  # 10,000 characters
    assert found.shape == (1, 77, TOKEN) and len(notes) == 1 and "77 tokens" in notes[0]
    encode_text(sd15.text_encoder, sd15.tokenizer, "", notes.append)
    assert len(notes) == 1


def test_text_tokens_of_the_bridge_win(sd15):
    tokens = torch.randn(1, 77, TOKEN, generator=torch.Generator().manual_seed(4))
    found, other = (
        sd15.paint_latents(picture(), plan, Condition(text_tokens=tokens), SETTINGS)
        for plan in (PLAN, Plan(raw="", text="big blue tree"))
    )
    assert torch.equal(found, other) and not torch.equal(
        found, sd15.paint_latents(picture(), PLAN, Condition(), SETTINGS)
    )


# Misfits -------------------------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_refused_at_once(sd15, mini):
    parts = (sd15.vae, sd15.text_encoder, sd15.tokenizer)
    with pytest.raises(Misfit, match="needs a UNet"):
        UNetPainter(None, None, *parts)
    takes = r"4 \(img2img\), 8 \(instruct\), 9 \(inpaint\) channels"
    with pytest.raises(Misfit, match=f"{takes}, got 9 where 4 or 8 belong"):
        UNetPainter(sd15.unet_inpaint, None, *parts)
    with pytest.raises(Misfit, match="load an IP-Adapter made for this base model"):
        UNetPainter(sd15.unet, None, *parts, adapter=mini.adapter)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (Condition(spatial=torch.zeros(1, 16, 8, 8)), "no place for spatial"),
        (Condition(image_tokens=torch.zeros(1, 4, TOKEN)), "needs negative_image_tokens"),
        (Condition(image_tokens=torch.zeros(3, 4, TOKEN)), "image_tokens must be one, or one for each of the 1 pict"),
        (Condition(text_tokens=torch.zeros(1, 60, TOKEN)), r"must be \[b l d\] with l=77"),
        (Condition(text_tokens=torch.zeros(1, 77, TOKEN), text_mask=torch.zeros(1, 77)), "reads every text token"),
    ],
)
def test_conditions_it_cannot_obey_are_refused(sd15, condition, words):
    with pytest.raises(ValueError, match=words):
        sd15.paint(picture(), PLAN, condition, SETTINGS)


def test_image_tokens_without_an_adapter_are_refused(sd15, condition):
    bare = UNetPainter(sd15.unet, None, sd15.vae, sd15.text_encoder, sd15.tokenizer)
    with pytest.raises(Misfit, match="without an IP-Adapter"):
        bare.paint(picture(), PLAN, condition, SETTINGS)
    bare.paint(picture(), PLAN, condition, SETTINGS.but(insight_scale=0.0, steps=1))


def test_a_mask_for_other_pictures_is_refused(sd15, condition):
    with pytest.raises(ValueError, match="mask must be one, or one for each of the 1 pictures, got 3"):
        sd15.paint(picture(), PLAN, condition, SETTINGS.but(mask=torch.ones(3, 64, 64)))


def test_the_table_finds_it_and_it_is_a_painter(sd15):
    assert painter("unet") is UNetPainter and list(PAINTERS) == ["sana", "unet"] and isinstance(sd15, Painter)
    assert sd15.token_dim == TOKEN
    with pytest.raises(ValueError, match="unknown painter 'flux'; have sana, unet"):
        painter("flux")
