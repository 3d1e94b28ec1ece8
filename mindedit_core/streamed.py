"""A safetensors file written tensor by tensor: a model of many gigabytes is never in memory as a whole.

The header comes first and says where every tensor lies, so shapes and dtypes must be known before; the bytes follow,
each tensor made, written and forgotten in turn.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checkpoint import FORMAT, METADATA_KEY, CheckpointError, load_tensors, read_shapes

NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Streamed(NamedTuple):
    """One tensor to be written. make: gives it when its turn has come"""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def save_streamed(
    path: str | Path, tensors: Mapping[str, Streamed], metadata: Mapping[str, Any], compare: bool = False
) -> Path:
    """Write all of `tensors`; the file is either the old one or the complete new one, never a part.

    compare: read it again before it takes its place, and compare it with what it is made from
    Raises CheckpointError if a tensor turns out otherwise than was said, or as something else on the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(_header(tensors, metadata))
            for key, tensor in tensors.items():
                file.write(_bytes(key, tensor))
            file.flush()
            os.fsync(file.fileno())
        if compare:
            verify_streamed(part, tensors)
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return path


def verify_streamed(path: str | Path, tensors: Mapping[str, Streamed]) -> None:
    """Read the file again and compare every tensor, bit for bit, with what it is made from; CheckpointError if not."""
    if set(shapes := read_shapes(path)) != set(tensors):
        raise CheckpointError(f"{path} must hold {len(tensors)} tensors, found {len(shapes)}; is the disk full?")
    for key, tensor in tensors.items():
        found = _one(path, key)
        if found.dtype != tensor.dtype or not torch.equal(_raw(found), _raw(tensor.make())):
            raise CheckpointError(f"{path}: {key} differs from what it was made of; check the disk, convert again")


def _one(path: str | Path, key: str) -> Tensor:
    return next(tensor for name, tensor in load_tensors(path, key).items() if name == "")


def _header(tensors: Mapping[str, Streamed], metadata: Mapping[str, Any]) -> bytes:
    """Eight bytes of length and a JSON object, padded with spaces to whole words."""
    entries, place = {"__metadata__": {METADATA_KEY: json.dumps({"format": FORMAT, **metadata}, sort_keys=True)}}, 0
    for key, tensor in tensors.items():
        span = [place, place + tensor.size]
        entries[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        place += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(key: str, wanted: Streamed) -> bytes:
    tensor = wanted.make()
    if tensor.dtype != wanted.dtype or tuple(tensor.shape) != tuple(wanted.shape):
        raise CheckpointError(
            f"{key} must be {wanted.dtype} {list(wanted.shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )
    return _raw(tensor).numpy().tobytes()


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8[n]."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)

