"""`mindedit convert dim | sana`: published files in diffusers' keys.

    dim     a model.safetensors of Draw-In-Mind, without the MLLM and the autoencoder that stock folders hold
    sana    a SANA as NVlabs publishes it, a pickle (.pth): its transformer
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, is_pickle, load_strict, load_tensors, read_shapes, save_checkpoint
from ..dim.files import NULL, TRANSFORMER, metadata_of
from ..dim.keys import NULL as PUBLISHED_NULL
from ..dim.keys import config_from, from_published, pieces
from ..dim.published import PROJECTOR, SANA, published_config, sana_shapes
from ..painters.sana_files import empty_sana
from ..pickles import read_pickle
from ..streamed import Streamed, save_streamed


def convert_dim(source: str | Path, out: str | Path) -> int:
    """A published file as one of ours, tensor by tensor, and compared afterwards. Returns how many tensors it has."""
    source = Path(source)
    shapes, config = read_shapes(source), published_config(source)
    places = {TRANSFORMER + key: piece for key, piece in pieces(sana_shapes(source), str(source)).items()}
    wanted = {key: _stream(source, SANA + piece.source, piece) for key, piece in places.items()}
    wanted |= {key: _stream(source, key) for key in shapes if key.startswith(PROJECTOR)}
    wanted[NULL] = _stream(source, SANA + PUBLISHED_NULL)
    load_strict(empty_sana(config["transformer"]), _empty(wanted, TRANSFORMER), str(source))
    save_streamed(out, wanted, {**metadata_of(config), "recipe": "mindedit convert dim"}, compare=True)
    return len(wanted)


def _stream(source: Path, key: str, piece: Any = None) -> Streamed:
    whole = _read(source, key)
    shape = tuple(whole.shape) if piece is None else piece.shape(tuple(whole.shape))
    return Streamed(whole.dtype, shape, lambda: _read(source, key) if piece is None else piece.cut(_read(source, key)))


def _read(source: Path, key: str) -> Tensor:
    found = load_tensors(source, key).get("")
    if found is None:
        raise CheckpointError(f"{source} lacks {key}; fetch it again")
    return found


def _empty(wanted: Mapping[str, Streamed], prefix: str) -> dict[str, Tensor]:
    """Tensors without memory, to be compared with a model's."""
    return {
        key.removeprefix(prefix): torch.empty(stream.shape, dtype=stream.dtype, device="meta")
        for key, stream in wanted.items()
        if key.startswith(prefix)
    }


def convert_sana(source: str | Path, out: str | Path) -> int:
    """The transformer of an original SANA; its null tokens have no place in diffusers. Returns how many tensors."""
    source = Path(source)
    tensors = read_pickle(source) if is_pickle(source) else load_tensors(source)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    config = config_from(shapes, str(source))
    renamed = from_published(shapes, tensors.__getitem__, str(source))
    model = empty_sana(config)
    load_strict(model, {key: tensor.to("meta") for key, tensor in renamed.items()}, str(source))
    said = {"component": "sana", "class": "SanaTransformer2DModel", "config": config, "recipe": "mindedit convert sana"}
    save_checkpoint(out, renamed, said)
    return len(renamed)
