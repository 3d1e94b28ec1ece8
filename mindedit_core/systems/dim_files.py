"""Draw-In-Mind's parts from a file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..backbones.hf_weights import compute_dtype, stored_dtype
from ..bridges.mlp import MLPProjector
from ..contracts import Misfit
from ..dim.files import DimFile, DimParts, read_dim, write_dim
from ..dim.published import embedded_vae
from ..model_files import config_of, load_published
from ..painters.flow import FlowSchedule
from ..painters.sana import SanaPainter
from ..painters.sana_files import load_dc_ae, load_sana


def load_dim(path: str | Path, dtype: torch.dtype | None = torch.float32) -> DimParts:
    """Frozen parts of a published or of a converted file. dtype: None keeps the stored one, mapped from the file.

    Raises CheckpointError naming the first key that is missing, too many, or of another size.
    """
    file, name = read_dim(path), str(path)
    projector = MLPProjector.from_tensors(file.projector, len(file.null_tokens), name, dtype)
    transformer = load_sana(file.config["transformer"], file.transformer, name, dtype)
    null_tokens = file.null_tokens.to(dtype or file.null_tokens.dtype)
    return DimParts(projector, transformer, null_tokens, FlowSchedule(file.config["flow_shift"]))


def load_painter(path: Path, vae: Path | None, shift: float | None = None) -> tuple[MLPProjector, SanaPainter]:
    """Projector and painter of edits on the CPU, in the dtype of their file; float16 as float32, see `compute_dtype`.

    vae: a published folder, None: the painter's file holds it;  shift: None is the file's own
    Raises CheckpointError for what is missing, Misfit for a painter that sees no picture.
    """
    stored = stored_dtype(path)
    dtype, _ = compute_dtype(stored, None, torch.device("cpu"))
    parts = load_dim(path, None if dtype == stored else dtype)
    autoencoder = load_published("AutoencoderDC", vae) if vae else load_dc_ae(embedded_vae(path), str(path))
    schedule = parts.schedule if shift is None else FlowSchedule(shift)
    painter = SanaPainter(parts.transformer, autoencoder, parts.null_tokens, schedule)
    if not painter.reads_source():
        raise Misfit(
            f"{path} paints from text alone, and a system edits pictures: use DIM-4.6B-Edit; text-to-image runs in "
            "ComfyUI (template dim_text_to_image)"
        )
    return parts.projector, painter


def save_dim(path: str | Path, parts: DimParts, dtype: torch.dtype | None = None, **provenance: Any) -> Path:
    """Write them so that `load_dim` reads them. provenance: recipe, seed, steps, data, score, commit"""
    config = {"transformer": config_of(parts.transformer), "hidden_size": parts.projector.hidden_size}
    config["flow_shift"] = parts.schedule.shift
    states = parts.projector.state_dict(), parts.transformer.state_dict()
    return write_dim(path, DimFile(config, *states, parts.null_tokens), dtype, **provenance)
