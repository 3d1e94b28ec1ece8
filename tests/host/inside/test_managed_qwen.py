"""Qwen2.5-VL under the host's management: headless numbers, one copy of the weights, one reading, loader and errors."""

from __future__ import annotations

import comfy.model_management as mm
import folder_paths
import pytest
import torch

from mindedit_core.backbones.qwen2_5_vl import Qwen25VL
from mindedit_core.checkpoint import CheckpointError
from mindedit_core.contracts import Misfit, Plan
from mindedit_core.designers.blueprint import BlueprintDesigner
from mindedit_core.hosts import comfy_folders
from mindedit_core.hosts.comfy_managed import unmanaged
from mindedit_core.hosts.comfy_mllm import embeds
from mindedit_core.hosts.comfy_mllm_loading import describe, load_mllm
from mindedit_core.systems.tiny_dim import save_tiny_dim

WISH = "make the cat blue"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with torch.inference_mode(False):
        return save_tiny_dim(tmp_path_factory.mktemp("dim"))


@pytest.fixture(autouse=True)
def dim_mini(folder, tmp_path, monkeypatch):
    """The tiny folder is the dim-mini; the blueprints that a test writes go to a user folder of its own."""
    monkeypatch.setenv(comfy_folders.DIM_VARIABLE, str(folder))
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))


@pytest.fixture
def managed():
    return load_mllm(comfy_folders.DIM_MINI, None)


@pytest.fixture
def headless(folder):
    return Qwen25VL.from_folder(folder)


@pytest.fixture
def image(generator):
    return torch.rand(2, 100, 140, 3, generator=generator)


def test_blueprints_and_states_are_the_headless_ones(managed, headless, image):
    plan = managed.design(image[:1], WISH, max_new_tokens=24)
    theirs = BlueprintDesigner(headless, "mini").design(image[:1], WISH, max_new_tokens=24)
    assert (plan.text, plan.note, plan.designer) == (theirs.text, theirs.note, "blueprint")
    ours = managed.encode(image[:1], plan)
    torch.testing.assert_close(ours.hidden, headless.encode(image[:1], theirs).hidden, atol=1e-4, rtol=1e-4)


def test_weights_stay_in_half_precision_and_are_computed_in_fp32(managed, image):
    assert {parameter.dtype for parameter in managed.core.model.parameters()} == {torch.float16}
    assert managed.encode(image[:1], Plan(WISH, WISH)).hidden.dtype == torch.float32
    assert unmanaged(managed.patcher.model) == []


def test_one_copy_serves_designer_and_encoder(managed):
    """The painter's states and the blueprint come from the same parameters: none of them is there twice."""
    designer = BlueprintDesigner(managed.core, "mini")
    both = {id(parameter) for owner in (designer.mllm.model, managed.core.model) for parameter in owner.parameters()}
    assert len(both) == len(list(managed.patcher.model.parameters()))
    assert load_mllm(comfy_folders.DIM_MINI, None) is managed


def test_the_picture_is_read_once(managed, image, monkeypatch):
    reads = []
    read = managed.core.read
    monkeypatch.setattr(managed.core, "read", lambda *args, **kwargs: reads.append(1) or read(*args, **kwargs))
    plan = managed.design(image[:1], WISH, max_new_tokens=8)
    shared = managed.encode(image[:1], plan)
    assert len(reads) == 1
    apart = managed.design(image[:1], WISH, max_new_tokens=8, share_prefix=False)
    managed.encode(image[:1], apart)
    assert len(reads) == 3 and apart.states is None
    again = managed.encode(image[:1], Plan(WISH, plan.text))
    torch.testing.assert_close(again.hidden, shared.hidden, atol=1e-4, rtol=1e-4)


def test_a_batch_is_designed_one_by_one_and_padded(managed, image):
    plans = managed.design(image, [WISH, "remove the tree"], max_new_tokens=8)
    insight = managed.encode(image, plans)
    lengths = insight.mask.sum(1)
    assert insight.hidden.shape[:2] == insight.mask.shape == (2, int(lengths.max()))
    alone = managed.encode(image[1:], plans[1])
    torch.testing.assert_close(insight.hidden[1:, : int(lengths[1])], alone.hidden, atol=1e-4, rtol=1e-4)


