"""Every layout of h94/IP-Adapter in the host's SD1.5 and SDXL UNet: equal to diffusers, off bit for bit, managed."""

from __future__ import annotations

import copy

import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import comfy.utils
import pytest
import torch
from diffusers import UNet2DConditionModel

from mindedit_core.contracts import Insight, Misfit
from mindedit_core.hosts.comfy_adapter import attach, cross_attentions, load_adapter
from mindedit_core.hosts.comfy_managed import unmanaged

WIDTH, POOLED, STATES = 24, 8, 257
ADM = POOLED + 6 * 256  # SDXL: pooled text and six sizes, each embedded
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
LEVELS = {"sd15": (32, 64, 64, 64), "sdxl": (32, 64, 128)}
LAYERS = {"sd15": 16, "sdxl": 70}
HOST = {  # as model_detection finds them, narrow; SDXL's class makes its heads 64 wide
    "sd15": {
        "channel_mult": [1, 2, 2, 2],
        "num_res_blocks": [2, 2, 2, 2],
        "num_heads": 8,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    },
    "sdxl": {
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": ADM,
    },
}
SHARED = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "context_dim": WIDTH}
SHARED |= {"use_spatial_transformer": True, "legacy": False}
THEIRS = {
    "sd15": {"attention_head_dim": 8},
    "sdxl": {
        "down_block_types": ("DownBlock2D", CROSS[0], CROSS[0]),
        "up_block_types": (CROSS[1], CROSS[1], "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": ADM,
    },
}
READS = {"base": (1024,), "vit-G": (1280,), "plus": (STATES, 1280), "full-face": (STATES, 1280)}
CASES = [("sd15", kind) for kind in READS] + [("sdxl", kind) for kind in READS if kind != "full-face"]


# Both sides ----------------------------------------------------------------------------------------------------------


def diffusers_unet(base):
    torch.manual_seed(0)
    size = {"block_out_channels": LEVELS[base], "cross_attention_dim": WIDTH, "sample_size": 16, "norm_num_groups": 32}
    return UNet2DConditionModel(**size, **THEIRS[base]).eval().requires_grad_(False)


def host_model(base, state_dict):
    kind = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}[base]
    model_config = kind({**SHARED, **HOST[base]})
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model({}, device=torch.device("cpu"))
    places = comfy.utils.unet_to_diffusers(model_config.unet_config)
    model.diffusion_model.load_state_dict({places[key]: value for key, value in state_dict.items()})
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def sides():
    """base -> (diffusers' UNet, the host's MODEL of the same weights), each made once."""
    made = {}

    def get(base):
        if base not in made:
            with torch.inference_mode(False):
                theirs = diffusers_unet(base)
            made[base] = theirs, host_model(base, theirs.state_dict())
        return made[base]

    return get


def image_proj(kind: str, random) -> dict[str, torch.Tensor]:
    """Published keys at the published widths of what is read; the rest narrow."""
    if kind in ("base", "vit-G"):
        return {
            "proj.weight": random(4 * WIDTH, READS[kind][0]),
            "proj.bias": random(4 * WIDTH),
            **norm("norm", random),
        }
    if kind == "full-face":
        linears = {"proj.0.weight": random(1280, 1280), "proj.0.bias": random(1280)}
        linears |= {"proj.2.weight": random(WIDTH, 1280), "proj.2.bias": random(WIDTH)}
        return linears | norm("proj.3", random)
    tensors = {"latents": random(1, 16, 96), "proj_in.weight": random(96, 1280), "proj_in.bias": random(96)}
    tensors |= {"proj_out.weight": random(WIDTH, 96), "proj_out.bias": random(WIDTH), **norm("norm_out", random)}
    for layer in (f"layers.{index}" for index in range(4)):
        tensors |= norm(f"{layer}.0.norm1", random, 96) | norm(f"{layer}.0.norm2", random, 96)
        tensors |= {f"{layer}.0.to_q.weight": random(128, 96), f"{layer}.0.to_kv.weight": random(256, 96)}
        tensors |= {f"{layer}.0.to_out.weight": random(96, 128), **norm(f"{layer}.1.0", random, 96)}
        tensors |= {f"{layer}.1.1.weight": random(384, 96), f"{layer}.1.3.weight": random(96, 384)}
    return tensors


def norm(name, random, width=WIDTH):
    return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}


