"""F_v of MIND-Edit (arXiv 2505.19149, Figure 1): states of the MLLM's layer m -> v_insight, a CLIP image embedding.

The paper names the part and nothing inside it; this form is ours. Attention pooling with a learned query over the
states from the last prompt token to the last token fed, then LayerNorm, Linear, GELU, Linear.
B batch, L answer states, D MLLM width, Q queries, Dc CLIP width
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..contracts import GLOBAL
from ..tensors import check_shape


class VisionHead(nn.Module):
    """hidden_states float[B, L, D], mask bool[B, L] -> image_embeds float[B, Dc].

    width: of the hidden layer, None: 2 * embed_dim;  queries: 1 as proposed; more look at several places at once.
    The query starts at zero: an untrained head pools by the mean.
    """

    embed_form = GLOBAL

    def __init__(self, hidden_size: int, embed_dim: int, width: int | None = None, queries: int = 1):
        super().__init__()
        width = width or 2 * embed_dim
        self.hidden_size, self.embed_dim, self.width, self.queries = hidden_size, embed_dim, width, queries
        self.norm_in = nn.LayerNorm(hidden_size)  # a residual stream has a few channels that dwarf the others
        self.query = nn.Parameter(torch.zeros(queries, hidden_size))
        self.norm = nn.LayerNorm(queries * hidden_size)
        self.linear_1 = nn.Linear(queries * hidden_size, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, embed_dim)

    @property
    def sizes(self) -> dict[str, int]:
        """The constructor's arguments, as stored in an adapter's metadata."""
        return {name: getattr(self, name) for name in ("hidden_size", "embed_dim", "width", "queries")}

    def pool(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        """float[B, L, D] -> float[B, Q * D]; what stands where the mask is False has no influence at all."""
        states = self.norm_in(hidden_states.masked_fill(~mask.unsqueeze(-1), 0.0))
        scores = torch.einsum("b l d, q d -> b q l", states, self.query.to(states)) * self.hidden_size**-0.5
        weights = scores.float().masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(dim=-1).to(states)
        return rearrange(weights @ states, "b q d -> b (q d)")

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        sizes = check_shape("hidden_states", hidden_states, "b l d", d=self.hidden_size)
        check_shape("mask", mask, "b l", b=sizes["b"], l=sizes["l"])
        pooled = self.norm(self.pool(hidden_states, mask))
        return self.linear_2(self.act(self.linear_1(pooled)))
