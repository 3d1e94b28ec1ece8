"""From a CLIP embedding to image tokens, the two simple ones of IP-Adapter (arXiv 2308.06721): base and full-face.

`state_dict()` is the published layout. B batch, T states, N image tokens, Dc Dh widths of what is read, Di token width
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


class ImageProjection(nn.Module):
    """Base: the global embedding float[B, Dc] -> float[B, N, Di]: one Linear, split into tokens, LayerNorm."""

    def __init__(self, embed_dim: int, token_dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(embed_dim, tokens * token_dim)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(image_embeds), "b (n d) -> b n d", n=self.tokens))


class FullFaceProjection(nn.Module):
    """Full-face: CLIP states float[B, T, Dh] -> float[B, T, Di], each through one MLP and LayerNorm."""

    def __init__(self, embed_dim: int, token_dim: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or embed_dim
        self.proj = nn.Sequential(
            nn.Linear(embed_dim, inner), nn.GELU(), nn.Linear(inner, token_dim), nn.LayerNorm(token_dim)
        )

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.proj(image_embeds)
