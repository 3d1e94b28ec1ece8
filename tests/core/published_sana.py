"""SANA in its published layout, written for tests from the papers alone: what our mapping of keys is compared with.

arXiv 2410.10629, section 2.2 (linear attention, Mix-FFN) and arXiv 2501.18427 (norms of queries and keys); the names of
the modules are those of the published weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HEAD = 32


class Norm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(width) + 0.5), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class LinearAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_norm, self.k_norm = Norm(width), Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        heads = (rearrange(y, "b n (h d) -> b h n d", d=HEAD) for y in (self.q_norm(query), self.k_norm(key), value))
        query, key, value = (F.relu(y) if place < 2 else y for place, y in enumerate(heads))
        seen = torch.einsum("b h n d, b h n e -> b h d e", key, value)
        total = torch.einsum("b h n d, b h d -> b h n", query, key.sum(2)).unsqueeze(-1)
        attended = torch.einsum("b h n d, b h d e -> b h n e", query, seen) / (total + 1e-15)
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = Norm(width), Norm(width)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        key, value = self.kv_linear(y).chunk(2, -1)
        heads = (self.q_norm(self.q_linear(x)), self.k_norm(key), value)
        query, key, value = (rearrange(z, "b n (h d) -> b h n d", h=self.heads) for z in heads)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))


class Conv(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MixFFN(nn.Module):
    def __init__(self, width: int, ratio: float):
        super().__init__()
        inner = int(width * ratio)
        self.inverted_conv = Conv(width, 2 * inner, 1)
        self.depth_conv = Conv(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner)
        self.point_conv = Conv(inner, width, 1, bias=False)

    def forward(self, x: Tensor, height: int) -> Tensor:
        grid = rearrange(x, "b (h w) c -> b c h w", h=height)
        gated, gate = self.depth_conv(F.silu(self.inverted_conv(grid))).chunk(2, 1)
        return rearrange(self.point_conv(gated * F.silu(gate)), "b c h w -> b (h w) c")


class Block(nn.Module):
    def __init__(self, width: int, cross_heads: int, ratio: float):
        super().__init__()
        self.attn, self.cross_attn = LinearAttention(width), CrossAttention(width, cross_heads)
        self.mlp = MixFFN(width, ratio)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, t: Tensor, height: int) -> Tensor:
        told = self.scale_shift_table + rearrange(t, "b (k d) -> b k d", k=6)
        shift, scale, gate, shift_2, scale_2, gate_2 = told.chunk(6, 1)
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        x = x + gate * self.attn(normed)
        x = x + self.cross_attn(x, y, mask)
        return x + gate_2 * self.mlp(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_2) + shift_2, height)


class Sequence(nn.Sequential):
    pass


class PublishedSana(nn.Module):
    """forward(x [B, in, h, w], y [B, L, caption], mask bool[B, L], t int[B]) -> velocity [B, out, h, w]"""

    def __init__(self, in_channels: int, out_channels: int, width: int, cross_heads: int, caption: int, blocks: int,
                 null_tokens: int, ratio: float = 2.5):
        super().__init__()
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(in_channels, width, 1)
        self.y_embedder = nn.Module()
        self.y_embedder.y_proj = nn.Module()
        self.y_embedder.y_proj.fc1, self.y_embedder.y_proj.fc2 = nn.Linear(caption, width), nn.Linear(width, width)
        self.y_embedder.y_embedding = nn.Parameter(torch.randn(null_tokens, caption))
        self.attention_y_norm = Norm(width)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = Sequence(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_block = Sequence(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList([Block(width, cross_heads, ratio) for _ in range(blocks)])
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(width, out_channels)
        self.final_layer.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, t: Tensor) -> Tensor:
        height = x.shape[2]
        told = self.t_embedder.mlp(sinusoid(t))
        texts = self.y_embedder.y_proj
        y = self.attention_y_norm(texts.fc2(F.gelu(texts.fc1(y), approximate="tanh")))
        x = rearrange(self.x_embedder.proj(x), "b c h w -> b (h w) c")
        for block in self.blocks:
            x = block(x, y, mask, self.t_block(told), height)
        shift, scale = (self.final_layer.scale_shift_table + told[:, None]).chunk(2, 1)
        x = self.final_layer.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        return rearrange(x, "b (h w) c -> b c h w", h=height)


def sinusoid(t: Tensor, width: int = 256) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)
