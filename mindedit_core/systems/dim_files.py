"""Draw-In-Mind's parts from a file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..bridges.mlp import MLPProjector
from ..dim.files import DimFile, DimParts, read_dim, write_dim
from ..model_files import config_of
from ..painters.flow import FlowSchedule
from ..painters.sana_files import load_sana


def load_dim(path: str | Path, dtype: torch.dtype | None = torch.float32) -> DimParts:
    """Frozen parts of a published or of a converted file. dtype: None keeps the stored one, mapped from the file.

    Raises CheckpointError naming the first key that is missing, too many, or of another size.
    """
    file, name = read_dim(path), str(path)
    projector = MLPProjector.from_tensors(file.projector, len(file.null_tokens), name, dtype)
    transformer = load_sana(file.config["transformer"], file.transformer, name, dtype)
    null_tokens = file.null_tokens.to(dtype or file.null_tokens.dtype)
    return DimParts(projector, transformer, null_tokens, FlowSchedule(file.config["flow_shift"]))


def save_dim(path: str | Path, parts: DimParts, dtype: torch.dtype | None = None, **provenance: Any) -> Path:
    """Write them so that `load_dim` reads them. provenance: recipe, seed, steps, data, score, commit"""
    config = {"transformer": config_of(parts.transformer), "hidden_size": parts.projector.hidden_size}
    config["flow_shift"] = parts.schedule.shift
    states = parts.projector.state_dict(), parts.transformer.state_dict()
    return write_dim(path, DimFile(config, *states, parts.null_tokens), dtype, **provenance)
