"""The one reader of pickles (.bin, .pt, .ckpt): tensors and nothing else, for `mindedit convert`; no node uses it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Flat tensors of a pickle, each in memory of its own: {"a": {"b": tensor}} -> {"a.b": tensor}.

    Read with weights_only: a file that wants to run code is refused and not run. Raises ValueError, OSError.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged ({str(error).splitlines()[0]}); it is not read"
        ) from None
    tensors = dict(flattened(content.get("state_dict", content) if isinstance(content, dict) else {}))
    if not tensors:
        raise ValueError(f"{path} holds no named tensors, got {type(content).__name__}; give a state dict")
    return untied(tensors)


def flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """{"a": {"b": tensor}} -> ("a.b", tensor), the rest left out."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value


def untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory are copied, so that every key is written."""
    seen: set[int] = set()
    own = {}
    for key, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        own[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return own
