"""Text as a Stable Diffusion UNet reads it, in ComfyUI's conventions: 77 tokens, padded, without an attention mask.

R rows, Dt width of the states, Dp of the pooled embedding
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..contracts import Misfit
from ..tensors import check_shape

log = logging.getLogger(__name__)

Say = Callable[[str], None]


class Text(NamedTuple):
    """tokens: float[R, Lt, Dt];  pooled: float[R, Dp] of SDXL, else None."""

    tokens: Tensor
    pooled: Tensor | None = None

    def rows(self, count: int) -> Text:
        """One row repeated for `count` pictures, or `count` rows as they are; else a Misfit."""
        found = len(self.tokens)
        if found not in (1, count):
            raise Misfit(f"text_tokens must be one, or one for each of the {count} pictures, got {found}")
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Text(self.tokens.expand(count, -1, -1), pooled)


def encode_text(text_encoder: nn.Module, tokenizer: Any, text: str, say: Say = log.warning) -> Tensor:
    """Text -> float[1, 77, Dt]: CLIP's last states after the final layer norm, padded and without a mask, as SD1.5."""
    text_model = getattr(text_encoder, "text_model", text_encoder)  # of a CLIPModel, and of CLIPTextModel before 5.0
    input_ids = token_ids(tokenizer, text, text_model.config.max_position_embeddings, say)
    return text_model(input_ids.to(text_encoder.device)).last_hidden_state


def token_ids(tokenizer: Any, text: str, length: int, say: Say) -> Tensor:
    """long[1, length], cut off or padded; `say` is told if something is lost."""
    if len(tokenizer(text, truncation=False, verbose=False).input_ids) > length:
        say(f"the text is longer than CLIP's {length} tokens; what follows after them is cut off")
    return tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def joined(texts: Sequence[Text]) -> Text:
    """The rows of several texts below each other. The first says the dtype; all must be of the first's shape."""
    first = texts[0].tokens
    for each in texts[1:]:
        check_shape("condition.text_tokens", each.tokens, "b l d", l=first.shape[1], d=first.shape[2])
    tokens = torch.cat([each.tokens.to(texts[-1].tokens) for each in texts])
    pooled = None if texts[0].pooled is None else torch.cat([each.pooled.to(texts[-1].pooled) for each in texts])
    return Text(tokens, pooled)
