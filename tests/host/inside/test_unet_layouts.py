"""SD1.5 and SDXL with 4, 8 and 9 channels on the host's own classes: equal to headless and to the host's own nodes."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management as mm
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models as supported
import comfy.supported_models_base
import comfy.utils
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

import nodes
from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.contracts import Insight, PaintSettings, Plan
from mindedit_core.hosts.comfy_sampler import edit_sample, kind_of
from mindedit_core.hosts.comfy_text import encode_prompt
from mindedit_core.painters.schedule import EDMSchedule, NoiseSchedule
from mindedit_core.painters.sdxl import encode_text_sdxl
from mindedit_core.painters.unet import UNetPainter
from mindedit_core.systems import tiny_sd

WORDS = 49408  # of the host's tokenizer, which is CLIP's own
TEXT, NEGATIVE = "a small (red) cat, grass", "big tree"
SAMPLING = {"seed": 3, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple"}
SETTINGS = PaintSettings(steps=4, guidance_scale=5.0, image_guidance_scale=1.6, seed=3, negative=NEGATIVE)
EDM = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
LAYOUTS = {  # the host's class, SD1.5 or SDXL, channels in, what else a checkpoint says, the headless schedule
    "sd15": (supported.SD15, "sd15", 4, {}, NoiseSchedule()),
    "sd15-inpaint": (supported.SD15, "sd15", 9, {}, NoiseSchedule()),
    "ip2p": (supported.SD15_instructpix2pix, "sd15", 8, {}, NoiseSchedule()),
    "sdxl": (supported.SDXL, "sdxl", 4, {}, NoiseSchedule()),
    "sdxl-v": (supported.SDXL, "sdxl", 4, {"v_pred": torch.zeros(0)}, NoiseSchedule(prediction="v_prediction")),
    "sdxl-inpaint": (supported.SDXL, "sdxl", 9, {}, NoiseSchedule()),
    "sdxl-ip2p": (supported.SDXL_instructpix2pix, "sdxl", 8, {}, NoiseSchedule()),
    "cosxl": (supported.SDXL, "sdxl", 4, EDM, EDMSchedule()),
    "cosxl-edit": (supported.SDXL_instructpix2pix, "sdxl", 8, EDM, EDMSchedule()),
}
INSTRUCTED = ("ip2p", "sdxl-ip2p", "cosxl-edit")


# The same weights on both sides --------------------------------------------------------------------------------------


def host_config(base, in_channels):
    deep = {"sd15": ([1, 0], [1, 1, 0, 0], 1), "sdxl": ([0, 2], [0, 0, 2, 2], 2)}[base]
    told = {"adm_in_channels": None, "context_dim": tiny_sd.TEXT}
    if base == "sdxl":
        told = {"adm_in_channels": tiny_sd.TEXT_2 + 6 * tiny_sd.SIZE_NUMBERS, "num_classes": "sequential"}
        told["context_dim"] = tiny_sd.TEXT + tiny_sd.TEXT_2
    return {
        "image_size": 32,
        "in_channels": in_channels,
        "out_channels": 4,
        "model_channels": tiny_sd.WIDTH,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "use_spatial_transformer": True,
        **dict(zip(("transformer_depth", "transformer_depth_output", "transformer_depth_middle"), deep, strict=True)),
        "use_linear_in_transformer": base == "sdxl",
        "legacy": False,
        **told,
    }


def host_model(unet, kind, base, said):
    config = kind(host_config(base, unet.config["in_channels"]))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(dict(said), device=torch.device("cpu"))
    places = comfy.utils.unet_to_diffusers(config.unet_config)
    labels = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    for theirs, ours in labels.items():
        places |= {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}
    model.diffusion_model.load_state_dict({places[key]: value for key, value in unet.state_dict().items()})
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def host_text(encoder):
    """A text encoder's tensors by the names that checkpoints give them."""
    named = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    return {key if key.startswith("text_projection") else f"text_model.{key}": value for key, value in named.items()}


