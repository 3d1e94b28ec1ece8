"""Every published layout of h94/IP-Adapter against diffusers' own: image tokens and each cross-attention, to 1e-5."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterFullImageProjection, IPAdapterPlusImageProjection

from mindedit_core.bridges.attention_processor import cross_attention_layers
from mindedit_core.bridges.ip_adapter import IPAdapter, image_projection
from mindedit_core.bridges.ip_adapter_layouts import Layout
from mindedit_core.contracts import Insight

TOKEN = 40  # unequal to every other width, so that a mix-up cannot pass
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
SD15 = {
    "down_block_types": (CROSS[0], CROSS[0], CROSS[0], "DownBlock2D"),
    "up_block_types": ("UpBlock2D", CROSS[1], CROSS[1], CROSS[1]),
    "attention_head_dim": 8,
}
SDXL = {
    "down_block_types": ("DownBlock2D", CROSS[0], CROSS[0]),
    "up_block_types": (CROSS[1], CROSS[1], "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (1, 2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12,
}
NARROW = {"sd15": (16, 16, 32, 32), "sdxl": (16, 32, 64)}
LAYERS = {"sd15": 16, "sdxl": 70}
SMALL_RESAMPLER = {"width": 96, "heads": 2, "depth": 4, "inner": 384}  # the heads' 128 is no width of the rest
READS = {  # what each published file reads, at its true width: kind, embed_dim, tokens, sizes
    "base, ViT-H": ("base", 1024, 4, {}),
    "base, ViT-bigG": ("base", 1280, 4, {}),
    "plus": ("plus", 1280, 16, SMALL_RESAMPLER),
    "full-face": ("full-face", 1280, None, {"inner": 1280}),
}
STATES = 257  # of ViT-H
CASES = [("sd15", reads) for reads in READS] + [("sdxl", reads) for reads in READS if reads != "full-face"]


def narrow_unet(base: str, **changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    layout = {"sd15": SD15, "sdxl": SDXL}[base]
    sizes = {"block_out_channels": NARROW[base], "norm_num_groups": 8, "cross_attention_dim": TOKEN, "sample_size": 16}
    return UNet2DConditionModel(**{**layout, **sizes, **changes}).eval().requires_grad_(False)


def scrambled(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every weight random, the norms' too, and of a size that keeps the variance."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = offset + scale * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def adapter_for(unet, reads: str) -> IPAdapter:
    kind, embed_dim, tokens, sizes = READS[reads]
    return scrambled(IPAdapter.for_unet(unet, embed_dim, tokens, "tiny", kind, **sizes))


def embeds_for(adapter: IPAdapter, batch: int, seed: int = 3) -> torch.Tensor:
    shape = (batch, adapter.embed_dim) if adapter.embed_form == "global" else (batch, STATES, adapter.embed_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nested(adapter: IPAdapter) -> dict:
    parts = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.state_dict().items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    return parts


def load_theirs(unet, adapter: IPAdapter, scale: float) -> None:
    unet._load_ip_adapter_weights([nested(adapter)])
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]


def inputs(base: str, batch: int, width: int = TOKEN):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(batch, 7, width, generator=generator)
    added = {"text_embeds": torch.randn(batch, 12, generator=generator), "time_ids": torch.arange(6.0).repeat(batch, 1)}
    return latents, text, added if base == "sdxl" else {}


def record(unet) -> dict[str, torch.Tensor]:
    """Name -> output of each cross-attention, filled by the next forward."""
    outputs = {}
    for name, attn in cross_attention_layers(unet).items():
        attn.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, out))
    return outputs


# Image tokens --------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "ip-adapter_sd15": (Layout("base", 1024, 768, (), 4), 768),
    "ip-adapter_sd15_vit-G": (Layout("base", 1280, 768, (), 4), 768),
    "ip-adapter_sdxl": (Layout("base", 1280, 2048, (), 4), 2048),
    "ip-adapter-plus_sd15": (
        Layout("plus", 1280, 768, (), 16, {"width": 768, "heads": 12, "depth": 4, "inner": 3072}),
        768,
    ),
    "ip-adapter-plus_sdxl_vit-h": (
        Layout("plus", 1280, 2048, (), 16, {"width": 1280, "heads": 20, "depth": 4, "inner": 5120}),
        2048,
    ),
    "ip-adapter-full-face_sd15": (Layout("full-face", 1280, 768, (), None, {"inner": 1280}), 768),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_image_tokens_at_the_published_size_equal_diffusers(file):
    layout, width = PUBLISHED[file]
    ours = scrambled(image_projection(layout))
    theirs = UNet2DConditionModel._convert_ip_adapter_image_proj_to_diffusers(
        None, ours.state_dict(), low_cpu_mem_usage=False
    ).eval()
    kinds = {"base": ImageProjection, "plus": IPAdapterPlusImageProjection, "full-face": IPAdapterFullImageProjection}
    assert type(theirs) is kinds[layout.kind]
    shape = (2, layout.embed_dim) if layout.embed_form == "global" else (2, STATES, layout.embed_dim)
    embeds = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = ours(embeds), theirs(embeds)
    assert found.shape == (2, layout.tokens or STATES, width)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# The UNets, every layer of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "reads"), CASES)
def test_each_cross_attention_equals_diffusers(base, reads):
    """The unconditional row first; what it is given goes through the same projection."""
    ours, theirs = narrow_unet(base), narrow_unet(base)
    adapter = adapter_for(ours, reads)
    embeds, negative = embeds_for(adapter, 1), embeds_for(adapter, 1, seed=5)
    condition = adapter(Insight(None, None, image_embeds=embeds, negative_image_embeds=negative))
    tokens = torch.cat([condition.negative_image_tokens, condition.image_tokens])
    latents, text, added = inputs(base, batch=2)
    bare = ours(latents, 500, text, added_cond_kwargs=added).sample
    load_theirs(theirs, adapter, scale=0.7)
    expected, found = record(theirs), record(ours)
    rows = torch.cat([negative, embeds])[:, None]
    whole = theirs(latents, 500, text, added_cond_kwargs={**added, "image_embeds": [rows]}).sample
    with adapter.attached(ours, tokens, scale=0.7):
        edited = ours(latents, 500, text, added_cond_kwargs=added).sample

    torch.testing.assert_close(tokens, theirs.encoder_hid_proj([rows])[0][:, 0], atol=1e-5, rtol=0)
    assert list(found) == list(expected) and len(found) == LAYERS[base] == len(adapter.layer_dims)
    for name, output in expected.items():
        torch.testing.assert_close(found[name], output, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(edited, whole, atol=1e-4, rtol=0)
    assert (edited - bare).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ip-adapter_sd15", "ip-adapter-plus_sd15", "ip-adapter-full-face_sd15"])
def test_every_weight_of_sd15_at_its_published_size(file):
    """860 million random weights, and the adapter's: each of the 16 cross-attentions."""
    unet = narrow_unet("sd15", block_out_channels=(320, 640, 1280, 1280), norm_num_groups=32, cross_attention_dim=768)
    layout = PUBLISHED[file][0]
    adapter = IPAdapter.for_unet(unet, layout.embed_dim, layout.tokens, None, layout.kind, **layout.sizes)
    adapter = scrambled(adapter)
    embeds = embeds_for(adapter, 1)
    (latents, text, _), tokens = inputs("sd15", batch=1, width=768), adapter.project(embeds)
    outputs = record(unet)
    with torch.no_grad(), adapter.attached(unet, tokens, scale=1.0):
        edited = unet(latents, 500, text).sample
    found = dict(outputs)
    load_theirs(unet, adapter, scale=1.0)
    with torch.no_grad():
        expected = unet(latents, 500, text, added_cond_kwargs={"image_embeds": [embeds[:, None]]}).sample
    assert len(found) == len(outputs) == 16 and all(found[name] is not outputs[name] for name in found)
    for name, output in outputs.items():
        torch.testing.assert_close(found[name], output, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(edited, expected, atol=1e-4, rtol=0)


# Off, for every layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "reads"), [("sd15", "plus"), ("sd15", "full-face"), ("sdxl", "base, ViT-bigG")])
def test_a_shut_adapter_is_the_bare_unet_bit_for_bit(base, reads):
    unet = narrow_unet(base)
    adapter = adapter_for(unet, reads)
    latents, text, added = inputs(base, batch=1)
    tokens = adapter.project(embeds_for(adapter, 1))
    bare = unet(latents, 300, text, added_cond_kwargs=added).sample
    for scale, gate in ((0.0, None), (1.0, torch.tensor(False))):
        with adapter.attached(unet, tokens, scale=scale, gate=gate):
            assert torch.equal(unet(latents, 300, text, added_cond_kwargs=added).sample, bare)
