"""Plus and full-face adapters end to end: a head of states, the zero image, and who does not fit whom."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mindedit_core import edit, load_system
from mindedit_core.backbones import adapter_files
from mindedit_core.backbones.llava_onevision import NO_NEGATIVE, LlavaOnevision
from mindedit_core.backbones.states_head import StatesHead
from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.contracts import Insight, Misfit, require_fit
from mindedit_core.painters.unet import UNetPainter
from mindedit_core.systems.tiny import CLIP_SPACE, TEXT_WIDTH
from train.clip_target import ClipTarget

STATES = 17  # of the tiny CLIP: 4 x 4 patches and the class token
KINDS = {"plus": (5, {"width": 48, "heads": 1, "depth": 2}), "full-face": (None, {"inner": 40})}


def scrambled(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = parameter.shape[-1] ** -0.5 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def system(tiny_folder):
    return load_system(tiny_folder)


@pytest.fixture(scope="module")
def clip(tiny_parts):
    return tiny_parts["clip"]


@pytest.fixture(scope="module")
def states_mllm(tiny_folder, clip, tmp_path_factory):
    """The tiny MLLM with a head of states, from a file; told of the zero image or not."""

    def load(told: bool = True) -> LlavaOnevision:
        old = adapter_files.read_adapter(tiny_folder / "mind_edit.safetensors")
        head = scrambled(StatesHead(36, TEXT_WIDTH, tokens=STATES, width=64), seed=1)
        config = {**old.config, "clip_space": {"name": CLIP_SPACE, "dim": TEXT_WIDTH}}
        path = tmp_path_factory.mktemp("adapter") / "states.safetensors"
        negative = ClipTarget(clip, CLIP_SPACE, "states").zero_image() if told else None
        adapter_files.save_adapter(path, old.pairs, head, config, negative_image_embeds=negative)
        return LlavaOnevision.from_folder(tiny_folder, adapter=path)

    return load


def with_states(system, mllm, kind: str):
    """The tiny system with a head of states and an adapter that reads them."""
    tokens, sizes = KINDS[kind]
    bridge = IPAdapter.for_unet(system.painter.unet, TEXT_WIDTH, tokens, CLIP_SPACE, kind, **sizes)
    old = system.painter
    parts = (old.unet, old.unet_inpaint, old.vae, old.text_encoder, old.tokenizer, scrambled(bridge, seed=2))
    designer = type(system.designer)(mllm, system.designer.count_tokens)
    return replace(system, mllm=mllm, designer=designer, bridge=bridge, painter=UNetPainter(*parts))


@pytest.fixture
def image(generator):
    return torch.rand(1, 128, 128, 3, generator=generator)


# The zero image ------------------------------------------------------------------------------------------------------


def test_the_states_are_those_that_diffusers_gives_to_plus_adapters(generator):
    """StableDiffusionPipeline.encode_image with output_hidden_states, and its zeros for the unconditional branch."""
    from diffusers import StableDiffusionPipeline

    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**size, image_size=28, patch_size=14)).eval()
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    pipe = SimpleNamespace(image_encoder=encoder, feature_extractor=None)
    with torch.no_grad():
        states, zeros = StableDiffusionPipeline.encode_image(pipe, pixels, "cpu", 1, output_hidden_states=True)
    assert states.shape == (2, 5, 24)
    target = ClipTarget(encoder, "tiny", "states")
    assert (target.tokens, target.dim) == (5, 24) and ClipTarget(encoder, "tiny", "global").zero_image() is None
    torch.testing.assert_close(target.seen(pixels), states, atol=1e-6, rtol=0)
    torch.testing.assert_close(target.zero_image(), zeros[0], atol=1e-6, rtol=0)


def test_the_insight_brings_the_zero_image_of_the_file(states_mllm, clip, image):
    mllm = states_mllm()
    insight = mllm.encode(image, mllm_plan(mllm, image))
    assert insight.image_embeds.shape == (1, STATES, TEXT_WIDTH) and insight.embed_form == mllm.embed_form == "states"
    assert torch.equal(insight.negative_image_embeds[0], ClipTarget(clip, CLIP_SPACE, "states").zero_image())
    assert insight.note == ""


def mllm_plan(mllm, image):
    from mindedit_core.designers.self_mllm import SelfMLLM

    return SelfMLLM(mllm).design(image, "make it red", max_new_tokens=4)


def test_a_file_without_it_says_so(states_mllm, image):
    mllm = states_mllm(told=False)
    insight = mllm.encode(image, mllm_plan(mllm, image))
    assert insight.negative_image_embeds is None and insight.note == NO_NEGATIVE


@pytest.mark.parametrize("kind", KINDS)
def test_the_unconditional_branch_is_the_zero_image_through_the_projection(kind, system, caplog, generator):
    bridge = with_states(system, system.mllm, kind).bridge
    embeds, negative = torch.randn(2, 2, STATES, TEXT_WIDTH, generator=generator)
    told = bridge(Insight(None, None, image_embeds=embeds, negative_image_embeds=negative[:1]))
    assert torch.equal(told.negative_image_tokens, bridge.project(negative[:1].expand(2, -1, -1)))
    assert told.image_tokens.shape == (2, bridge.tokens or STATES, TEXT_WIDTH) and "zero image" not in caplog.text
    silent = bridge(Insight(None, None, image_embeds=embeds))
    assert torch.equal(silent.negative_image_tokens, bridge.project(torch.zeros_like(embeds)))
    assert "CLIP states of a zero image" in caplog.text


def test_a_zero_image_of_another_shape_is_refused(system):
    bridge = with_states(system, system.mllm, "plus").bridge
    wrong = Insight(None, None, image_embeds=torch.zeros(1, 17, 32), negative_image_embeds=torch.zeros(1, 4, 32))
    with pytest.raises(Misfit, match=r"must be of the shape of image_embeds \[1, 17, 32\], got \[1, 4, 32\]"):
        bridge(wrong)


# The path ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_edited_with_states(kind, system, states_mllm, image):
    changed = with_states(system, states_mllm(), kind)
    settings = changed.settings.but(steps=2)
    result, text_only = (
        edit(changed, image, "make it red", settings.but(insight_scale=scale), design={"max_new_tokens": 4})
        for scale in (1.0, 0.0)
    )
    assert result.insight.image_embeds.shape == (1, STATES, TEXT_WIDTH)
    assert result.image.shape == image.shape and not torch.equal(result.image, text_only.image)


class Untouchable:
    """A designer that must not be asked."""

    def design(self, *_, **__):
        raise AssertionError("the MLLM ran before the parts were compared")


def test_a_head_and_an_adapter_of_different_forms_are_refused_before_anything_runs(system, states_mllm, image):
    states = states_mllm()
    plus = with_states(system, states, "plus")
    for misfit, words in (
        (replace(system, mllm=states), "gives embed_form 'states', IPAdapter takes 'global'; a base IP-Adapter reads"),
        (
            replace(plus, mllm=system.mllm),
            "gives embed_form 'global', IPAdapter takes 'states'; .* VisionHead predicts",
        ),
    ):
        with pytest.raises(Misfit, match=words):
            edit(replace(misfit, designer=Untouchable()), image, "make it red")
    require_fit(plus.mllm, plus.bridge, plus.painter)


@pytest.mark.parametrize(
    ("shape", "space", "words"),
    [
        (
            (1, 24),
            CLIP_SPACE,
            r"reads the penultimate states \[B, T, 32\] .*insight is \[1, 24\].*use a base IP-Adapter",
        ),
        (
            (1, 1024),
            None,
            "use a base IP-Adapter that reads 1024 of ViT-H, or an adapter file whose VisionHead predicts",
        ),
        ((1, STATES, 24), CLIP_SPACE, "use a plus or full-face IP-Adapter that reads states of 24"),
        ((1, STATES, 32), "ViT-H", "in ViT-H; use a plus or full-face IP-Adapter for the insight's CLIP space"),
        ((1, 2, 2, 32), None, r"the insight is \[1, 2, 2, 32\]"),
    ],
)
def test_the_bridge_refuses_what_it_does_not_read(shape, space, words, system):
    bridge = with_states(system, system.mllm, "plus").bridge
    with pytest.raises(Misfit, match=words):
        bridge(Insight(None, None, image_embeds=torch.zeros(shape), clip_space=space))


def test_the_remedy_names_the_published_file():
    """At the published widths: a ViT-H embedding into a plus adapter of SD1.5, states into the base one of SDXL."""
    from mindedit_core.bridges.ip_adapter_layouts import Layout

    with torch.device("meta"):
        plus = IPAdapter(Layout("plus", 1280, 768, (8,), 16, {"width": 64, "heads": 1, "depth": 1, "inner": 64}))
        base = IPAdapter(Layout("base", 1280, 2048, (8,)))
    with pytest.raises(
        Misfit, match="use ip-adapter_sd15 or ip-adapter_sd15_light for this insight, or an adapter file"
    ):
        plus(Insight(None, None, image_embeds=torch.zeros(1, 1024)))
    with pytest.raises(Misfit, match="use ip-adapter-plus_sdxl_vit-h or ip-adapter-plus-face_sdxl_vit-h for this insi"):
        base(Insight(None, None, image_embeds=torch.zeros(1, 257, 1280)))


def test_at_the_published_sizes_a_prediction_becomes_image_tokens(generator):
    """LLaVA-OneVision-0.5B's states -> 257 x 1280 of ViT-H -> 16 tokens of SD1.5's plus adapter, 257 of full-face."""
    from mindedit_core.bridges.ip_adapter_layouts import Layout

    head = StatesHead(896, 1280)
    answer, mask = torch.randn(1, 9, 896, generator=generator), torch.ones(1, 9, dtype=torch.bool)
    with torch.no_grad():
        insight = Insight(None, None, image_embeds=head(answer, mask))
        sizes = {"width": 768, "heads": 12, "depth": 4, "inner": 3072}
        for layout in (Layout("plus", 1280, 768, (320,), 16, sizes), Layout("full-face", 1280, 768, (320,), None)):
            assert IPAdapter(layout)(insight).image_tokens.shape == (1, layout.tokens or 257, 768)
