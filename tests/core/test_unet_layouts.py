"""SDXL, InstructPix2Pix and CosXL-edit headless: latents equal diffusers' own pipelines, and the laws of two scales."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.contracts import Condition, Insight, Misfit, PaintSettings, Plan
from mindedit_core.painters.guidance import FULL, NULL, PICTURE, branches
from mindedit_core.painters.latents import encode, encode_unscaled
from mindedit_core.painters.schedule import EDMSchedule, NoiseSchedule, cpu_noise, schedule_from
from mindedit_core.painters.sdxl import encode_text_sdxl
from mindedit_core.painters.spatial import grey_out
from mindedit_core.painters.text import encode_text
from mindedit_core.painters.unet import UNetPainter
from mindedit_core.systems.stable_diffusion import load_painter
from mindedit_core.systems.tiny_sd import BETAS, COSXL, SCHEDULER, save_tiny_sd

SETTINGS = PaintSettings(steps=5, guidance_scale=5.0, image_guidance_scale=1.6, negative="blue tree", seed=7)
PLAN = Plan(raw="", text="a small red cat")
V_PREDICTION = {**SCHEDULER, "prediction_type": "v_prediction"}
LAYOUTS = {
    "ip2p": ("sd15", 8, SCHEDULER),
    "sdxl": ("sdxl", 4, SCHEDULER),
    "sdxl-v": ("sdxl", 4, V_PREDICTION),
    "sdxl-inpaint": ("sdxl", 9, SCHEDULER),
    "sdxl-ip2p": ("sdxl", 8, SCHEDULER),
    "cosxl-edit": ("sdxl", 8, COSXL),
}


@pytest.fixture(scope="module")
def painters(tmp_path_factory):
    """name -> painter, from its folder; what its UNet says is made large, so that steps matter."""
    made = {}

    def painter(name: str) -> UNetPainter:
        if name not in made:
            folder = save_tiny_sd(tmp_path_factory.mktemp(name), *LAYOUTS[name])
            made[name] = load_painter(*((None, folder) if "inpaint" in name else (folder, None)))
            unet = made[name].unet or made[name].unet_inpaint
            unet.conv_out.weight.mul_(5.0)
        return made[name]

    return painter


def picture(height: int = 64, width: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(height * width + batch))


def square_mask(height: int = 64, width: int = 64) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2, width // 4 :] = 1.0
    return mask


# Against diffusers' pipelines ----------------------------------------------------------------------------------------


def euler_scheduler(prediction: str = "epsilon") -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing", prediction_type=prediction)


class EDMOnOurSteps(EDMEulerScheduler):
    """CosXL's scheduler on the noise levels of the host's `simple`; its own are as far apart, but end at sigma_min."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None):
        super().set_timesteps(num_inference_steps, device)
        self.sigmas = EDMSchedule().simple(num_inference_steps)
        self.timesteps = self.precondition_noise(self.sigmas[:-1])


