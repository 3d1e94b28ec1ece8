"""Qwen2.5-VL from disk: a Hugging Face folder, or dim-mini's `mllm.safetensors` beside its `tokenizer.json`.

Local files only, safetensors only, no remote code. A missing weight is an error, never a random number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ..checkpoint import CheckpointError, load_strict, load_tensors, read_metadata, read_shapes
from .hf_weights import (
    Family,
    build_model,
    compute_dtype,
    load_tokenizer_of,
    load_weights,
    require_model_type,
    stored_dtype,
)
from .llava_chat import template_in
from .qwen_inputs import SIDE
from .qwen_keys import own_keys
from .qwen_mini import SIDE as MINI_SIDE
from .qwen_mini import load_qwen_tokenizer

FAMILY = Family(
    "qwen2_5_vl", Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, own_keys, "(Qwen/Qwen2.5-VL-3B-Instruct or 7B)"
)
EMBEDDED = "mllm."  # prefix of an MLLM's keys in a published file of Draw-In-Mind
MINI_WEIGHTS, MINI_TOKENIZER = "mllm.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Loaded:
    """What a folder holds. stored_dtype: of the file;  side: pixels at which pictures are seen"""

    model: nn.Module
    tokenizer: Any
    chat_template: str | None
    stored_dtype: torch.dtype
    name: str
    side: int
    note: str = ""


def load_folder(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    embedded: str | Path | None = None,
) -> Loaded:
    """Raises CheckpointError that says what was found, what is needed and where it goes.

    embedded: a published file of Draw-In-Mind, whose copy of the weights is taken; the folder then needs config and
    tokenizer alone
    dtype: None keeps the stored one, except fp16 on a CPU, which is computed in fp32 (fp16 is far slower there).
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return _from_hugging_face(folder, dtype, torch.device(device), embedded and Path(embedded))
    if (folder / MINI_WEIGHTS).is_file():
        return _from_mini(folder, dtype, torch.device(device))
    raise CheckpointError(
        f"{folder} holds no Qwen2.5-VL: needed is the published folder (config.json, tokenizer, .safetensors files), "
        f"in ComfyUI under models/LLM, or dim-mini's {MINI_WEIGHTS} and {MINI_TOKENIZER}"
    )


def _from_hugging_face(
    folder: Path, dtype: torch.dtype | None, device: torch.device, embedded: Path | None
) -> Loaded:
    require_model_type(folder, FAMILY)
    read_shapes(embedded or folder)  # every shard is there and whole
    stored = stored_dtype(embedded or folder)
    dtype, note = compute_dtype(stored, dtype, device)
    model = load_weights(folder, dtype, FAMILY, embedded, EMBEDDED if embedded else "").to(device)
    return Loaded(model, load_tokenizer_of(folder), template_in(folder), stored, folder.name, SIDE, note)


def _from_mini(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    path = folder / MINI_WEIGHTS
    metadata = read_metadata(path)
    if "config" not in metadata or not (folder / MINI_TOKENIZER).is_file():
        raise CheckpointError(f"{path} needs its config in its metadata and {MINI_TOKENIZER} beside it; put them back")
    stored = stored_dtype(path)
    dtype, _ = compute_dtype(stored, dtype, device)
    model = build_model(metadata["config"], FAMILY)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # the parameters only: rotary frequencies are not rounded
    load_strict(model, own_keys(load_tensors(path), model), str(path))
    tokenizer = load_qwen_tokenizer(folder / MINI_TOKENIZER)
    return Loaded(model.to(device), tokenizer, None, stored, folder.name, MINI_SIDE)
