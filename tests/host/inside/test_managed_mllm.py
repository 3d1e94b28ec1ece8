"""The MLLM in a box: every parameter managed, LoRA by the host's patches, the same words and states as headless."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management as mm
import pytest
import torch
from torch import nn

from mindedit_core.backbones import adapter_files, lora
from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.contracts import Misfit, Plan, Region
from mindedit_core.designers.self_mllm import SelfMLLM
from mindedit_core.hosts import comfy_managed, comfy_mllm
from mindedit_core.hosts.comfy_folders import MINI, NO_ADAPTER
from mindedit_core.hosts.comfy_mllm import PlanBatch, embeds, region_masks
from mindedit_core.hosts.comfy_mllm_loading import from_paths, load_mllm

WISH = "make the small red cat big"


@pytest.fixture(scope="module")
def mllm(mini_folder):
    return load_mllm(MINI)


@pytest.fixture(scope="module")
def bare(mini_folder):
    return load_mllm(MINI, None)


@pytest.fixture(scope="module")
def headless(mini_folder):
    with torch.inference_mode(False):
        return LlavaOnevision.from_folder(mini_folder, adapter=mini_folder / "mind_edit.safetensors")


@pytest.fixture
def image(generator):
    return torch.rand(1, 128, 128, 3, generator=generator)


# In the box ----------------------------------------------------------------------------------------------------------


def test_every_parameter_is_in_a_casting_leaf_or_on_the_list(mllm):
    for patcher in (mllm.patcher, mllm.head_patcher):
        assert comfy_managed.unmanaged(patcher.model) == []
    names = {name.rsplit(".", 1)[-1] for name, _ in mllm.patcher.model.named_parameters()}
    assert "image_newline" in names and "query" in dict(mllm.head_patcher.model.head.named_parameters())


def test_a_parameter_outside_is_found():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner = nn.Parameter(torch.zeros(3)), nn.Linear(2, 2)

    assert comfy_managed.unmanaged(comfy_managed.Box(odd=Odd())) == ["odd.table"]
    assert len(comfy_managed.unmanaged(Odd())) == 3


def test_weights_stay_in_their_stored_dtype_and_tied(mllm):
    model = mllm.core.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    rotary = [buffer for name, buffer in model.named_buffers() if "inv_freq" in name]
    assert rotary and all(buffer.dtype == torch.float32 for buffer in rotary)


def test_on_a_cpu_everything_is_computed_in_fp32(mllm, image):
    """No leaf ever sees or makes fp16, though all weights are fp16."""
    dtypes, hooks = set(), []
    for module in mllm.core.model.modules():
        if getattr(module, "comfy_cast_weights", False):
            hooks.append(module.register_forward_hook(lambda _m, _i, out: dtypes.add(out.dtype) and None))
    mllm.design(image, WISH, max_new_tokens=3)
    for hook in hooks:
        hook.remove()
    assert dtypes == {torch.float32}


def test_the_size_counts_tied_weights_once(mllm):
    model = mllm.core.model
    parameters = {id(parameter): parameter.numel() * 2 for parameter in model.parameters()}
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert mllm.patcher.model_size() == sum(parameters.values()) + buffers
    assert mllm.get_ram_usage() == mllm.patcher.model_size() + mllm.head_patcher.model_size()


def test_the_models_live_no_longer_than_the_socket_value(mini_folder, image):
    mllm = load_mllm(MINI)
    mllm.design(image, WISH, max_new_tokens=2)
    assert mllm.patcher in mm.loaded_models()
    gone = weakref.ref(mllm.patcher)
    del mllm
    gc.collect()
    assert gone() is None


# LoRA ----------------------------------------------------------------------------------------------------------------


def test_the_lora_on_equals_the_headless_merge_and_off_is_bit_exact(mllm, mini_folder):
    adapter = adapter_files.read_adapter(mini_folder / "mind_edit.safetensors")
    plain = from_paths(mini_folder).core.model
    before = {name: parameter.clone() for name, parameter in plain.state_dict().items()}
    lora.merge(plain, adapter.pairs)
    mm.load_models_gpu([mllm.patcher])
    merged = mllm.core.model.state_dict()
    assert sorted(adapter.pairs) == sorted(
        name.removesuffix(".weight") for name, weight in merged.items() if not torch.equal(weight, before[name])
    )
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in merged.items())
    mllm.patcher.detach()
    assert all(torch.equal(weight, before[name]) for name, weight in mllm.core.model.state_dict().items())
    assert mllm.core.model.get_input_embeddings().weight is mllm.core.model.get_output_embeddings().weight


def test_the_lora_is_summed_in_fp32_wherever_the_host_would_sum_in_fp16(mllm, mini_folder, monkeypatch):
    """On a GPU the host would merge in fp16: the boxes' weights convert to fp32 for the sum."""
    adapter = adapter_files.read_adapter(mini_folder / "mind_edit.safetensors")
    plain = from_paths(mini_folder).core.model
    lora.merge(plain, adapter.pairs)
    mllm.patcher.detach()
    monkeypatch.setattr(mm, "lora_compute_dtype", lambda _device: torch.float16)
    mm.load_models_gpu([mllm.patcher])
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in mllm.core.model.state_dict().items())
    mllm.patcher.detach()


