"""A prompt as the host's CONDITIONING."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def encode_prompt(clip: Any, text: str | Sequence[str], *, emphasis: bool = False) -> list:
    """CONDITIONING of one text, as the host's CLIP Text Encode; of several, one row for each picture of a batch.

    emphasis: brackets are the host's emphasis, as a user may type it; else they are text, as an MLLM writes it.
    Raises ValueError for no CLIP, and for texts of unequal encoded length (each 77 tokens is one length).
    """
    if clip is None:
        raise ValueError("there is no CLIP: this checkpoint has no text encoder; wire one from a CLIP loader")
    texts = [text] if isinstance(text, str) else list(text)
    texts = texts if emphasis else [literal(each) for each in texts]
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(each)) for each in texts]
    return encoded[0] if len(encoded) == 1 else [_rows(encoded)]


def literal(text: str) -> str:
    """`text` so that the host's tokenizer reads its brackets as brackets.

    >>> literal("a cat (red)")
    'a cat \\\\(red\\\\)'
    """
    return text.replace("(", "\\(").replace(")", "\\)")


def _rows(encoded: list) -> list:
    """One conditioning whose tensors have a row for each text: [float[B, L, D], {...}]."""
    tokens, extras = [each[0][0] for each in encoded], [each[0][1] for each in encoded]
    length = max(each.shape[1] for each in tokens)
    if any(length % each.shape[1] for each in tokens):
        raise ValueError(
            f"texts of one batch must be of equal length, got {[each.shape[1] for each in tokens]} tokens; "
            "shorten the longest"
        )
    rows = torch.cat([each.repeat(1, length // each.shape[1], 1) for each in tokens])
    pooled = [extra.get("pooled_output") for extra in extras]
    return [rows, {**extras[0], "pooled_output": None if None in pooled else torch.cat(pooled)}]
