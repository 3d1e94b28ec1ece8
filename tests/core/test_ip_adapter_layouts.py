"""The published layouts by keys and shapes: what they are called, what they read, and which others are refused."""

from __future__ import annotations

import pytest
import torch

from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.bridges.ip_adapter_layouts import Layout, files_reading, layout_of
from mindedit_core.checkpoint import CheckpointError
from mindedit_core.kinds import detect, shapes_of

SD15 = (320,) * 2 + (640,) * 2 + (1280,) * 2 + (1280,) * 3 + (640,) * 3 + (320,) * 3 + (1280,)
SDXL = (640,) * 4 + (1280,) * 20 + (1280,) * 30 + (640,) * 6 + (1280,) * 10  # papers.md 5.2: down, up, middle
PLUS, PLUS_XL = ({"width": w, "heads": h, "depth": 4, "inner": 4 * w} for w, h in ((768, 12), (1280, 20)))
FILES = {  # of h94/IP-Adapter: layout, megabytes in fp16 as published, what people are told
    "ip-adapter_sd15": (Layout("base", 1024, 768, SD15), 44.6, "base, SD1.5, reads 1024 of ViT-H"),
    "ip-adapter_sd15_vit-G": (Layout("base", 1280, 768, SD15), 46.2, "base, SD1.5, reads 1280 of ViT-bigG"),
    "ip-adapter-plus_sd15": (Layout("plus", 1280, 768, SD15, 16, PLUS), 98.2, "plus, SD1.5, reads 257x1280 of ViT-H"),
    "ip-adapter-full-face_sd15": (
        Layout("full-face", 1280, 768, SD15, None, {"inner": 1280}),
        43.6,
        "full-face, SD1.5, reads 257x1280 of ViT-H",
    ),
    "ip-adapter_sdxl": (Layout("base", 1280, 2048, SDXL), 702.6, "base, SDXL, reads 1280 of ViT-bigG"),
    "ip-adapter_sdxl_vit-h": (Layout("base", 1024, 2048, SDXL), 698.4, "base, SDXL, reads 1024 of ViT-H"),
    "ip-adapter-plus_sdxl_vit-h": (
        Layout("plus", 1280, 2048, SDXL, 16, PLUS_XL),
        847.5,
        "plus, SDXL, reads 257x1280 of ViT-H",
    ),
}
IMAGE_PROJ = {
    "base": {"proj.weight", "proj.bias", "norm.weight", "norm.bias"},
    "full-face": {f"proj.{n}.{kind}" for n in (0, 2, 3) for kind in ("weight", "bias")},
    "plus": {
        "latents",
        *(f"{name}.{kind}" for name in ("proj_in", "proj_out", "norm_out") for kind in "weight bias".split()),
    }
    | {f"layers.{i}.0.{norm}.{kind}" for i in range(4) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    | {f"layers.{i}.0.{linear}.weight" for i in range(4) for linear in ("to_q", "to_kv", "to_out")}
    | {f"layers.{i}.1.0.{kind}" for i in range(4) for kind in ("weight", "bias")}
    | {f"layers.{i}.1.{number}.weight" for i in range(4) for number in (1, 3)},
}


@pytest.fixture(scope="module")
def adapters() -> dict[str, IPAdapter]:
    """Every published file, full size, without numbers."""
    with torch.device("meta"):
        return {name: IPAdapter(layout) for name, (layout, _, _) in FILES.items()}


@pytest.mark.parametrize("file", FILES)
def test_a_published_file_is_known_by_its_shapes(file, adapters):
    layout, megabytes, said = FILES[file]
    shapes = shapes_of(adapters[file].state_dict())
    assert layout_of(shapes) == layout and str(layout) == said
    assert 2 * sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6 == pytest.approx(megabytes, abs=0.1)
    assert Layout(**{**layout.as_config(), "layer_dims": layout.layer_dims}) == layout


@pytest.mark.parametrize("file", FILES)
def test_the_state_dict_is_the_published_one_key_by_key(file, adapters):
    layout = FILES[file][0]
    numbers = range(1, 2 * len(layout.layer_dims), 2)
    wanted = {f"image_proj.{name}" for name in IMAGE_PROJ[layout.kind]}
    wanted |= {f"ip_adapter.{k}.to_{side}_ip.weight" for k in numbers for side in "kv"}
    assert set(adapters[file].state_dict()) == wanted


def test_the_resampler_has_the_published_shapes(adapters):
    shapes = shapes_of(adapters["ip-adapter-plus_sdxl_vit-h"].state_dict())
    assert shapes["image_proj.latents"] == (1, 16, 1280) and shapes["image_proj.proj_out.weight"] == (2048, 1280)
    assert shapes["image_proj.layers.3.0.to_kv.weight"] == (2 * 20 * 64, 1280)
    assert shapes["image_proj.layers.0.1.1.weight"] == (5120, 1280)
    assert shapes["ip_adapter.139.to_k_ip.weight"] == (1280, 2048)


def test_every_file_is_named_for_the_insight_that_it_reads():
    """So that a remedy names files that exist and fit."""
    for file, (layout, _, _) in FILES.items():
        assert file in files_reading(layout.embed_form, layout.embed_dim, layout.base_model)
    assert files_reading("global", 24, "SD1.5") is None


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(adapters) -> dict[str, tuple]:
    return shapes_of(adapters["ip-adapter_sd15"].state_dict())


FACE = {
    "image_proj.proj.0.weight": (1536, 512),
    "image_proj.proj.2.weight": (3072, 1536),
    "image_proj.norm.weight": (768,),
}


@pytest.mark.parametrize(
    ("extra", "gone", "words"),
    [
        ({"ip_adapter.0.to_q_lora.down.weight": (8, 8)}, (), "found a FaceID IP-Adapter .*to_q_lora.* face embeddings"),
        ({"image_proj.perceiver_resampler.proj_in.weight": (8, 8)}, (), "found a FaceID-plus IP-Adapter"),
        (FACE, ("image_proj.",), "found a FaceID-portrait IP-Adapter"),
        ({}, ("ip_adapter.",), "layout is needed, found 4 keys, such as image_proj.norm.bias"),
        ({}, ("image_proj.", "ip_adapter."), "found 0 keys, such as none"),
        ({"vision_head.query": (1, 8)}, ("image_proj.", "ip_adapter."), "found a checkpoint of kind 'mind_edit'"),
        ({}, ("ip_adapter.5.",), r"layers 1, 3, 5, \.\.\. .*got layers \[1, 3, 7, 9\]"),
        ({"image_proj.latents": (1, 16, 768)}, ("image_proj.",), "a plus IP-Adapter, lacks image_proj.proj_in.weight"),
        (
            {"image_proj.proj.3.weight": (8,)},
            ("image_proj.",),
            "a full-face IP-Adapter, lacks image_proj.proj.0.weight",
        ),
        ({"image_proj.proj.weight": (3000, 1024)}, (), "a projection of N x 768 rows, got 3000"),
        ({"image_proj.norm.weight": ()}, (), "a base IP-Adapter by its keys, has tensors of shapes that none has"),
        ({"image_proj.norm.weight": (0,)}, (), "has tensors of shapes that none has"),
        ({"image_proj.latents": (16, 768)}, ("image_proj.",), "a plus IP-Adapter by its keys, has tensors of shapes"),
        ({"ip_adapter.x.to_k_ip.weight": (8, 8)}, (), "has tensors of shapes that none has; fetch"),
    ],
)
def test_others_are_refused_by_what_they_are(base, extra, gone, words):
    shapes = {key: shape for key, shape in base.items() if not (gone and key.startswith(gone))}
    with pytest.raises(CheckpointError, match=words):
        layout_of({**shapes, **extra}, "some.safetensors")


def test_detection_tells_the_kinds_apart(adapters):
    kinds = {file: detect(adapter.state_dict()) for file, adapter in adapters.items()}
    wanted = {"base": "ip_adapter", "plus": "ip_adapter_plus", "full-face": "ip_adapter_full_face"}
    assert kinds == {file: wanted[FILES[file][0].kind] for file in FILES}


# Loading -------------------------------------------------------------------------------------------------------------

SMALL = {
    "base": ({}, 4),
    "plus": ({"width": 24, "heads": 1, "depth": 2, "inner": 40}, 5),
    "full-face": ({"inner": 28}, None),
}


@pytest.fixture(params=SMALL)
def small(request) -> IPAdapter:
    sizes, tokens = SMALL[request.param]
    torch.manual_seed(0)
    return IPAdapter(Layout(request.param, 20, 32, (16, 16, 24), tokens, sizes), "tiny")


def nested(state: dict) -> dict:
    parts = {"image_proj": {}, "ip_adapter": {}}
    for key, value in state.items():
        parts[key.split(".", 1)[0]][key.split(".", 1)[1]] = value
    return parts


def test_flat_nested_and_half_precision_load_alike(small):
    state = {key: value.half() for key, value in small.state_dict().items()}
    for source in (state, nested(state), {**nested(state), "faceidplusv2": False}):
        loaded = IPAdapter.from_state_dict(source)
        assert loaded.layout == small.layout
        assert all(torch.equal(value, state[key].float()) for key, value in loaded.state_dict().items())
    stored = IPAdapter.from_state_dict(state, dtype=None).state_dict()
    assert all(value.data_ptr() == state[key].data_ptr() for key, value in stored.items())


def test_loading_in_fp32_copies_what_it_was_given(small):
    state = small.state_dict()
    loaded = IPAdapter.from_state_dict(state)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert all(value.abs().max() > 0 for key, value in state.items() if key.endswith("weight"))


def test_a_missing_or_surplus_tensor_is_named(small):
    state = small.state_dict()
    last = sorted(key for key in state if key.startswith("ip_adapter."))[-1]
    with pytest.raises(CheckpointError, match=f"lacks 1 of {len(state)} keys, first: {last}"):
        IPAdapter.from_state_dict({key: value for key, value in state.items() if key != last})
    with pytest.raises(CheckpointError, match="has 1 keys too many, first: image_proj.extra"):
        IPAdapter.from_state_dict({**state, "image_proj.extra": torch.zeros(1)})