def test_text_alone_is_read_for_text_to_image(managed, headless):
    plan = Plan(WISH, WISH)
    ours, theirs = managed.encode(None, plan), headless.encode(None, plan)
    torch.testing.assert_close(ours.hidden, theirs.hidden, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupt_stops_within_one_token_and_the_next_run_works(after, managed, headless, image, monkeypatch):
    """The host's flag alone is set, as by its button; what was half written is not kept on disk."""
    written, write = [], managed.core.decode

    def counted(tokens):
        written.append(len(tokens))
        if len(tokens) == after:
            mm.interrupt_current_processing()
        return write(tokens)

    with monkeypatch.context() as patch:
        patch.setattr(managed.core, "decode", counted)
        if after == 0:
            mm.interrupt_current_processing()
        try:
            with pytest.raises(mm.InterruptProcessingException):
                managed.design(image[:1], WISH, max_new_tokens=24)
        finally:
            mm.interrupt_current_processing(False)
    assert max(written, default=0) == after
    again = managed.design(image[:1], WISH, max_new_tokens=24)
    assert again.text == BlueprintDesigner(headless, "mini").design(image[:1], WISH, max_new_tokens=24).text


def test_the_insight_says_what_the_painter_reads(managed, image):
    found = managed.encode(image[:1], Plan(WISH, WISH))
    assert f"{found.hidden.shape[1]} states of width 48, which a SANA" in found.note
    with pytest.raises(ValueError, match="no CLIP embedding"):
        embeds(found)


def test_adapters_of_mind_edit_are_refused(managed):
    with pytest.raises(Misfit, match="choose the adapter 'none'"):
        load_mllm(comfy_folders.DIM_MINI, comfy_folders.MINI)
    assert managed.with_adapter(None) is managed


def test_a_published_folder_is_listed_and_loaded(unregistered_models, folder, image):
    comfy_folders.register()
    with torch.inference_mode(False):
        headless = Qwen25VL.from_folder(folder)
        place = unregistered_models / "LLM" / "Qwen2.5-VL-tiny"
        headless.model.save_pretrained(place)
        headless.tokenizer.save_pretrained(place)
    assert comfy_folders.list_mllms()[2:] == ["Qwen2.5-VL-tiny"]
    assert comfy_folders.mllm_type("Qwen2.5-VL-tiny") == comfy_folders.QWEN
    loaded = load_mllm("Qwen2.5-VL-tiny", None)
    assert loaded.template == "dim" and "computed in" in describe("Qwen2.5-VL-tiny")
    assert loaded.core.size() == (1008, 1008)
    assert loaded.encode(image[:1], Plan(WISH, WISH)).hidden.shape[1] > 24 * 24


def test_weights_that_the_folder_lacks_are_those_inside_the_published_painter(module_models, folder, image):
    """As Draw-In-Mind publishes it: one file with the MLLM in it, under the keys of transformers 4.51."""
    from safetensors.torch import save_file

    headless = Qwen25VL.from_folder(folder)
    place = module_models / "LLM" / "Qwen2.5-VL-3B-Instruct"
    headless.model.save_pretrained(place)
    headless.tokenizer.save_pretrained(place)
    (place / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"safetensors"):
        load_mllm(place.name, None)
    inside = {
        "mllm." + key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor.clone()
        for key, tensor in headless.model.state_dict().items()
        if key != "lm_head.weight"
    }
    painter = module_models / "diffusion_models" / "DIM-4.6B-Edit" / "model.safetensors"
    painter.parent.mkdir(parents=True)
    save_file(inside | {"projector.0.weight": torch.zeros(2, 2)}, painter)
    folder_paths.filename_list_cache.clear()
    folder_paths.folder_names_and_paths["diffusion_models"] = ([str(painter.parents[1])], {".safetensors"})
    assert "the copy in model.safetensors" in describe(place.name)
    plan = Plan(WISH, WISH)
    loaded = load_mllm(place.name, None)
    loaded.core.side = headless.side
    ours, theirs = loaded.encode(image[:1], plan).hidden, headless.encode(image[:1], plan).hidden
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
