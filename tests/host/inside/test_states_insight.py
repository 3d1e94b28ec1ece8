"""A head of states under the host's memory management: every parameter managed, batches, EMBEDS for IPAdapter_plus."""

from __future__ import annotations

import pytest
import torch

from mindedit_core.backbones import adapter_files
from mindedit_core.backbones.llava_onevision import NO_NEGATIVE, LlavaOnevision
from mindedit_core.backbones.states_head import StatesHead
from mindedit_core.contracts import Plan
from mindedit_core.hosts.comfy_managed import unmanaged
from mindedit_core.hosts.comfy_mllm import embeds
from mindedit_core.hosts.comfy_mllm_loading import from_paths

STATES, WIDTH = 17, 32
SPACE = {"name": "tiny-clip", "dim": WIDTH}


@pytest.fixture(scope="module")
def file(mini_folder, tmp_path_factory):
    """path(told): an adapter for the mini in use whose head predicts states, told of the zero image or not."""
    old = adapter_files.read_adapter(mini_folder / "mind_edit.safetensors")
    with torch.inference_mode(False):
        torch.manual_seed(0)
        head = StatesHead(old.config["hidden_size"], WIDTH, tokens=STATES, width=64)
        torch.nn.init.normal_(head.linear_out.weight, std=0.1)

    def path(told: bool = True):
        place = tmp_path_factory.mktemp("adapter") / "states.safetensors"
        negative = torch.full((STATES, WIDTH), 0.5) if told else None
        config = {**old.config, "clip_space": SPACE}
        return adapter_files.save_adapter(place, old.pairs, head, config, torch.float16, negative_image_embeds=negative)

    return path


@pytest.fixture
def images(generator):
    return torch.rand(2, 128, 128, 3, generator=generator)


def test_every_parameter_is_managed_and_predicts_as_headless(file, mini_folder, images):
    path = file()
    mllm = from_paths(mini_folder, path, mllm_id="mini")
    assert unmanaged(mllm.head_patcher.model) == []
    with torch.inference_mode(False):
        headless = LlavaOnevision.from_folder(mini_folder, adapter=path)
    insight = mllm.encode(images[:1], Plan("make it red", "make it red"))
    expected = headless.encode(images[:1].clone(), Plan("make it red", "make it red"))
    torch.testing.assert_close(insight.image_embeds, expected.image_embeds, atol=1e-4, rtol=1e-4)
    assert torch.equal(insight.negative_image_embeds, expected.negative_image_embeds)


def test_a_batch_has_a_zero_image_a_row_and_both_leave_as_embeds(file, mini_folder, images):
    mllm = from_paths(mini_folder, file(), mllm_id="mini")
    insight = mllm.encode(images, Plan("make it red", "make it red"))
    positive, negative = embeds(insight)
    assert positive is insight.image_embeds and positive.shape == negative.shape == (2, STATES, WIDTH)
    assert (negative == 0.5).all() and insight.note == ""


def test_without_the_zero_image_the_embeds_are_zeros_and_the_note_says_so(file, mini_folder, images):
    insight = from_paths(mini_folder, file(told=False), mllm_id="mini").encode(images[:1], Plan("red", "red"))
    assert not embeds(insight)[1].any() and insight.note == NO_NEGATIVE