def host_clip(base, encoders):
    """The host's own CLIP for this base model, narrower by its own option."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    options = {
        f"clip_{letter}_model_config": {name: getattr(encoder.config, name) for name in names}
        for letter, encoder in zip("lg", encoders, strict=False)
    }
    kinds = {
        "sd15": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }
    target, options = comfy.supported_models_base.ClipTarget(*kinds[base]), {**options, "dtype": torch.float32}
    clip = comfy.sd.CLIP(target, model_options=options)
    for letter, encoder in zip("lg", encoders, strict=False):
        getattr(clip.cond_stage_model, f"clip_{letter}").load_sd(host_text(encoder))
    return clip


@pytest.fixture(scope="module")
def autoencoders():
    """The published shape of Stable Diffusion's autoencoder: the host's VAE, and diffusers' with each scale."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        ).eval()
        theirs = {base: copy.copy(vae.requires_grad_(False)) for base in tiny_sd.SCALES}
        for base, scale in tiny_sd.SCALES.items():
            theirs[base].register_to_config(scaling_factor=scale)
    return comfy.sd.VAE(sd=dict(vae.state_dict())), theirs


@pytest.fixture(scope="module")
def texts():
    """base -> the host's CLIP; encoders and tokenizers of transformers."""
    folder = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    tokenizers = [CLIPTokenizer.from_pretrained(folder, pad_token=pad) for pad in ("<|endoftext|>", "!")]
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = tiny_sd.tiny_text_encoder(WORDS, tiny_sd.TEXT, "quick_gelu").eval()
        second = tiny_sd.tiny_text_encoder(WORDS, tiny_sd.TEXT_2, "gelu", projected=True).eval()
    encoders = {"sd15": [first], "sdxl": [first, second]}
    return {base: (host_clip(base, each), each, tokenizers) for base, each in encoders.items()}


@pytest.fixture(scope="module")
def both(autoencoders, texts):
    """name -> MODEL, CLIP, VAE, IPADAPTER, and the headless painter of the same weights."""
    made = {}

    def build(name):
        if name not in made:
            kind, base, channels, said, schedule = LAYOUTS[name]
            clip, encoders, tokenizers = texts[base]
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                torch.manual_seed(2)
                unet = tiny_sd.tiny_sd_unet(base, channels).eval().requires_grad_(False)
                unet.conv_out.weight.mul_(5.0)  # so that steps matter
                adapter = IPAdapter.for_unet(unet, embed_dim=24, clip_space="tiny").requires_grad_(False)
            pair = (None, unet) if channels == 9 else (unet, None)
            more = {f"{part}_2": two for part, two in (("text_encoder", encoders[-1]), ("tokenizer", tokenizers[1]))}
            painter = UNetPainter(
                *pair,
                autoencoders[1][base],
                encoders[0],
                tokenizers[0],
                adapter,
                schedule,
                **(more if base == "sdxl" else {}),
            )
            model = host_model(unet, kind, base, said)
            nested = {"image_proj": {}, "ip_adapter": {}}
            for key, value in adapter.state_dict().items():
                nested[key.split(".", 1)[0]][key.split(".", 1)[1]] = value
            made[name] = SimpleNamespace(model=model, clip=clip, vae=autoencoders[0], ipadapter=nested, painter=painter)
        return made[name]

    return build


@pytest.fixture
def image(generator):
    return torch.rand(1, 48, 32, 3, generator=generator)


@pytest.fixture
def mask():
    mask = torch.zeros(1, 48, 32)
    mask[:, 8:40, 8:] = 1.0
    return mask


@pytest.fixture(scope="module")
def insight():
    embeds = torch.randn(1, 24, generator=torch.Generator().manual_seed(8))
    return Insight(None, None, image_embeds=embeds, clip_space="tiny")


@pytest.fixture(scope="module")
def classes(pack):
    async def load():
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(load())}


@pytest.fixture(scope="module")
def bridge(classes, insight):
    """The node: parts -> MODEL, positive, negative."""

    def run(parts, scale=0.8):
        node = classes["MindEditIPAdapterBridge"].PREPARE_CLASS_CLONE(None)
        words = {"plan": Plan(TEXT, TEXT), "negative_text": NEGATIVE, "insight": insight}
        window = {"insight_scale": scale, "start": 0.0, "end": 1.0}
        return node.execute(
            model=parts.model, clip=parts.clip, adapter="", ipadapter=parts.ipadapter, **words, **window
        ).result

    return run


