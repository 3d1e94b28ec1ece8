"""F_v of MIND-Edit (arXiv 2505.19149, Figure 1) for plus and full-face IP-Adapters, which read states, not one vector.

A learned query for every CLIP state of the picture to come attends to the MLLM's states of layer m, two layers deep, as
the cross-attention blocks of a Perceiver do (arXiv 2103.03206, section 3). The paper names the part and nothing
inside it; this form is ours. B batch, L answer states, D MLLM width, T CLIP states, Dh their width, W inner width
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..attention import plain_attention
from ..contracts import STATES
from ..tensors import check_shape

HEAD_DIM = 64


class StatesHead(nn.Module):
    """hidden_states float[B, L, D], mask bool[B, L] -> image_embeds float[B, T, Dh]: hidden_states[-2] of CLIP.

    tokens: T, 257 for ViT-H;  embed_dim: Dh, 1280 for ViT-H;  width: W, a multiple of 64;  layers: depth
    At the start every picture's states are `mean` (`calibrate`): the head learns what differs from it, in units of
    `std`, since a few channels of CLIP's residual stream dwarf the others.
    """

    embed_form = STATES

    def __init__(self, hidden_size: int, embed_dim: int, tokens: int = 257, width: int = 512, layers: int = 2):
        super().__init__()
        if width % HEAD_DIM:
            raise ValueError(f"width must be a multiple of {HEAD_DIM}, the width of a head, got {width}")
        self.hidden_size, self.embed_dim, self.tokens, self.width = hidden_size, embed_dim, tokens, width
        self.norm_in = nn.LayerNorm(hidden_size)  # a residual stream has a few channels that dwarf the others
        self.linear_in = nn.Linear(hidden_size, width)
        self.queries = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.layers = nn.ModuleList([Block(width) for _ in range(layers)])
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, embed_dim)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)
        self.register_buffer("mean", torch.zeros(tokens, embed_dim))
        self.register_buffer("std", torch.ones(embed_dim))

    @property
    def sizes(self) -> dict[str, int]:
        """The constructor's arguments, as stored in an adapter's metadata."""
        names = ("hidden_size", "embed_dim", "tokens", "width")
        return {**{name: getattr(self, name) for name in names}, "layers": len(self.layers)}

    @torch.no_grad()
    def calibrate(self, states: Tensor) -> None:
        """Take mean and spread from CLIP states float[N, T, Dh] of training pictures, before training."""
        check_shape("states", states, "n t d", t=self.tokens, d=self.embed_dim)
        self.mean.copy_(states.float().mean(0))
        self.std.copy_((states.float() - self.mean).square().mean((0, 1)).sqrt().clamp(min=1e-6))

    def standardised(self, states: Tensor) -> Tensor:
        """CLIP states float[B, T, Dh] in the units that the head learns in; the mean predictor's is 0."""
        return (states - self.mean.to(states)) / self.std.to(states)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        sizes = check_shape("hidden_states", hidden_states, "b l d", d=self.hidden_size)
        check_shape("mask", mask, "b l", b=sizes["b"], l=sizes["l"])
        answer = self.linear_in(self.norm_in(hidden_states.masked_fill(~mask.unsqueeze(-1), 0.0)))
        queries = repeat(self.queries.to(answer), "t w -> b t w", b=sizes["b"])
        for block in self.layers:
            queries = block(queries, answer, mask)
        predicted = self.linear_out(self.norm_out(queries))
        return predicted * self.std.to(predicted) + self.mean.to(predicted)


class Block(nn.Module):
    """Queries float[B, T, W] attend to the answer float[B, L, W] where the mask is True; then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.norm_query, self.norm_answer, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, answer: Tensor, mask: Tensor) -> Tensor:
        answer, query = self.norm_answer(answer), self.to_q(self.norm_query(queries))
        seen = rearrange(mask, "b l -> b 1 1 l")
        attended = plain_attention(query, self.to_k(answer), self.to_v(answer), self.heads, seen)
        queries = queries + self.to_out(attended)
        return queries + self.mlp(self.norm_mlp(queries))