def random_adapter(unet, kind, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        return scale * torch.randn(shape, generator=generator)

    layers = {}
    for k, name in enumerate(unet.attn_processors):
        if ".attn2." in name:
            attention = unet.get_submodule(name.removesuffix(".processor"))
            for side in "kv":
                layers[f"{k}.to_{side}_ip.weight"] = random(*getattr(attention, f"to_{side}").weight.shape)
    return {"image_proj": image_proj(kind, random), "ip_adapter": layers}


def insight_for(kind, batch=1, **fields):
    generator = torch.Generator().manual_seed(2)
    embeds, negative = (torch.randn(batch, *READS[kind], generator=generator) for _ in range(2))
    if kind in ("base", "vit-G"):
        return Insight(None, None, image_embeds=embeds, **fields), torch.zeros_like(embeds)
    return Insight(None, None, image_embeds=embeds, negative_image_embeds=negative, **fields), negative


def inputs(rows, seed=3):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, 4, 16, 16, generator=generator)
    return latents, torch.full((rows,), 500.0), torch.randn(rows, 7, WIDTH, generator=generator)


def adm(base, rows):
    """(the host's y, diffusers' added_cond_kwargs) of one pooled text and six sizes."""
    if base == "sd15":
        return None, {}
    pooled = torch.randn(rows, POOLED, generator=torch.Generator().manual_seed(6))
    sizes = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]]).expand(rows, 6)
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    embedded = torch.cat([Timestep(256)(column) for column in sizes.T], dim=1)
    return torch.cat([pooled, embedded], dim=1), {"text_embeds": pooled, "time_ids": sizes}


def attention(model, place):
    unet = model.model.diffusion_model
    block = unet.middle_block if place.block == "middle" else getattr(unet, f"{place.block}_blocks")[place.number]
    return next(layer for layer in block if hasattr(layer, "transformer_blocks")).transformer_blocks[place.index].attn2


def record(module, into, name):
    return module.register_forward_hook(lambda _module, _inputs, output: into.__setitem__(name, output))


def sample(model, *, steps=2, seed=5):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    text = torch.randn(2, 1, 7, WIDTH, generator=generator)
    positive, negative = ([[each, {"pooled_output": each[:, 0, :POOLED]}]] for each in text)
    latent = torch.zeros_like(noise)
    rest = {"disable_pbar": True, "seed": seed}
    return comfy.sample.sample(model, noise, steps, 3.0, "euler", "simple", positive, negative, latent, **rest)


# The laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "kind"), CASES)
def test_each_cross_attention_equals_diffusers(base, kind, sides):
    """Uncond row first: zeros or the zero image's states, THROUGH image_proj."""
    theirs, model = sides(base)
    tensors = random_adapter(theirs, kind)
    with torch.inference_mode(False):
        reference = copy.deepcopy(theirs)
        reference._load_ip_adapter_weights([copy.deepcopy(tensors)])
    for processor in reference.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.7]
    x, timestep, text = inputs(rows=2)
    y, added = adm(base, rows=2)
    insight, negative = insight_for(kind)
    rows = torch.cat([negative, insight.image_embeds])[:, None]
    seen_there, seen_here, places = {}, {}, cross_attentions(model)
    names = [name.removesuffix(".processor") for name in theirs.attn_processors if ".attn2." in name]
    for name in names:
        record(reference.get_submodule(name), seen_there, name)
    reference(x, timestep, text, added_cond_kwargs={**added, "image_embeds": [rows]})
    patched = attach(model, load_adapter(tensors), insight, scale=0.7)
    hooks = [record(attention(model, place).to_out, seen_here, n) for n, place in zip(names, places, strict=True)]
    options = {**patched.model_options["transformer_options"], "cond_or_uncond": [1, 0], "sigmas": torch.ones(1)}
    model.model.diffusion_model(x, timestep, context=text, y=y, transformer_options=options)
    for hook in hooks:
        hook.remove()
    assert len(names) == LAYERS[base]
    for name in names:
        torch.testing.assert_close(
            seen_here[name], seen_there[name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    ("base", "kind"), [("sd15", "plus"), ("sd15", "full-face"), ("sdxl", "vit-G"), ("sdxl", "plus")]
)
def test_off_is_the_unpatched_model_and_on_leaves_it_untouched(base, kind, sides):
    theirs, model = sides(base)
    handle, (insight, _) = load_adapter(random_adapter(theirs, kind)), insight_for(kind)
    before, bare = (repr(model.model_options), repr(model.patches)), sample(model)
    assert torch.equal(sample(attach(model, handle, insight, scale=0.0)), bare)
    assert torch.equal(sample(attach(model, handle, insight, start=1.0, end=1.0)), bare)
    assert not torch.equal(sample(attach(model, handle, insight)), bare)
    assert (repr(model.model_options), repr(model.patches)) == before and torch.equal(sample(model), bare)


@pytest.mark.parametrize(("base", "kind"), [("sd15", "plus"), ("sd15", "full-face"), ("sdxl", "plus")])
def test_tokens_keys_and_values_are_made_once_a_run(base, kind, sides):
    theirs, model = sides(base)
    handle, (insight, _) = load_adapter(random_adapter(theirs, kind)), insight_for(kind)
    calls = []
    for name, module in handle.bridge.named_modules():
        if name == "image_proj" or name.endswith("_ip"):
            module.register_forward_hook(lambda _m, _i, _o, name=name: calls.append(name))
    sample(attach(model, handle, insight), steps=2)
    numbers = range(1, 2 * LAYERS[base], 2)
    assert sorted(calls) == sorted(["image_proj", *(f"ip_adapter.{k}.to_{side}_ip" for k in numbers for side in "kv")])


@pytest.mark.parametrize("kind", READS)
def test_weights_are_managed_as_they_are_stored(kind, sides):
    """fp16 weights stay fp16, are read from any leaf, and give what fp32 weights of the same numbers give."""
    theirs, model = sides("sd15")
    tensors = random_adapter(theirs, kind)
    half = {part: {key: value.half() for key, value in each.items()} for part, each in tensors.items()}
    single = {part: {key: value.float() for key, value in each.items()} for part, each in half.items()}
    handle, insight = load_adapter(half), insight_for(kind)[0]
    assert unmanaged(handle.patcher.model) == []
    assert {parameter.dtype for parameter in handle.bridge.parameters()} == {torch.float16}
    assert handle.get_ram_usage() == sum(p.numel() * p.element_size() for p in handle.bridge.parameters())
    expected = sample(attach(model, load_adapter(single), insight), steps=1)
    torch.testing.assert_close(sample(attach(model, handle, insight), steps=1), expected, atol=1e-5, rtol=1e-5)


def test_a_batch_of_states_serves_its_pictures(sides):
    theirs, model = sides("sd15")
    handle, (insight, _) = load_adapter(random_adapter(theirs, "plus")), insight_for("plus", batch=2)
    patch = attach(model, handle, insight).model_options["transformer_options"]["patches_replace"]["attn2"][
        ("input", 4)
    ]
    q = torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(0))
    whole = patch(q, q, q, {"n_heads": 8, "cond_or_uncond": [1, 0]})
    for row, (index, flag) in enumerate([(0, 1), (1, 1), (0, 0), (1, 0)]):
        fields = (insight.image_embeds[index : index + 1], insight.negative_image_embeds[index : index + 1])
        one = Insight(None, None, image_embeds=fields[0], negative_image_embeds=fields[1])
        alone = attach(model, handle, one).model_options["transformer_options"]["patches_replace"]["attn2"]
        part = q[row : row + 1]
        found = alone[("input", 4)](part, part, part, {"n_heads": 8, "cond_or_uncond": [flag]})
        torch.testing.assert_close(whole[row : row + 1], found, atol=1e-6, rtol=1e-5)


