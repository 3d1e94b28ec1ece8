"""F_v: pooling of masked states and the projection into CLIP's space."""

import pytest
import torch

from mindedit_core.backbones.vision_head import VisionHead

B, L, D, DC = 3, 7, 12, 5


@pytest.fixture
def head(generator):
    head = VisionHead(D, DC, width=16, queries=2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


@pytest.fixture
def states(generator):
    return torch.randn(B, L, D, generator=generator)


MASK = torch.arange(L) < torch.tensor([[7], [4], [1]])


def test_what_stands_behind_the_mask_has_no_influence(head, states):
    changed = states.masked_fill(~MASK.unsqueeze(-1), float("nan"))
    assert torch.equal(head(states, MASK), head(changed, MASK))


def test_a_masked_batch_equals_its_rows_alone(head, states):
    alone = torch.cat([head(states[row : row + 1, :n], MASK[row : row + 1, :n]) for row, n in enumerate((7, 4, 1))])
    torch.testing.assert_close(head(states, MASK), alone, atol=1e-6, rtol=1e-6)


def test_an_untrained_query_pools_by_the_mean(states):
    head = VisionHead(D, DC)
    mean = torch.stack([head.norm_in(states[row, :n]).mean(0) for row, n in enumerate((7, 4, 1))])
    torch.testing.assert_close(head.pool(states, MASK), mean, atol=1e-6, rtol=1e-6)


def test_a_query_attends_to_what_it_resembles():
    head = VisionHead(D, DC)
    states = torch.eye(D)[None, :L]
    with torch.no_grad():
        head.query.copy_(100 * head.norm_in(states[:, 3]))
    pooled = head.pool(states, torch.ones(1, L, dtype=torch.bool))
    torch.testing.assert_close(pooled, head.norm_in(states[:, 3]))


def test_every_parameter_learns_from_the_first_step_on(states):
    head = VisionHead(D, DC)
    head(states, MASK).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


def test_sizes_rebuild_the_head(head, states):
    again = VisionHead(**head.sizes)
    again.load_state_dict(head.state_dict())
    assert torch.equal(head(states, MASK), again(states, MASK))


def test_states_of_another_width_are_refused(head):
    with pytest.raises(ValueError, match="hidden_states must be .b l d. with d=12, got"):
        head(torch.zeros(1, L, D + 1), torch.ones(1, L, dtype=torch.bool))