# Partly loaded -------------------------------------------------------------------------------------------------------


def test_a_partly_loaded_model_says_the_same(mllm, image):
    """Lowvram: no leaf is loaded, every weight is cast and patched on its way."""
    expected = mllm.design(image, WISH, max_new_tokens=8)
    mllm.patcher.detach()
    mllm.patcher.patch_model(mllm.patcher.load_device, lowvram_model_memory=1)
    assert mllm.patcher.model.model_lowvram
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mm, "load_models_gpu", lambda *_, **__: None)
            plan = mllm.design(image, WISH, max_new_tokens=8)
    finally:
        mllm.patcher.detach()
    assert plan.text == expected.text
    torch.testing.assert_close(plan.states.hidden, expected.states.hidden, atol=1e-3, rtol=1e-3)  # unrounded LoRA sums


# Equal to headless ---------------------------------------------------------------------------------------------------


def test_words_states_and_insight_equal_headless(mllm, headless, image):
    """Stored fp16, computed fp32, on both sides; LoRA merged alike."""
    theirs = SelfMLLM(headless, mllm.count_tokens).design(image, WISH, max_new_tokens=16)
    ours = mllm.design(image, WISH, max_new_tokens=16)
    assert (ours.text, ours.note, ours.sections) == (theirs.text, theirs.note, theirs.sections)
    assert torch.equal(ours.states.mask, theirs.states.mask)
    torch.testing.assert_close(ours.states.hidden, theirs.states.hidden, atol=1e-5, rtol=1e-5)
    with torch.inference_mode(False):
        expected = headless.encode(image.clone(), theirs).image_embeds
    torch.testing.assert_close(mllm.encode(image, ours).image_embeds, expected, atol=1e-5, rtol=1e-5)


def test_a_plan_with_states_is_encoded_without_the_mllm(mllm, image, monkeypatch):
    plan = mllm.design(image, WISH, max_new_tokens=4)
    loaded = []
    original = mm.load_models_gpu
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, **k: (loaded.extend(models), original(models, **k)))
    insight = mllm.encode(image, plan)
    assert loaded == [mllm.head_patcher]
    other = mllm.encode(1 - image, plan)  # another picture: it must be read
    assert mllm.patcher in loaded
    assert not torch.equal(insight.image_embeds, other.image_embeds)


def test_reading_again_gives_the_insight_of_the_generation(mllm, image):
    plan = mllm.design(image, WISH, max_new_tokens=6)
    again = mllm.encode(image, Plan(plan.raw, plan.text, plan.designer, sections=plan.sections, regions=plan.regions))
    assert again.image_embeds.shape == mllm.encode(image, plan).image_embeds.shape
    assert again.clip_space == mllm.core.clip_space


def test_outputs_lie_on_the_intermediate_device(mllm, image):
    plan = mllm.design(image, WISH, max_new_tokens=3)
    insight = mllm.encode(image, plan)
    for tensor in (plan.states.hidden, plan.states.mask, insight.hidden, insight.mask, insight.image_embeds):
        assert tensor.device == mm.intermediate_device()


def test_a_batch_of_pictures_is_planned_and_encoded_row_by_row(mllm, generator):
    images = torch.rand(3, 96, 128, 3, generator=generator)
    plans = mllm.design(images, WISH, max_new_tokens=8)
    assert len(plans.text) == 3
    insight = mllm.encode(images, plans)
    assert insight.image_embeds.shape == (3, mllm.core.embed_dim)
    for index in range(3):
        alone = mllm.design(images[index : index + 1], WISH, max_new_tokens=8)
        assert alone.text == plans[index].text
        row = mllm.encode(images[index : index + 1], alone).image_embeds
        torch.testing.assert_close(insight.image_embeds[index : index + 1], row, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="the plan is for 3 pictures, the image has 1"):
        mllm.encode(images[:1], plans)


