"""Decoupled attention: shut is plain bit for bit, the gate lives on the device, lambda is linear."""

from __future__ import annotations

import pytest
import torch

from mindedit_core.attention import add_image_branch, decoupled_attention, is_shut, plain_attention

HEADS = 2


@pytest.fixture
def qkv() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, length, 16, generator=generator) for length in (9, 5, 5, 4, 4)]


def by_hand(query, key, value):
    """Softmax attention written out, one head at a time."""
    heads = []
    for q, k, v in zip(*(x.chunk(HEADS, dim=-1) for x in (query, key, value)), strict=True):
        heads.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return torch.cat(heads, dim=-1)


def test_plain_attention_is_softmax_attention(qkv):
    query, key, value = qkv[:3]
    torch.testing.assert_close(plain_attention(query, key, value, HEADS), by_hand(query, key, value))


def test_the_sum_is_text_plus_lambda_times_image(qkv):
    query, key, value, image_key, image_value = qkv
    expected = by_hand(query, key, value) + 0.6 * by_hand(query, image_key, image_value)
    torch.testing.assert_close(decoupled_attention(*qkv, 0.6, HEADS), expected)


@pytest.mark.parametrize(
    ("scale", "gate"),
    [
        (0, None),
        (0.0, True),
        (1.0, False),
        (1.0, torch.tensor(False)),
        (torch.tensor(0.0), None),
        (torch.tensor(0.0), torch.tensor(True)),
        (torch.tensor(1.0), torch.tensor(False)),
        (torch.tensor(1.0), False),
    ],
)
def test_shut_is_plain_attention_bit_for_bit(qkv, scale, gate):
    plain = plain_attention(*qkv[:3], HEADS)
    assert torch.equal(decoupled_attention(*qkv, scale, HEADS, gate), plain)


def test_a_device_gate_shuts_even_a_broken_image_branch(qkv):
    query, key, value, image_key, image_value = qkv
    plain = plain_attention(query, key, value, HEADS)
    broken = torch.full_like(image_value, float("inf"))
    assert torch.equal(
        decoupled_attention(query, key, value, image_key, broken, 1.0, HEADS, torch.tensor(False)), plain
    )


def test_shut_keeps_the_sign_of_zero(qkv):
    minus_zero = torch.full_like(qkv[0], -0.0)
    out = add_image_branch(minus_zero, qkv[0], qkv[3], qkv[4], torch.tensor(0.0), HEADS)
    assert torch.equal(torch.signbit(out), torch.signbit(minus_zero))


def test_an_open_device_gate_equals_no_gate_bit_for_bit(qkv):
    assert torch.equal(decoupled_attention(*qkv, 0.7, HEADS, torch.tensor(True)), decoupled_attention(*qkv, 0.7, HEADS))


def test_a_gate_of_rows_opens_only_its_rows(qkv):
    gate = torch.tensor([True, False, True])[:, None, None]
    out, full, plain = (
        decoupled_attention(*qkv, 1.0, HEADS, gate),
        decoupled_attention(*qkv, 1.0, HEADS),
        plain_attention(*qkv[:3], HEADS),
    )
    assert torch.equal(out[1], plain[1])
    assert torch.equal(out[[0, 2]], full[[0, 2]]) and not torch.equal(out[0], plain[0])


def test_lambda_is_linear_in_the_added_term(qkv):
    plain = plain_attention(*qkv[:3], HEADS)
    one, three = (decoupled_attention(*qkv, scale, HEADS) - plain for scale in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one, atol=1e-5, rtol=1e-5)


def test_a_tensor_is_never_read_to_decide():
    assert not is_shut(torch.tensor(0.0), torch.tensor(False))
    meta = [torch.empty(1, length, 16, device="meta") for length in (9, 5, 5, 4, 4)]
    gate = torch.empty((), dtype=torch.bool, device="meta")  # reading a meta tensor raises, as a sync would stall
    assert decoupled_attention(*meta, torch.empty((), device="meta"), HEADS, gate).shape == (1, 9, 16)


def test_the_image_branch_runs_in_the_dtype_of_the_queries(qkv):
    half = [x.bfloat16() for x in qkv[:3]]
    assert decoupled_attention(*half, *qkv[3:], torch.tensor([0.5]), HEADS).dtype == torch.bfloat16


def test_the_host_may_bring_its_own_kernel(qkv):
    calls = []

    def kernel(query, key, value, heads):
        calls.append(heads)
        return by_hand(query, key, value)

    text = plain_attention(*qkv[:3], HEADS)
    out = add_image_branch(text, qkv[0], qkv[3], qkv[4], 1.0, HEADS, attention=kernel)
    assert calls == [HEADS]
    torch.testing.assert_close(out, decoupled_attention(*qkv, 1.0, HEADS))
