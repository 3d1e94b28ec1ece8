"""Decoupled cross-attention: Z = Attn(Q, K_txt, V_txt) + lambda * Attn(Q, K_ip, V_ip) (IP-Adapter, arXiv 2308.06721).

The same functions serve diffusers' attention processor (bridges/attention_processor.py) and ComfyUI's attn2 patch,
which brings the text branch computed by its own kernel. With lambda 0 or a closed gate the text branch comes back
*bit for bit*: skipped where lambda and the gate are Python values, chosen by `torch.where` where they live on the
device. A multiply-add by 0 would not do (0 * inf is nan, -0.0 + 0.0 is 0.0), and reading a device value in Python would
stall the device at every layer of every step.

Axes: B batch, L queries, S text tokens, N image tokens, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, attention_mask: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention over heads that lie side by side.

    query: float[B, L, H*d];  key, value: float[B, S, H*d];  attention_mask: broadcastable to [B, H, L, S], or None
    Returns float[B, L, H*d].
    """
    query, key, value = (rearrange(x, "b l (h d) -> b h l d", h=heads) for x in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    return rearrange(attended, "b h l d -> b l (h d)")


def is_shut(scale: float | Tensor, gate: bool | Tensor | None) -> bool:
    """True when Python already knows that the image branch adds nothing. Never reads a tensor."""
    return (not isinstance(scale, Tensor) and scale == 0) or (isinstance(gate, bool) and not gate)


def add_image_branch(
    attended: Tensor,
    query: Tensor,
    image_key: Tensor,
    image_value: Tensor,
    scale: float | Tensor,
    heads: int,
    gate: bool | Tensor | None = None,
    attention: Attention = plain_attention,
) -> Tensor:
    """Text attention `attended` plus `scale` times the attention of the same queries to the image tokens.

    attended, query: float[B, L, H*d];  image_key, image_value: float[B, N, H*d], cast to the query's dtype
    scale: lambda, a number, or a tensor broadcastable to [B, L, H*d]
    gate: None is open; a bool; or a bool tensor that broadcasts as scale does, such as [] for a whole step or [B, 1, 1]
        for rows: where it is False `attended` comes back bit for bit
    attention: the kernel for the image branch, `f(query, key, value, heads)`; ComfyUI passes its own.
    """
    if is_shut(scale, gate):
        return attended
    extra = attention(query, image_key.to(query.dtype), image_value.to(query.dtype), heads)
    total = (attended + scale * extra).to(attended.dtype)
    if isinstance(scale, Tensor):
        gate = gate & (scale != 0) if isinstance(gate, Tensor) else scale != 0
    return torch.where(gate, total, attended) if isinstance(gate, Tensor) else total


def decoupled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    image_key: Tensor,
    image_value: Tensor,
    scale: float | Tensor,
    heads: int,
    gate: bool | Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """`plain_attention` to the text plus the gated image branch: float[B, L, H*d]. Arguments as in the two above."""
    attended = plain_attention(query, key, value, heads, attention_mask)
    return add_image_branch(attended, query, image_key, image_value, scale, heads, gate)
