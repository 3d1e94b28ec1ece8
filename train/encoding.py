"""Encode once: what frozen models say of a sample, kept on disk under a hash of content, model and settings.

A changed picture, text, model or setting has another hash, so it alone is encoded again; nothing is ever stale.
Samples are encoded one at a time, kept or not, so that training with and without a cache sees the same numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.records import EditRecord

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One encoding of a record. settings: model and options, as text;  content: the bytes that it is made from;
    encode: makes it, with the models in memory
    """

    name: str
    settings: str
    content: Callable[[EditRecord], Sequence[bytes]]
    encode: Callable[[EditRecord], Tensors]

    def key(self, record: EditRecord) -> str:
        digest = hashlib.sha256(f"{self.name} {self.settings}".encode())
        for piece in self.content(record):
            digest.update(b"%d " % len(piece) + piece)
        return f"{self.name}-{digest.hexdigest()[:32]}"


class Cache:
    """Tensors by key in `folder`; None keeps nothing."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def get(self, key: str) -> Tensors | None:
        """What was kept, or None; a damaged file is None too, and will be written again."""
        if self.folder is None:
            return None
        try:
            return load_file(self.path(key))
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep these; whoever reads meanwhile sees all of them or nothing."""
        if self.folder is None:
            return
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        part.replace(path)

    def path(self, key: str) -> Path:
        name, _, digest = key.rpartition("-")
        return self.folder / name / digest[:2] / f"{digest}.safetensors"


class Encoder:
    """All parts of a record: looked up where that is cheap (`find`, in a worker), made by the models (`fill`)."""

    def __init__(self, parts: Sequence[Part], folder: Path | None = None):
        self.parts, self.cache = {part.name: part for part in parts}, Cache(folder)

    def find(self, record: EditRecord) -> dict[str, Tensors]:
        """Part -> its tensors, of those that were kept."""
        if self.cache.folder is None:
            return {}
        kept = {name: self.cache.get(part.key(record)) for name, part in self.parts.items()}
        return {name: tensors for name, tensors in kept.items() if tensors is not None}

    @torch.no_grad()
    def fill(self, record: EditRecord, found: Mapping[str, Tensors]) -> Tensors:
        """All tensors of a record on the CPU; what was not found is made, and kept."""
        whole: Tensors = {}
        for name, part in self.parts.items():
            tensors = found.get(name)
            if tensors is None:
                tensors = {key: tensor.detach().cpu() for key, tensor in part.encode(record).items()}
                self.cache.put(part.key(record), tensors)
            whole |= tensors
        return whole
