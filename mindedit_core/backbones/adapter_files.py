"""MIND-Edit's trained file `mind_edit.safetensors`: LoRA of the MLLM and the VisionHead, read and written.

Keys: `lora.{module}.lora_A.weight` float[r, in], `lora.{module}.lora_B.weight` float[out, r], scalar
`lora.{module}.alpha`, where {module} is a path in the MLLM, `vision_head.*`, and for a head that predicts states
`negative_image_embeds` float[T, Dh]: those of a zero image, for the unconditional branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_strict, load_tensors, read_metadata, save_checkpoint
from ..contracts import GLOBAL
from ..kinds import require_kind
from .heads import build_head, describe_head
from .lora import ALPHA, DOWN, LORA, UP, Adapter, LoraPair, parse_pairs
from .peft_files import read_peft

HEAD, NEGATIVE = "vision_head.", "negative_image_embeds"
CONFIG_KEYS = ("hidden_size", "num_layers", "layer", "clip_space", "vision_head")


def read_adapter(path: str | Path) -> Adapter:
    """Of this project, or a LoRA that peft saved (text alone, no VisionHead).

    Raises CheckpointError if the file is missing, damaged, of another kind or without its config.
    """
    path = Path(path)
    kind = require_kind(path, "mind_edit", "peft_lora", where="a MIND-Edit adapter belongs in models/mindedit")
    if kind == "peft_lora":
        return read_peft(path)
    metadata = read_metadata(path)
    config = metadata.get("config") or {}
    if missing := [key for key in CONFIG_KEYS if key not in config]:
        raise CheckpointError(
            f"{path} has no {', '.join(missing)} in its metadata; an adapter says which MLLM, layer and CLIP space it "
            "was trained for: save it with mindedit_core.backbones.adapter_files.save_adapter"
        )
    pairs = parse_pairs(load_tensors(path, LORA), path.name)
    head = _head(load_tensors(path, HEAD), config, path.name)
    negative = _negative(load_tensors(path, NEGATIVE).get(""), head, path.name)
    return Adapter(path.name, config, pairs, head, metadata, negative)


def _head(tensors: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> nn.Module | None:
    if not tensors:
        return None
    head = build_head(config["vision_head"])
    return load_strict(head, tensors, f"{name} ({HEAD}*)").eval().requires_grad_(False)


def _negative(negative: Tensor | None, head: nn.Module | None, name: str) -> Tensor | None:
    """In fp32, of the shape of one prediction of the head."""
    if negative is None or head is None:
        return None
    wanted = (head.embed_dim,) if head.embed_form == GLOBAL else (head.tokens, head.embed_dim)
    if tuple(negative.shape) != wanted:
        raise CheckpointError(
            f"adapter {name}: {NEGATIVE} must be of the shape that its VisionHead predicts {list(wanted)}, "
            f"got {list(negative.shape)}; fetch the file again"
        )
    return negative.float()


def save_adapter(
    path: str | Path,
    pairs: Mapping[str, LoraPair],
    head: nn.Module | None,
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    *,
    negative_image_embeds: Tensor | None = None,
    **provenance: Any,
) -> Path:
    """Write an adapter file that `read_adapter` reads. provenance: recipe, seed, steps, data, score, commit.

    negative_image_embeds: float[T, Dh], CLIP states of a zero image; without them a head of states is used with zeros
    """
    config = {**config, "vision_head": describe_head(head)}
    tensors = {key: tensor for module, pair in pairs.items() for key, tensor in _tensors(module, pair).items()}
    if head is not None:
        tensors |= {HEAD + key: tensor for key, tensor in head.state_dict().items()}
    if negative_image_embeds is not None:
        tensors[NEGATIVE] = negative_image_embeds
    metadata = {"component": "mind_edit", "class": "LoRA and VisionHead", "config": config, **provenance}
    return save_checkpoint(path, tensors, metadata, dtype)


def _tensors(module: str, pair: LoraPair) -> dict[str, Tensor]:
    return {
        f"{LORA}{module}{DOWN}": pair.down,
        f"{LORA}{module}{UP}": pair.up,
        f"{LORA}{module}{ALPHA}": torch.tensor(pair.alpha),
    }
