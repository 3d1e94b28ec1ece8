"""Draw-In-Mind's bridge (arXiv 2509.01986): the MLLM's last states of the user's turn through a two-layer MLP.

B batch, L tokens of the turn (the picture's among them), D MLLM width, Dt width that the painter reads
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_strict
from ..contracts import TURN, Condition, Insight, Misfit


class MLPProjector(nn.Sequential):
    """Keys `0.weight` .. `2.bias`, as the published `projector.*`. max_tokens: longer turns lose their beginning."""

    emits = frozenset({"text_tokens"})
    span = TURN  # which of the MLLM's states it reads

    def __init__(self, hidden_size: int, token_dim: int, max_tokens: int = 8192) -> None:
        super().__init__(nn.Linear(hidden_size, token_dim), nn.GELU(), nn.Linear(token_dim, token_dim))
        self.hidden_size, self.token_dim, self.max_tokens = hidden_size, token_dim, max_tokens

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], max_tokens: int, name: str, dtype: torch.dtype | None = torch.float32
    ) -> MLPProjector:
        """Frozen, of the published keys. dtype: None keeps theirs. Raises CheckpointError naming what does not fit."""
        if "0.weight" not in tensors:
            raise CheckpointError(f"{name} (projector.*) lacks 0.weight; fetch it again")
        hidden_size = tensors["0.weight"].shape[1]
        # what most of them say: a damaged one is outvoted, and then named
        width = Counter(tensor.shape[0] for tensor in tensors.values()).most_common(1)[0][0]
        with torch.device("meta"):
            projector = cls(hidden_size, width, max_tokens)
        cast = {key: tensor if dtype is None else tensor.to(dtype) for key, tensor in tensors.items()}
        return load_strict(projector, cast, f"{name} (projector.*)", assign=True).eval().requires_grad_(False)

    def __call__(self, insight: Insight | Tensor) -> Condition | Tensor:
        """Insight -> Condition; of bare states float[B, L, D] their tokens float[B, L, Dt]."""
        if isinstance(insight, Tensor):
            return super().__call__(insight)
        hidden = None if insight.hidden is None else insight.hidden.to(self[0].weight.device)
        return self.condition(hidden, insight.mask)

    def condition(self, hidden: Tensor | None, mask: Tensor | None) -> Condition:
        """The last `max_tokens` tokens of the turn and their mask. Raises Misfit for states of another MLLM.

        hidden: float[B, L, D];  mask: bool[B, L]
        """
        if hidden is None or hidden.shape[-1] != self.hidden_size:
            found = None if hidden is None else hidden.shape[-1]
            raise Misfit(
                f"this painter's projector reads MLLM states of width {self.hidden_size}, got {found}; "
                "load the MLLM that it was trained with (Draw-In-Mind: Qwen2.5-VL-3B-Instruct)"
            )
        dtype = getattr(self[0], "compute_dtype", self[0].weight.dtype)  # a host may keep weights in another
        kept = hidden[:, -self.max_tokens :].to(dtype)
        return Condition(text_tokens=self(kept), text_mask=mask[:, -self.max_tokens :])