def pipeline(kind, painter: UNetPainter, scheduler, **more):
    parts = {"vae": painter.vae, "text_encoder": painter.text_encoder, "tokenizer": painter.tokenizer}
    if painter.text_encoder_2 is None:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        parts |= {"text_encoder_2": painter.text_encoder_2, "tokenizer_2": painter.tokenizer_2}
        more["add_watermarker"] = False
    pipe = kind(**parts, unet=painter.unet or painter.unet_inpaint, scheduler=scheduler, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked(steps: int = 5) -> dict:
    words = {"prompt": PLAN.text, "negative_prompt": SETTINGS.negative, "guidance_scale": 5.0}
    return {**words, "num_inference_steps": steps, "output_type": "latent"}


def noise_alone(painter: UNetPainter, scheduler) -> torch.Tensor:
    """Where the host starts without a source, over diffusers' init_noise_sigma."""
    scheduler.set_timesteps(5)
    noise = cpu_noise((1, 4, 8, 8), SETTINGS.seed)
    return painter.schedule.start(noise, torch.zeros(1, 4, 8, 8), painter.schedule.sigmas[-1]) / (
        scheduler.init_noise_sigma
    )


@pytest.mark.parametrize("name", ["ip2p", "sdxl-ip2p", "cosxl-edit"])
def test_instructed_painting_equals_diffusers_pipeline(name, painters):
    painter = painters(name)
    kind = StableDiffusionInstructPix2PixPipeline if name == "ip2p" else StableDiffusionXLInstructPix2PixPipeline
    more = {"is_cosxl_edit": name == "cosxl-edit"} if name != "ip2p" else {}
    size = {"height": 64, "width": 64} if name != "ip2p" else {}
    edm = {key: value for key, value in COSXL.items() if key != "_class_name"}
    scheduler = EDMOnOurSteps(**edm) if name == "cosxl-edit" else euler_scheduler()
    pipe = pipeline(kind, painter, scheduler, **more)
    image, latents = picture(), noise_alone(painter, scheduler)
    found = painter.paint_latents(image, PLAN, Condition(), SETTINGS)
    expected = pipe(image=image.movedim(-1, 1), image_guidance_scale=1.6, latents=latents, **size, **asked()).images
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    other = painter.paint_latents(image, PLAN, Condition(), SETTINGS.but(image_guidance_scale=1.0))
    assert (found - other).abs().max() > 0.05  # the second scale counts


@pytest.mark.parametrize("name", ["sdxl", "sdxl-v"])
def test_sdxl_img2img_equals_diffusers_pipeline(name, painters):
    painter = painters(name)
    pipe = pipeline(StableDiffusionXLImg2ImgPipeline, painter, euler_scheduler(painter.schedule.prediction))
    image = picture(64, 48)
    found = painter.paint_latents(image, PLAN, Condition(), SETTINGS.but(strength=0.5))  # the last 5 of 10 steps
    expected = pipe(
        image=encode(painter.vae, image),
        generator=torch.Generator().manual_seed(SETTINGS.seed),
        strength=0.5,
        **asked(10),
    ).images
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_sdxl_inpainting_equals_diffusers_pipeline(painters):
    painter, scheduler, image, mask = painters("sdxl-inpaint"), euler_scheduler(), picture(), square_mask()
    pipe = pipeline(StableDiffusionXLInpaintPipeline, painter, scheduler)
    found = painter.paint_latents(image, PLAN, Condition(), SETTINGS.but(mask=mask))
    # diffusers starts from noise * sigma_max; the host from latents + noise * sqrt(1 + sigma_max^2)
    start = encode(painter.vae, image) / euler_started(scheduler) + noise_alone(painter, scheduler)
    expected = pipe(
        image=image.movedim(-1, 1),
        mask_image=mask[:, None],
        masked_image_latents=encode(painter.vae, grey_out(image, mask)),
        latents=start,
        height=64,
        width=64,
        strength=1.0,
        **asked(),
    ).images
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def euler_started(scheduler: EulerDiscreteScheduler) -> float:
    scheduler.set_timesteps(5)
    return float(scheduler.init_noise_sigma)


def test_the_published_steps_of_cosxl_are_exponential():
    """What `simple` strides over are diffusers' own levels of 1000 steps."""
    theirs = EDMEulerScheduler(**{key: value for key, value in COSXL.items() if key != "_class_name"})
    theirs.set_timesteps(1000)
    torch.testing.assert_close(EDMSchedule().sigmas.flip(0), theirs.sigmas[:-1], rtol=1e-5, atol=0)


# What an instructed UNet is given ------------------------------------------------------------------------------------


@pytest.fixture
def seen(painters):
    """Runs one step of a painter; returns what its UNet got: pixels, timestep, text, added conditions."""

    def run(name, image, settings, condition=None):
        calls, painter = [], painters(name)
        unet = painter.unet or painter.unet_inpaint
        hook = unet.register_forward_pre_hook(lambda _, args, more: calls.append((*args, more)), with_kwargs=True)
        painter.paint_latents(image, PLAN, condition or Condition(), settings)
        hook.remove()
        return painter, calls[0]

    return run


@pytest.mark.parametrize("name", ["ip2p", "cosxl-edit"])
def test_three_branches_in_one_batch_the_unconditional_first(name, seen):
    painter, (pixels, _, text, _) = seen(name, picture(), SETTINGS)
    source = encode_unscaled(painter.vae, picture()) if name == "ip2p" else encode(painter.vae, picture())
    assert torch.equal(pixels[:, 4:], torch.cat([torch.zeros_like(source), source, source]))
    assert torch.equal(pixels[0, :4], pixels[1, :4]) and torch.equal(pixels[0, :4], pixels[2, :4])
    if name == "ip2p":
        no, yes = (encode_text(painter.text_encoder, painter.tokenizer, t) for t in (SETTINGS.negative, PLAN.text))
        assert torch.equal(text, torch.cat([no, no, yes]))


@pytest.mark.parametrize(
    ("text", "image", "expected"),
    [
        (5.0, 1.5, (NULL, PICTURE, FULL)),
        (1.0, 1.5, (NULL, PICTURE, FULL)),
        (5.0, 1.0, (PICTURE, FULL)),
        (1.0, 1.0, (FULL,)),
    ],
)
def test_a_branch_of_no_weight_is_left_out(text, image, expected, seen):
    settings = SETTINGS.but(guidance_scale=text, image_guidance_scale=image, steps=1)
    assert branches(settings, two_scales=True) == expected
    _, (pixels, *_) = seen("ip2p", picture(), settings)
    assert len(pixels) == len(expected)
    assert branches(settings, two_scales=False) == expected[-2 if text != 1.0 else -1 :]


def test_a_scale_of_one_is_the_limit_of_scales(painters):
    painter = painters("ip2p")
    for name in ("guidance_scale", "image_guidance_scale"):
        one, near = (
            painter.paint_latents(picture(), PLAN, Condition(), SETTINGS.but(**{name: value}))
            for value in (1.0, 1.0 + 1e-5)
        )
        torch.testing.assert_close(one, near, atol=1e-3, rtol=0)


def test_sdxl_is_told_the_padded_size_and_the_pooled_text(seen):
    painter, (_, _, text, more) = seen("sdxl", picture(50, 61), SETTINGS)
    added = more["added_cond_kwargs"]
    assert added["time_ids"].tolist() == [[56, 64, 0, 0, 56, 64]] * 2
    both = [
        encode_text_sdxl(painter.text_encoder, painter.tokenizer, painter.text_encoder_2, painter.tokenizer_2, words)
        for words in (SETTINGS.negative, PLAN.text)
    ]
    assert torch.equal(text, torch.cat([each.tokens for each in both])) and text.shape[2] == painter.token_dim
    assert torch.equal(added["text_embeds"], torch.cat([each.pooled for each in both]))


def test_text_tokens_of_a_bridge_win_but_the_pooled_text_is_the_plans(seen):
    tokens = torch.randn(1, 77, 80, generator=torch.Generator().manual_seed(4))
    painter, (_, _, text, more) = seen("sdxl", picture(), SETTINGS, Condition(text_tokens=tokens))
    encoders = painter.text_encoder, painter.tokenizer, painter.text_encoder_2, painter.tokenizer_2
    assert torch.equal(text[1:], tokens)
    assert torch.equal(more["added_cond_kwargs"]["text_embeds"][1:], encode_text_sdxl(*encoders, PLAN.text).pooled)


# Laws ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_laws_of_every_layout(name, painters):
    painter, image = painters(name), picture(50, 61, batch=2)
    mask = square_mask(50, 61)
    plans = [PLAN, Plan("", "a big tree")]
    quick = SETTINGS.but(steps=2)
    assert torch.equal(painter.paint(image, plans, Condition(), quick.but(strength=0.0, mask=mask)), image)
    assert torch.equal(painter.paint(image, plans, Condition(), quick.but(mask=torch.zeros(1, 50, 61))), image)
    found, again, other = (painter.paint(image, plans, Condition(), quick.but(seed=seed)) for seed in (1, 1, 2))
    assert found.shape == image.shape and torch.equal(found, again) and not torch.equal(found, other)
    inside = painter.paint(image, plans, Condition(), quick.but(mask=mask))
    kept = mask.expand(2, -1, -1) == 0
    assert torch.equal(inside[kept], image[kept]) and not torch.equal(inside[~kept], image[~kept])


@pytest.mark.parametrize("name", ["ip2p", "cosxl-edit"])
def test_a_mask_holds_an_instructed_painter(name, painters):
    painter, image, mask = painters(name), picture(), torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1.0
    held = painter.paint_latents(image, PLAN, Condition(), SETTINGS.but(mask=mask))
    source = encode(painter.vae, image)
    torch.testing.assert_close(held[..., :4], source[..., :4], atol=1e-4, rtol=0)
    assert (held[..., 4:] - source[..., 4:]).abs().mean() > 0.05


def test_an_instructed_painter_starts_from_noise_alone_only_at_full_strength(painters):
    painter, image = painters("ip2p"), picture()
    calls = []
    hook = painter.unet.register_forward_pre_hook(lambda _, args: calls.append(args[0][:1, :4]))
    for strength in (1.0, 0.5):
        painter.paint_latents(image, PLAN, Condition(), SETTINGS.but(strength=strength))
    hook.remove()
    noise, schedule = cpu_noise((1, 4, 8, 8), SETTINGS.seed), painter.schedule
    torch.testing.assert_close(calls[0], noise, atol=1e-5, rtol=0)  # scaled to unit variance
    sigma = schedule.for_strength(5, 0.5)[0]
    expected = schedule.scaled(encode(painter.vae, image) + noise * sigma, sigma)
    torch.testing.assert_close(calls[5], expected, atol=1e-5, rtol=0)
    assert painter.reads_source() and not painters("sdxl").reads_source()


@pytest.mark.parametrize("name", ["ip2p", "sdxl"])
def test_only_the_branch_with_text_sees_the_insight(name, painters):
    """As diffusers' pipelines, which give negative image tokens to both unconditional branches."""
    parts = vars(painters(name))
    torch.manual_seed(5)
    adapter = IPAdapter.for_unet(parts["unet"], embed_dim=24).requires_grad_(False)
    names = ("unet", "unet_inpaint", "vae", "text_encoder", "tokenizer")
    second = {key: parts[key] for key in ("text_encoder_2", "tokenizer_2")}
    painter = UNetPainter(*(parts[key] for key in names), adapter, **second)
    tokens = []
    keys = adapter.ip_adapter["1"].to_k_ip
    hook = keys.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    embeds = torch.randn(1, 24, generator=torch.Generator().manual_seed(8))
    condition = adapter(Insight(None, None, image_embeds=embeds))
    found = painter.paint_latents(picture(), PLAN, condition, SETTINGS)
    hook.remove()
    yes, no = condition.image_tokens, condition.negative_image_tokens
    assert torch.equal(tokens[0], torch.cat([no, no, yes] if name == "ip2p" else [no, yes]))
    bare = painter.paint_latents(picture(), PLAN, Condition(), SETTINGS)
    off = painter.paint_latents(picture(), PLAN, condition, SETTINGS.but(insight_scale=0.0))
    assert torch.equal(off, bare) and not torch.equal(found, bare)


# Schedules and misfits -----------------------------------------------------------------------------------------------


def test_schedules_are_read_from_published_configurations():
    assert schedule_from(SCHEDULER, "x") == NoiseSchedule()
    assert schedule_from(V_PREDICTION, "x").prediction == "v_prediction" and schedule_from(V_PREDICTION, "x") != (
        NoiseSchedule()
    )
    assert schedule_from(COSXL, "x") == EDMSchedule(0.002, 120.0) != NoiseSchedule()
    continuous = {**SCHEDULER, "timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_max": 120.0}
    assert schedule_from(continuous, "x") == EDMSchedule()
    zero = schedule_from({**V_PREDICTION, "rescale_betas_zero_snr": True}, "x")
    assert zero.sigmas[-1] > 4000 and torch.isfinite(zero.sigmas).all()
    theirs = EulerDiscreteScheduler(**BETAS, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    theirs.set_timesteps(1000)
    torch.testing.assert_close(zero.sigmas[:-1].flip(0), theirs.sigmas[1:-1], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {**SCHEDULER, "prediction_type": "sample"},
        {**SCHEDULER, "beta_schedule": "squaredcos_cap_v2"},
        {**COSXL, "sigma_data": 0.5, "prediction_type": "epsilon"},  # Playground v2.5
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    ],
)
def test_an_unknown_schedule_is_refused_in_a_sentence(config):
    with pytest.raises(Misfit, match="here.json: painted is on scaled_linear .* found .*; use a Stable Diffusion"):
        schedule_from(config, "here.json")


def test_unets_and_text_encoders_of_different_kinds_are_refused(painters):
    sd, xl = painters("ip2p"), painters("sdxl")
    with pytest.raises(Misfit, match="reads text_encoder and text_encoder_2, got one; take UNet and text encoders"):
        UNetPainter(xl.unet, None, xl.vae, xl.text_encoder, xl.tokenizer)
    second = {"text_encoder_2": xl.text_encoder_2, "tokenizer_2": xl.tokenizer_2}
    with pytest.raises(Misfit, match="reads text_encoder alone, got two"):
        UNetPainter(sd.unet, None, sd.vae, sd.text_encoder, sd.tokenizer, **second)
    with pytest.raises(Misfit, match="the UNet reads text tokens of 32, the text encoders write 48"):
        UNetPainter(sd.unet, None, sd.vae, xl.text_encoder_2, sd.tokenizer)
    with pytest.raises(Misfit, match="is it the refiner"):
        UNetPainter(refiner(xl.unet), None, xl.vae, xl.text_encoder, xl.tokenizer, **second)


SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_the_published_sizes_fit(painters):
    """SD1.5 and SDXL of full size, without weights."""
    with torch.device("meta"):
        clip_l = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=1, num_attention_heads=12))
        big = {"hidden_size": 1280, "projection_dim": 1280, "num_hidden_layers": 1, "num_attention_heads": 20}
        second = CLIPTextModelWithProjection(CLIPTextConfig(**big))
        sd15 = [UNet2DConditionModel(in_channels=n, cross_attention_dim=768, attention_head_dim=8) for n in (8, 9)]
        sdxl = [UNet2DConditionModel(in_channels=n, **SDXL) for n in (4, 9)]
    vae, tokenizer = painters("sdxl").vae, painters("sdxl").tokenizer
    assert UNetPainter(*sd15, vae, clip_l, tokenizer).token_dim == 768
    both = UNetPainter(*sdxl, vae, clip_l, tokenizer, text_encoder_2=second, tokenizer_2=tokenizer)
    assert both.token_dim == 2048 and not both.reads_source()


def refiner(unet):
    """SDXL's refiner is told five numbers: an aesthetic score, and no target size."""
    told = unet.config["projection_class_embeddings_input_dim"] - unet.config["addition_time_embed_dim"]
    return UNet2DConditionModel.from_config({**unet.config, "projection_class_embeddings_input_dim": told})