def edit(parts, image, mask=None, given=None, **changes):
    model, *conds = given or (parts.model, encode_prompt(parts.clip, TEXT), encode_prompt(parts.clip, NEGATIVE))
    options = {**SAMPLING, "image_guidance_scale": 1.6, "composite": False, **changes}
    return edit_sample(model, *conds, parts.vae, image, mask, **options)


def scaled(parts, edited):
    return parts.model.model.process_latent_in(edited.latent["samples"])


# Headless is native --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", TEXT, "tree " * 60])
def test_two_text_encoders_are_read_as_the_host_reads_them(text, texts):
    clip, encoders, tokenizers = texts["sdxl"]
    found = encode_text_sdxl(encoders[0], tokenizers[0], encoders[1], tokenizers[1], text)
    tokens, extras = encode_prompt(clip, text)[0]
    torch.testing.assert_close(found.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, extras["pooled_output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_native_equals_headless(name, both, bridge, insight, image):
    """From text and insight to the latent, without a mask at full strength."""
    parts = both(name)
    ours = edit(parts, image, given=bridge(parts))
    condition = parts.painter.adapter(insight)
    settings = SETTINGS.but(insight_scale=0.8)
    theirs = parts.painter.paint_latents(image, Plan(TEXT, TEXT), condition, settings)
    torch.testing.assert_close(scaled(parts, ours), theirs, atol=2e-3, rtol=1e-3)
    bare = parts.painter.paint_latents(image, Plan(TEXT, TEXT), condition, settings.but(insight_scale=0.0))
    assert (theirs - bare).abs().max() > 0.02  # the insight counts


@pytest.mark.parametrize("name", ["ip2p", "sdxl", "sdxl-inpaint", "cosxl-edit"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_native_equals_headless_inside_a_mask(name, strength, both, insight, image, mask):
    parts = both(name)
    ours = edit(parts, image, mask, strength=strength)
    condition = parts.painter.adapter(insight)
    settings = SETTINGS.but(insight_scale=0.0, mask=mask, strength=strength, composite=False)
    theirs = parts.painter.paint_latents(image, Plan(TEXT, TEXT), condition, settings)
    torch.testing.assert_close(scaled(parts, ours), theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("scales", [(5.0, 1.0), (1.0, 1.6), (1.0, 1.0)])
def test_scales_of_one_are_the_same_headless(scales, both, insight, image):
    parts, (text, picture) = both("ip2p"), scales
    ours = edit(parts, image, cfg=text, image_guidance_scale=picture)
    settings = SETTINGS.but(insight_scale=0.0, guidance_scale=text, image_guidance_scale=picture)
    theirs = parts.painter.paint_latents(image, Plan(TEXT, TEXT), parts.painter.adapter(insight), settings)
    torch.testing.assert_close(scaled(parts, ours), theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["sdxl", "sdxl-v", "cosxl"])
def test_noise_levels_are_the_hosts(name, both):
    sampling, schedule = both(name).model.get_model_object("model_sampling"), LAYOUTS[name][4]
    torch.testing.assert_close(sampling.sigmas, schedule.sigmas, atol=0, rtol=1e-5)
    for fraction in (0.0, 0.3, 0.99, 1.0):
        assert sampling.percent_to_sigma(fraction) == pytest.approx(schedule.sigma_at(fraction), rel=1e-4)
    sigma, sample, output = torch.tensor(3.0), torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.5)
    assert float(sampling.timestep(sigma)) == pytest.approx(float(schedule.timestep(sigma)), rel=1e-6)
    torch.testing.assert_close(
        schedule.foreseen(sample, output, sigma), sampling.calculate_denoised(sigma, output, sample)
    )


def test_noise_levels_without_signal_are_the_hosts():
    sampling = comfy.model_sampling.ModelSamplingDiscrete(zsnr=True)
    torch.testing.assert_close(NoiseSchedule(zero_snr=True).sigmas, sampling.sigmas, atol=0, rtol=1e-4)


# Equal to the host's own nodes ---------------------------------------------------------------------------------------


def stock_dual(model, conds, null, latent, strength=1.0):
    """SamplerCustomAdvanced on a DualCFGGuider."""
    guider = custom.DualCFGGuider.execute(model, *conds, null, 5.0, 1.6, "regular")[0]
    sigmas = custom.BasicScheduler.execute(model, "simple", 4, strength)[0]
    sampler, noise = custom.KSamplerSelect.execute("euler")[0], custom.RandomNoise.execute(3)[0]
    return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent)[0]["samples"]


@pytest.mark.parametrize("name", INSTRUCTED)
def test_the_bridge_feeds_the_hosts_instructed_nodes(name, both, bridge, image):
    """InstructPixToPixConditioning, DualCFGGuider and SamplerCustomAdvanced get the bit-equal latent."""
    parts = both(name)
    model, positive, negative = given = bridge(parts)
    *conds, latent = InstructPixToPixConditioning.execute(positive, negative, image, parts.vae)
    expected = stock_dual(model, conds, negative, latent)
    assert torch.equal(edit(parts, image, given=given).latent["samples"], expected)
    assert not torch.equal(edit(parts, image).latent["samples"], expected)  # the insight counts


def test_inside_a_mask_the_instructed_nodes_agree_too(both, image, mask):
    parts = both("ip2p")
    positive, negative = encode_prompt(parts.clip, TEXT), encode_prompt(parts.clip, NEGATIVE)
    *conds, _ = InstructPixToPixConditioning.execute(positive, negative, image, parts.vae)
    (latent,) = nodes.VAEEncode().encode(parts.vae, image)
    (latent,) = nodes.SetLatentNoiseMask().set_mask(latent, mask)
    expected = stock_dual(parts.model, conds, negative, latent, strength=0.6)
    assert torch.equal(edit(parts, image, mask, strength=0.6).latent["samples"], expected)


@pytest.mark.parametrize("name", ["sdxl", "sdxl-inpaint"])
def test_the_bridge_feeds_the_hosts_ksampler(name, both, bridge, image, mask):
    parts = both(name)
    model, *conds = given = bridge(parts)
    if name == "sdxl":
        (latent,) = nodes.VAEEncode().encode(parts.vae, image)
        (latent,) = nodes.SetLatentNoiseMask().set_mask(latent, mask)
    else:
        *conds, latent = nodes.InpaintModelConditioning().encode(*conds, image, parts.vae, mask, noise_mask=False)
    (expected,) = nodes.KSampler().sample(model, 3, 4, 5.0, "euler", "simple", *conds, latent, denoise=1.0)
    assert torch.equal(edit(parts, image, mask, given=given).latent["samples"], expected["samples"])


def test_a_prompt_saved_before_there_was_a_second_scale_still_runs(classes, both, image):
    """The node without the appended input takes the default."""
    parts, node = both("ip2p"), classes["MindEditEditSampler"].PREPARE_CLASS_CLONE(None)
    conds = encode_prompt(parts.clip, TEXT), encode_prompt(parts.clip, NEGATIVE)
    old = {"strength": 1.0, "composite": True, **SAMPLING}
    found = node.execute(parts.model, *conds, parts.vae, image, **old).result[0]
    assert torch.equal(found, edit(parts, image, image_guidance_scale=1.5).image)
    named = {each.id: each for each in classes["MindEditEditSampler"].GET_SCHEMA().inputs}
    assert named["image_guidance_scale"].default == 1.5


def test_what_a_user_conditioned_before_is_replaced(both, image):
    parts = both("ip2p")
    conds = encode_prompt(parts.clip, TEXT), encode_prompt(parts.clip, NEGATIVE)
    *conditioned, _ = InstructPixToPixConditioning.execute(*conds, 1 - image, parts.vae)
    expected = edit(parts, image).latent["samples"]
    assert torch.equal(edit(parts, image, given=(parts.model, *conditioned)).latent["samples"], expected)
    assert "concat_latent_image" not in conds[0][0][1]


# What a MODEL is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_host_says_what_a_model_is(name, both):
    expected = {4: "img2img", 8: "instruct", 9: "inpaint"}[LAYOUTS[name][2]]
    assert kind_of(both(name).model) == expected


FULL_SIZE = {
    "sd15": ([1, 1, 1, 1, 1, 1, 0, 0], [1] * 9 + [0] * 3, 1, [1, 2, 4, 4], None, 768),
    "sdxl": ([0, 0, 2, 2, 10, 10], [0, 0, 0, 2, 2, 2, 10, 10, 10], 10, [1, 2, 4], 2816, 2048),
}


@pytest.mark.parametrize(
    ("base", "channels", "said", "expected"),
    [
        ("sd15", 4, {}, "SD15"),
        ("sd15", 8, {}, "SD15_instructpix2pix"),
        ("sd15", 9, {}, "SD15"),
        ("sdxl", 4, {}, "SDXL"),
        ("sdxl", 8, {}, "SDXL_instructpix2pix"),
        ("sdxl", 8, EDM, "SDXL_instructpix2pix"),
        ("sdxl", 9, {}, "SDXL"),
    ],
)
def test_published_shapes_are_detected_as_the_classes_tested_here(base, channels, said, expected):
    """Of full size, but without weights: the host looks at names and shapes."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    down, up, middle, levels, told, width = FULL_SIZE[base]
    depth = {"transformer_depth": list(down), "transformer_depth_output": list(up), "transformer_depth_middle": middle}
    small = {**host_config(base, channels), **depth, "channel_mult": levels, "num_res_blocks": [2] * len(levels)}
    heads = {"num_heads": -1, "num_head_channels": 64} if base == "sdxl" else {"num_heads": 8}
    full = {**small, **heads, "model_channels": 320, "adm_in_channels": told, "context_dim": width}
    unet = UNetModel(**full, device="meta", operations=comfy.ops.disable_weight_init)
    config = comfy.model_detection.model_config_from_unet({**unet.state_dict(), **said}, "")
    assert type(config).__name__ == expected and config.inpaint_model() == (channels > 4)
    if said:
        assert config.model_type(said) is comfy.model_base.ModelType.V_PREDICTION_EDM


# Laws ----------------------------------------------------------------------------------------------------------------


def test_laws_of_an_instructed_model(both, image, mask):
    parts = both("cosxl-edit")
    before = {key: value.clone() for key, value in parts.model.model.state_dict().items()}
    options = repr(parts.model.model_options)
    assert torch.equal(edit(parts, image, mask, strength=0.0).image, image)
    assert torch.equal(edit(parts, image, torch.zeros(1, 48, 32)).image, image)
    one, two, three = (edit(parts, image, steps=2, seed=seed).image for seed in (7, 7, 8))
    assert torch.equal(one, two) and not torch.equal(one, three)
    inside = edit(parts, image, mask, steps=2, composite=True).image
    assert torch.equal(inside[mask == 0], image[mask == 0]) and not torch.equal(inside[mask == 1], image[mask == 1])
    assert repr(parts.model.model_options) == options
    assert all(torch.equal(before[key], value) for key, value in parts.model.model.state_dict().items())


def test_three_branches_are_one_batch_and_a_scale_of_one_saves_its_branch(both, image):
    parts = both("ip2p")
    rows = []
    hook = parts.model.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for scales in ((5.0, 1.6), (5.0, 1.0), (1.0, 1.0)):
        edit(parts, image, steps=1, cfg=scales[0], image_guidance_scale=scales[1])
    hook.remove()
    assert rows == [3, 2, 1]


def test_batches_and_odd_sizes_are_painted(both, generator):
    parts = both("sdxl-ip2p")
    images = torch.rand(2, 37, 21, 3, generator=generator)
    edited = edit(parts, images, steps=1)
    assert edited.image.shape == images.shape and edited.latent["samples"].shape == (2, 4, 5, 3)


def test_progress_and_interrupt(both, image, monkeypatch):
    parts, seen = both("ip2p"), []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    expected = edit(parts, image, steps=3).image
    assert seen[0] == (1, 3) and seen[-1] == (3, 3)  # the host skips steps that follow too soon
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        edit(parts, image, steps=3)
    assert torch.equal(edit(parts, image, steps=3).image, expected)