def test_the_seed_decides_at_a_temperature_and_only_there(mllm, image):
    options = {"max_new_tokens": 12}
    greedy = {mllm.design(image, WISH, seed=seed, **options).sections["answer"] for seed in (1, 2)}
    drawn = [mllm.design(image, WISH, seed=seed, temperature=2.0, **options).sections["answer"] for seed in (1, 1, 2)]
    assert len(greedy) == 1
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_picture_is_taken(mllm, generator):
    for shape in ((1, 1, 1, 3), (1, 300, 40, 4), (1, 64, 64, 1)):
        plan = mllm.design(torch.rand(shape, generator=generator), WISH, max_new_tokens=2)
        assert plan.text


# Without a head, interrupted, refused --------------------------------------------------------------------------------


def test_without_a_head_the_insight_is_off_and_says_so(bare, image):
    assert not bare.has_head
    insight = bare.encode(image, bare.design(image, WISH, max_new_tokens=3))
    assert insight.image_embeds is None and "no VisionHead" in insight.note
    with pytest.raises(ValueError, match="no VisionHead"):
        embeds(insight)


@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupt_stops_within_one_token_and_the_next_run_works(after, mllm, image):
    expected = mllm.design(image, WISH, max_new_tokens=6)
    seen = []

    def on_token(_piece, count):
        seen.append(count)
        if count == after:
            mm.interrupt_current_processing()

    if after == 0:
        mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        mllm.design(image, WISH, max_new_tokens=6, on_token=on_token)
    assert len(seen) <= after
    assert not mm.processing_interrupted()
    again = mllm.design(image, WISH, max_new_tokens=6)
    assert again.text == expected.text and torch.equal(again.states.hidden, expected.states.hidden)


def test_the_text_streams_in_pieces(mllm, image):
    pieces = []
    plan = mllm.design(image, WISH, max_new_tokens=10, on_token=lambda piece, count: pieces.append((count, piece)))
    assert [count for count, _ in pieces] == sorted({count for count, _ in pieces})
    assert "".join(piece for _, piece in pieces).strip().startswith(plan.sections["answer"][:3])


@pytest.mark.parametrize("wish", ["", "   ", "red " * 2500])
def test_an_empty_or_endless_wish_is_refused(wish, mllm, image):
    with pytest.raises(ValueError, match="instruction"):
        mllm.design(image, wish)


def test_the_memory_asked_for_grows_with_picture_and_answer(mllm):
    def asked(side, batch, new):
        return comfy_mllm.reading_memory(mllm.core, torch.zeros(batch, side, side, 3), WISH, new)

    assert asked(128, 1, 128) < asked(128, 1, 512) < asked(128, 3, 512)
    text = mllm.core.config.text_config
    cache = 2 * text.num_hidden_layers * text.hidden_size * 4 * 128  # K and V of 128 tokens, fp32
    assert asked(128, 1, 128) > cache


def test_memory_is_asked_for_before_reading(mllm, image, monkeypatch):
    asked = []
    original = mm.load_models_gpu
    monkeypatch.setattr(
        mm, "load_models_gpu", lambda models, **k: (asked.append(k["memory_required"]), original(models, **k))
    )
    mllm.design(image, WISH, max_new_tokens=2)
    assert len(asked) == 1 and asked[0] > 0


def test_choices(mini_folder, tmp_path):
    assert load_mllm(MINI, NO_ADAPTER).has_head and load_mllm(MINI, MINI).name.startswith("mini+")
    with pytest.raises(FileNotFoundError, match="put a LLaVA-OneVision or Qwen2.5-VL folder .* under .*LLM"):
        load_mllm("nowhere")
    with pytest.raises(FileNotFoundError, match="put a MIND-Edit adapter .* under .*mindedit"):
        load_mllm(MINI, "nothing.safetensors")


def test_an_adapter_of_another_mllm_is_refused(mini_folder, tmp_path):
    adapter = adapter_files.read_adapter(mini_folder / "mind_edit.safetensors")
    path = tmp_path / "other.safetensors"
    adapter_files.save_adapter(path, adapter.pairs, adapter.head, {**adapter.config, "hidden_size": 896})
    with pytest.raises(Misfit, match="hidden_size 896"):
        from_paths(mini_folder, path)


# Regions and embeds --------------------------------------------------------------------------------------------------


def test_every_picture_of_a_batch_gets_the_mask_of_its_own_region_lines():
    first, second = Plan("raw", "text", regions=(Region("box", (0.0, 500.0, 250.0, 1000.0)),)), Plan("raw", "text")
    masks = region_masks(PlanBatch([first, second]), 8, 16)
    assert masks.shape == (2, 8, 16) and masks[0, 4:, :4].all() and not masks[1].any()


def test_embeds_are_the_embedding_and_zeros(mllm, image):
    positive, negative = embeds(mllm.encode(image, mllm.design(image, WISH, max_new_tokens=2)))
    assert positive.shape == negative.shape == (1, mllm.core.embed_dim)
    assert not negative.any() and positive.any()
