"""LLaVA-OneVision from disk: a Hugging Face folder, or the mini's `mllm.safetensors` beside its `tokenizer.json`.

Local files only, safetensors only, no remote code. A missing weight is an error, never a random number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

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
from .llava_images import image_processor_class, image_processor_for
from .llava_keys import own_keys, rename_keys
from .mini_tokenizer import load_tokenizer

FAMILY = Family(
    "llava_onevision",
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    own_keys,
    "in its transformers layout (repositories whose name ends in -hf)",
)
MINI_WEIGHTS, MINI_TOKENIZER = "mllm.safetensors", "tokenizer.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
LONG = 1 << 20  # model_max_length of the mini's tokenizer when the MLLM uses it: no limit and no warning


@dataclass(frozen=True)
class Loaded:
    """What a folder holds. stored_dtype: of the file; the model computes in its own dtype."""

    model: nn.Module
    tokenizer: Any
    image_processor: Any
    chat_template: str | None
    template: str
    stored_dtype: torch.dtype
    name: str
    note: str = ""


def load_folder(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Loaded:
    """Raises CheckpointError that says what was found, what is needed and where it goes.

    dtype: None keeps the stored one, except fp16 on a CPU, which is computed in fp32 (fp16 is far slower there).
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return _from_hugging_face(folder, dtype, torch.device(device))
    if (folder / MINI_WEIGHTS).is_file():
        return _from_mini(folder, dtype, torch.device(device))
    raise CheckpointError(
        f"{folder} holds no MLLM: needed is a LLaVA-OneVision folder (config.json, tokenizer, .safetensors files), in "
        f"ComfyUI under models/LLM, or the mini's {MINI_WEIGHTS} and {MINI_TOKENIZER}"
    )


# A Hugging Face folder -----------------------------------------------------------------------------------------------


def _from_hugging_face(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    require_model_type(folder, FAMILY)
    read_shapes(folder)  # every shard is there and whole
    stored = stored_dtype(folder)
    dtype, note = compute_dtype(stored, dtype, device)
    model = load_weights(folder, dtype, FAMILY).to(device)
    tokenizer = load_tokenizer_of(folder)
    processor = _image_processor(folder, model.config)
    return Loaded(model, tokenizer, processor, template_in(folder), "mind_edit", stored, folder.name, note)


def _image_processor(folder: Path, config: Any) -> Any:
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return image_processor_for(config)
    processor = image_processor_class().from_pretrained(folder, local_files_only=True)
    processor.image_grid_pinpoints = config.image_grid_pinpoints  # the model unpacks by its own
    return processor


# The mini ------------------------------------------------------------------------------------------------------------


def _from_mini(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    path = folder / MINI_WEIGHTS
    metadata = read_metadata(path)
    if "config" not in metadata:
        raise CheckpointError(f"{path} has no config in its metadata; it was not written by this project's recipes")
    if not (folder / MINI_TOKENIZER).is_file():
        raise CheckpointError(f"{folder} lacks {MINI_TOKENIZER}, which belongs beside {MINI_WEIGHTS}")
    stored = stored_dtype(path)
    dtype, _ = compute_dtype(stored, dtype, device)  # fp32 on a CPU, always: worth no note
    model = build_model(metadata["config"], FAMILY)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # the parameters only: rotary frequencies are not rounded
    load_strict(model, rename_keys(load_tensors(path), model), str(path))
    tokenizer = load_tokenizer(folder / MINI_TOKENIZER, model_max_length=LONG)
    processor = image_processor_for(model.config)
    return Loaded(model.to(device), tokenizer, processor, None, metadata.get("prompt", "mini"), stored, folder.name)
