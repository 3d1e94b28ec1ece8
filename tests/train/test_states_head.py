"""A head of states learns on the mini: from what the MLLM thought, the penultimate CLIP states of the target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mindedit_core import load_system
from mindedit_core.backbones.states_head import StatesHead
from mindedit_core.scenes import sample
from train.image_states import image_states
from train.mind_edit import collate, target_pixels

TRAINED, HELD_OUT, STEPS, BATCH = 192, 64, 75, 16
TOKENS, WIDTH = 65, 192  # the mini's CLIP: 8 x 8 patches and the class token


@torch.no_grad()
def seen(system, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Answer states float[N, L, D] of layer m, their mask, and CLIP's states float[N, 65, 192] of the targets."""
    items = [sample(first + number) for number in range(count)]
    inputs = system.mllm.training_batch(images=None, **collate(items))
    out = system.mllm.answer_pass(inputs)
    return out.states, out.mask, image_states(system.painter.text_encoder, target_pixels(items))


@pytest.mark.weights
def test_a_short_training_beats_the_mean_predictor_on_unseen_pictures():
    """In the head's own units, where the mean predictor's error is about 1. Measured: 1.02 -> 0.80 on unseen pictures,
    and the states of another picture's answer are worth nothing.
    """
    system = load_system("mini")
    states, mask, targets = seen(system, 0, TRAINED)
    unseen = seen(system, 2**31, HELD_OUT)
    assert targets.shape == (TRAINED, TOKENS, WIDTH)
    torch.manual_seed(0)
    head = StatesHead(states.shape[-1], WIDTH, tokens=TOKENS, width=128)
    head.calibrate(targets)
    mean_predictor = head.standardised(unseen[2]).square().mean().item()
    assert error(head, *unseen).item() == pytest.approx(mean_predictor, abs=1e-5)
    losses = train(head, states, mask, targets)
    after = error(head, *unseen).item()
    others = error(head, unseen[0].roll(1, 0), unseen[1].roll(1, 0), unseen[2]).item()
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert after < 0.87 * mean_predictor
    assert others > 1.1 * after


def error(head: StatesHead, states: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    return (head.standardised(head(states, mask)) - head.standardised(targets)).square().mean()


def train(head: StatesHead, states: Tensor, mask: Tensor, targets: Tensor) -> list[float]:
    optimizer, generator = torch.optim.AdamW(head.parameters(), lr=2e-3), torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        rows = torch.randperm(TRAINED, generator=generator)[:BATCH]
        loss = error(head, states[rows], mask[rows], targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
