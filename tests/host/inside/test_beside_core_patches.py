"""What users put on a MODEL besides: core's own patching nodes before our attachment and after it."""

from __future__ import annotations

import importlib

import pytest
import torch
from narrow_sd15 import narrow_model, random_adapter, random_insight, sample  # tests/host, conftest.py puts it there

from mindedit_core.hosts.comfy_adapter import attach, load_adapter

EXTRAS = {  # a core node that patches a MODEL -> its file in comfy_extras, and its widgets
    "FreeU": ("freelunch", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}),
    "FreeU_V2": ("freelunch", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    "HyperTile": ("hypertile", {"tile_size": 32, "swap_size": 1, "max_depth": 0, "scale_depth": False}),
    "TomePatchModel": ("tomesd", {"ratio": 0.5}),
    "PerturbedAttentionGuidance": ("pag", {"scale": 3.0}),
    "SelfAttentionGuidance": ("sag", {"scale": 0.5, "blur_sigma": 2.0}),
    "PatchModelAddDownscale": (
        "model_downscale",
        {"block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0}
        | {"downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"},
    ),
    "UNetCrossAttentionMultiply": ("attention_multiply", {"q": 1.0, "k": 1.1, "v": 0.8, "out": 0.9}),
    "RescaleCFG": ("model_advanced", {"multiplier": 0.7}),
}
VISIBLE = 1e-4  # of the largest number


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode(False):
        return narrow_model()


def core_node(name):
    file, widgets = EXTRAS[name]
    module = importlib.import_module(f"comfy_extras.nodes_{file}")
    cls = getattr(module, name, None) or module.NODE_CLASS_MAPPINGS[name]
    call = getattr(cls, "execute", None) or getattr(cls(), cls.FUNCTION)

    def apply(model):
        result = call(model=model, **widgets)
        return getattr(result, "result", result)[0]

    return apply


def of_text(model):
    """attn2 patches of another pack: on what goes into the text's projections, and on what comes out."""
    patched = model.clone()
    patched.set_model_attn2_patch(lambda n, context, value, _options: (n, 1.2 * context, 0.7 * value))
    patched.set_model_attn2_output_patch(lambda n, _options: 0.9 * n)
    return patched


def ours(model, scale=0.8):
    return attach(model, load_adapter(random_adapter()), random_insight(), scale=scale)


def painted(model):
    torch.manual_seed(0)  # TomePatchModel draws from the global generator
    return sample(model, side=16)  # the smallest that SelfAttentionGuidance can blur


def differ(one, two) -> bool:
    return (one - two).abs().max() > VISIBLE * two.abs().max()


@pytest.mark.parametrize("name", [*EXTRAS, "attn2 patches"])
def test_it_acts_before_us_and_after_us(model, name):
    """Both orders paint the same; with both on it is neither alone; with ours at zero it is exactly the other."""
    other = core_node(name) if name in EXTRAS else of_text
    before, after = painted(ours(other(model))), painted(other(ours(model)))
    assert torch.isfinite(before).all()
    torch.testing.assert_close(before, after, atol=float(1e-5 * after.abs().max()), rtol=0)
    alone = painted(other(model))
    assert torch.equal(painted(ours(other(model), scale=0.0)), alone)
    assert differ(before, alone) and differ(before, painted(ours(model))) and differ(alone, painted(model))
