"""Files as Draw-In-Mind publishes them: one model.safetensors with an MLLM, a projector, SANA and its autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import CheckpointError, load_tensors, read_shapes
from .keys import NULL, config_from, from_published

PROJECTOR, SANA, VAE, EMBEDDED_MLLM = "projector.", "decoder.model.", "decoder.vae.", "mllm."
PREFIXES = (PROJECTOR, SANA, VAE, EMBEDDED_MLLM, "decoder.text_encoder.")
SHIFT = 3.0  # of the schedule, which no file says


def is_published(shapes: Mapping[str, Any]) -> bool:
    """Whether these are keys of a file of stdKonjac/DIM-4.6B-*, be it whole or not."""
    return any(key.startswith(SANA) for key in shapes) and any(key.startswith(PROJECTOR) for key in shapes)


def holds_an_mllm(path: Path) -> bool:
    """Whether a copy of the MLLM is in this file, which may be anybody's."""
    try:
        return any(key.startswith(EMBEDDED_MLLM) for key in read_shapes(path))
    except CheckpointError:  # another pack's file, or one that is still being downloaded
        return False


def read_published(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], Tensor]:
    """(config, projector, SANA in diffusers' keys, null tokens); CheckpointError naming what is missing or strange."""
    shapes, tensors = sana_shapes(path), load_tensors(path, SANA)
    null_tokens = tensors.get(NULL)
    if null_tokens is None:
        raise CheckpointError(f"{path} lacks {SANA}{NULL}; fetch it again")
    transformer = from_published(shapes, tensors.__getitem__, str(path))
    return published_config(path), load_tensors(path, PROJECTOR), transformer, null_tokens


def sana_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """SANA's keys without their prefix. Raises CheckpointError for a file that is none of Draw-In-Mind's."""
    shapes = read_shapes(path)
    if not is_published(shapes):
        raise CheckpointError(
            f"{path} is no painter of Draw-In-Mind: needed are projector.* with decoder.model.* as published, or with "
            f"transformer.* as `mindedit convert dim` writes; found {len(shapes)} keys, "
            f"such as {next(iter(shapes), None)}"
        )
    if strange := [key for key in shapes if not key.startswith(PREFIXES)]:
        raise CheckpointError(f"{path} has {len(strange)} keys that belong to no part of it, first: {strange[0]}")
    return {key.removeprefix(SANA): shape for key, shape in shapes.items() if key.startswith(SANA)}


def published_config(path: Path) -> dict[str, Any]:
    """Sizes as shapes tell them, and what no shape tells, in the form of our own files' metadata."""
    first = read_shapes(path).get(f"{PROJECTOR}0.weight")
    if first is None:
        raise CheckpointError(f"{path} lacks {PROJECTOR}0.weight; fetch it again")
    return {"transformer": config_from(sana_shapes(path), str(path)), "hidden_size": first[1], "flow_shift": SHIFT}


def embedded_vae(path: str | Path) -> dict[str, Tensor]:
    """The autoencoder inside, in diffusers' keys. Raises CheckpointError if there is none."""
    if not (tensors := load_tensors(path, VAE)):
        raise CheckpointError(f"{path} has no autoencoder in it; fetch mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers")
    return tensors
