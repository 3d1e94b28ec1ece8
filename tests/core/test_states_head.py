"""F_v for plus and full-face adapters: one prediction a CLIP state, from the mean predictor on; its file."""

import pytest
import torch

from mindedit_core.backbones import adapter_files, lora
from mindedit_core.backbones.heads import build_head, describe_head
from mindedit_core.backbones.states_head import StatesHead
from mindedit_core.backbones.vision_head import VisionHead
from mindedit_core.checkpoint import CheckpointError, read_metadata
from mindedit_core.kinds import detect
from mindedit_core.systems.tiny import tiny_mind_edit

B, L, D, T, DH = 3, 7, 12, 5, 20
MASK = torch.arange(L) < torch.tensor([[7], [4], [1]])


@pytest.fixture
def head(generator):
    head = StatesHead(D, DH, tokens=T, width=128)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return head


@pytest.fixture
def states(generator):
    return torch.randn(B, L, D, generator=generator)


def test_it_predicts_one_vector_a_state(head, states):
    assert head(states, MASK).shape == (B, T, DH)
    assert not torch.allclose(head(states, MASK)[:, 0], head(states, MASK)[:, 1])


def test_what_stands_behind_the_mask_has_no_influence(head, states):
    changed = states.masked_fill(~MASK.unsqueeze(-1), float("nan"))
    assert torch.equal(head(states, MASK), head(changed, MASK))


def test_a_masked_batch_equals_its_rows_alone(head, states):
    alone = torch.cat([head(states[row : row + 1, :n], MASK[row : row + 1, :n]) for row, n in enumerate((7, 4, 1))])
    torch.testing.assert_close(head(states, MASK), alone, atol=1e-5, rtol=1e-5)


def test_an_untrained_head_is_the_mean_predictor(states, generator):
    head, pictures = StatesHead(D, DH, tokens=T, width=64), 4.0 * torch.randn(50, T, DH, generator=generator) + 3.0
    head.calibrate(pictures)
    torch.testing.assert_close(head(states, MASK), pictures.mean(0).expand(B, -1, -1))
    learnt = head.standardised(pictures)
    torch.testing.assert_close(learnt.mean(0), torch.zeros(T, DH), atol=1e-5, rtol=0)
    torch.testing.assert_close(learnt.square().mean((0, 1)).sqrt(), torch.ones(DH), atol=1e-4, rtol=0)


def test_every_parameter_learns_from_the_second_step_on(states):
    """In the first only the last layer does: it starts at zero, so that the head starts at the mean."""
    head = StatesHead(D, DH, tokens=T, width=64)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (head(states, MASK) - 1.0).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same(head, states, dtype):
    expected = head(states, MASK).detach()
    found = head.to(dtype)(states.to(dtype), MASK)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05 * float(expected.abs().max()), rtol=0.05)


def test_sizes_rebuild_either_head(head, states):
    for original in (head, VisionHead(D, DH, width=16, queries=2)):
        again = build_head(describe_head(original))
        again.load_state_dict(original.state_dict())
        assert type(again) is type(original) and torch.equal(again(states, MASK), original(states, MASK))
    assert describe_head(None) == {} and "form" not in describe_head(VisionHead(D, DH))


def test_wrong_sizes_are_refused(head, states):
    with pytest.raises(ValueError, match="hidden_states must be .b l d. with d=12, got"):
        head(torch.zeros(1, L, D + 1), torch.ones(1, L, dtype=torch.bool))
    with pytest.raises(ValueError, match="width must be a multiple of 64.*got 100"):
        StatesHead(D, DH, width=100)
    with pytest.raises(ValueError, match=r"states must be \[n t d\] with t=5, d=20"):
        head.calibrate(torch.zeros(2, T + 1, DH))
    with pytest.raises(ValueError, match="unknown form of VisionHead 'patches'; have global, states"):
        build_head({"form": "patches", "hidden_size": D})


def test_for_vit_h_it_stays_small():
    """LLaVA-OneVision-0.5B and 7B to 257 x 1280."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in StatesHead(width, 1280).parameters()) / 1e6 for width in (896, 3584)]
    assert sizes == pytest.approx([7.6, 9.0], abs=0.1)


# Its file ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tiny_parts, tmp_path, generator):
    """(path, head, states of a zero image) of an adapter whose head predicts 17 x 32 states."""
    adapter, head = tiny_mind_edit(tiny_parts["mllm"]), StatesHead(36, 32, tokens=17, width=64)
    head.calibrate(torch.randn(9, 17, 32, generator=generator))
    config = {**adapter.config, "clip_space": {"name": "tiny-clip", "dim": 32}}
    negative = torch.randn(17, 32, generator=generator)
    path = tmp_path / "states.safetensors"
    adapter_files.save_adapter(path, adapter.pairs, head, config, negative_image_embeds=negative, recipe="test")
    return path, head, negative


def test_an_adapter_file_keeps_head_and_zero_image(file, tiny_parts):
    path, head, negative = file
    read = adapter_files.read_adapter(path)
    assert detect(path) == "mind_edit" and type(read.head) is StatesHead and not read.head.training
    assert all(torch.equal(value, head.state_dict()[key]) for key, value in read.head.state_dict().items())
    assert torch.equal(read.negative_image_embeds, negative)
    assert read_metadata(path)["config"]["vision_head"] == {"form": "states", **head.sizes}
    lora.require_match(read, tiny_parts["mllm"], 36, 2)


def test_files_of_before_have_a_global_head_and_no_zero_image(tiny_folder):
    read = adapter_files.read_adapter(tiny_folder / "mind_edit.safetensors")
    assert type(read.head) is VisionHead and read.negative_image_embeds is None
    assert "form" not in read_metadata(tiny_folder / "mind_edit.safetensors")["config"]["vision_head"]


def test_a_zero_image_of_another_shape_is_refused(file, tiny_parts):
    path, head, negative = file
    read = adapter_files.read_adapter(path)
    adapter_files.save_adapter(path, read.pairs, head, read.config, negative_image_embeds=negative[:5])
    with pytest.raises(
        CheckpointError, match=r"negative_image_embeds must be of the shape .* \[17, 32\], got \[5, 32\]"
    ):
        adapter_files.read_adapter(path)


def test_states_of_another_width_than_the_metadata_says_are_refused(file, tiny_parts):
    path, head, negative = file
    read = adapter_files.read_adapter(path)
    config = {**read.config, "clip_space": {"name": "tiny-clip", "dim": 24}}
    adapter_files.save_adapter(path, read.pairs, head, config)
    with pytest.raises(ValueError, match="VisionHead from 36 to 32; its metadata .* to 24"):
        lora.require_match(adapter_files.read_adapter(path), tiny_parts["mllm"], 36, 2)
