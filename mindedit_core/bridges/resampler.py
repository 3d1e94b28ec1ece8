"""The resampler of IP-Adapter plus: a few learned latents read all states of a picture, layer by layer.

It is Flamingo's Perceiver Resampler (arXiv 2204.14198, section 3.1.1) between a Linear in and a Linear out; keys and
sizes as in the files of h94/IP-Adapter: 4 layers, 16 latents, 12 heads of 64 and width 768 for SD1.5, 20 and 1280 for
SDXL. B batch, T states, N latents = image tokens, Dh width of the states, W inner width, Di token width
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn

from ..attention import plain_attention
from .ip_adapter_layouts import HEAD_DIM


class PerceiverAttention(nn.Module):
    """latents float[B, N, W] attend to the states float[B, T, W] and to themselves; returns what is to be added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * HEAD_DIM, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * HEAD_DIM, bias=False)
        self.to_out = nn.Linear(heads * HEAD_DIM, width, bias=False)

    def forward(self, latents: Tensor, states: Tensor) -> Tensor:
        latents = self.norm2(latents)
        key, value = self.to_kv(torch.cat([self.norm1(states), latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(plain_attention(self.to_q(latents), key, value, self.heads))


def feed_forward(width: int, inner: int) -> nn.Sequential:
    """LayerNorm, Linear, GELU, Linear, without biases."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    )


class Resampler(nn.Module):
    """CLIP states float[B, T, Dh] of any T -> image tokens float[B, N, Di].

    width: W;  heads: of 64 each;  inner: width of the feed-forward layers, None: 4 W
    """

    def __init__(
        self,
        embed_dim: int,
        token_dim: int,
        tokens: int = 16,
        width: int = 768,
        heads: int = 12,
        depth: int = 4,
        inner: int | None = None,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, width) * width**-0.5)
        self.proj_in = nn.Linear(embed_dim, width)
        self.proj_out = nn.Linear(width, token_dim)
        self.norm_out = nn.LayerNorm(token_dim)
        pairs = ((PerceiverAttention(width, heads), feed_forward(width, inner or 4 * width)) for _ in range(depth))
        self.layers = nn.ModuleList([nn.ModuleList(pair) for pair in pairs])

    def forward(self, image_embeds: Tensor) -> Tensor:
        states = self.proj_in(image_embeds)
        latents = repeat(self.latents.to(states), "1 n w -> b n w", b=len(states))
        for attention, feed in self.layers:
            latents = latents + attention(latents, states)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))