def test_without_the_zero_image_zeros_take_its_place_and_that_is_said(sides, caplog):
    theirs, model = sides("sd15")
    handle, (insight, _) = load_adapter(random_adapter(theirs, "plus")), insight_for("plus")
    bare = Insight(None, None, image_embeds=insight.image_embeds)
    zeros = Insight(None, None, image_embeds=bare.image_embeds, negative_image_embeds=torch.zeros(1, STATES, 1280))
    expected = sample(attach(model, handle, zeros))
    assert "zero image" not in caplog.text
    assert torch.equal(sample(attach(model, handle, bare)), expected)
    assert "CLIP states of a zero image" in caplog.text
    assert not torch.equal(sample(attach(model, handle, insight)), expected)


# Misfits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        (
            "plus",
            (1, 1024),
            r"plus, tokens of 24, reads 257x1280 of ViT-H\) .*insight is \[1, 1024\].*a base IP-Adapter",
        ),
        (
            "plus",
            (1, STATES, 1664),
            r"is \[1, 257, 1664\] .*; use a plus or full-face IP-Adapter that reads states of 1664",
        ),
        (
            "base",
            (1, STATES, 1280),
            r"is \[1, 257, 1280\] .*; use a plus or full-face IP-Adapter that reads 257x1280 of",
        ),
        ("base", (1, 1280), r"reads the global embedding \[B, 1024\].*a base IP-Adapter that reads 1280 of ViT-bigG"),
        ("full-face", (1, 1280), r"reads the penultimate states \[B, T, 1280\].* VisionHead predicts the penultimate"),
    ],
)
def test_an_insight_of_another_form_or_width_is_refused(kind, shape, words, sides):
    theirs, model = sides("sd15")
    with pytest.raises(Misfit, match=words):
        attach(model, load_adapter(random_adapter(theirs, kind)), Insight(None, None, image_embeds=torch.zeros(shape)))


def test_the_adapter_of_another_base_model_is_refused(sides):
    handle = load_adapter(random_adapter(sides("sdxl")[0], "plus"))
    with pytest.raises(Misfit, match="has 70 cross-attentions .* the MODEL BaseModel .* 16 cross-attentions"):
        attach(sides("sd15")[1], handle, insight_for("plus")[0])
