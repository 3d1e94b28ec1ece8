"""Draw-In-Mind's trained parts in a file, told by its keys: as published, or in one file of ours.

    published    model.safetensors: mllm.*  projector.*  decoder.model.* (SANA's own keys)  decoder.vae.*
    converted    projector.*  transformer.* (diffusers' keys)  null_tokens, sizes in the metadata

Both are mapped from disk, not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, load_tensors, read_metadata, read_shapes, save_checkpoint
from .published import PROJECTOR, read_published

COMPONENT, TRANSFORMER, NULL = "dim", "transformer.", "null_tokens"


class DimFile(NamedTuple):
    """config: {"transformer": of diffusers' SanaTransformer2DModel, "hidden_size": of the MLLM, "flow_shift"}

    projector, transformer: state dicts;  null_tokens: float[Lmax, Dt]
    """

    config: Mapping[str, Any]
    projector: dict[str, Tensor]
    transformer: dict[str, Tensor]
    null_tokens: Tensor


class DimParts(NamedTuple):
    """The same, built. projector: MLPProjector;  transformer: SanaTransformer2DModel;  schedule: FlowSchedule

    Of a plain SANA, which reads a text encoder's states, projector and null_tokens are None.
    """

    projector: Any
    transformer: Any
    null_tokens: Tensor | None
    schedule: Any

    def trainable(self) -> DimParts:
        """The same parts, to be trained on."""
        for part in (self.projector, self.transformer):
            part.requires_grad_(True).train()
        return self._replace(null_tokens=torch.nn.Parameter(self.null_tokens.detach().clone()))


def read_dim(path: str | Path) -> DimFile:
    """Of a published or of a converted file. Raises CheckpointError for another one, or for one that lacks a part."""
    path, metadata = Path(path), read_metadata(path)
    if metadata.get("component") != COMPONENT:
        if NULL in read_shapes(path):
            raise CheckpointError(
                f"{path} was saved again without its metadata, in which its sizes are; convert the published file anew"
            )
        return DimFile(*read_published(path))
    null_tokens = load_tensors(path, NULL).get("")
    if null_tokens is None:
        raise CheckpointError(f"{path} lacks {NULL}; convert it again with `mindedit convert dim`")
    return DimFile(metadata["config"], load_tensors(path, PROJECTOR), load_tensors(path, TRANSFORMER), null_tokens)


def write_dim(path: str | Path, file: DimFile, dtype: torch.dtype | None = None, **provenance: Any) -> Path:
    """Write it so that `read_dim` reads it. provenance: recipe, seed, steps, data, score, commit"""
    tensors = {PROJECTOR + key: tensor for key, tensor in file.projector.items()}
    tensors |= {TRANSFORMER + key: tensor for key, tensor in file.transformer.items()}
    tensors[NULL] = file.null_tokens.detach()
    return save_checkpoint(path, tensors, {**metadata_of(file.config), **provenance}, dtype)


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of ours says of itself."""
    return {"component": COMPONENT, "class": "MLP and SANA", "config": dict(config)}
