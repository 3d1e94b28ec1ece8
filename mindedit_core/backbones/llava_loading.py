"""LLaVA-OneVision from disk: a Hugging Face folder, or the mini's `mllm.safetensors` beside its `tokenizer.json`.

Local files only, safetensors only, no remote code. A missing weight is an error, never a random number.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoTokenizer

from ..checkpoint import CheckpointError, load_strict, load_tensors, read_metadata, read_shapes, weight_files
from .llava_chat import template_in
from .llava_images import image_processor_class, image_processor_for
from .llava_keys import rename_keys
from .llava_weights import build_model, load_weights
from .mini_tokenizer import load_tokenizer

MODEL_TYPE = "llava_onevision"
MINI_WEIGHTS, MINI_TOKENIZER = "mllm.safetensors", "tokenizer.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGE = 1 << 20  # numbers of a parameter
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


def compute_dtype(stored: torch.dtype, asked: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and what to tell the user about it."""
    if asked is not None:
        return asked, ""
    if stored == torch.float16 and device.type == "cpu":
        return torch.float32, "the weights are stored in float16 and computed in float32 on the CPU"
    return stored, ""


def fingerprint(model: nn.Module) -> str:
    """12 hexadecimal digits that change with any weight matrix: a few numbers of every parameter, hashed.

    Of a large one they lie in five places, since each costs a read where weights are mapped from a file.
    """
    digest = hashlib.sha256()
    named = {name.replace(".vision_model.", "."): parameter for name, parameter in model.named_parameters()}
    for name, parameter in sorted(named.items()):  # the same name and order in every version of transformers
        flat = parameter.detach().flatten()
        places = 16 if flat.numel() < LARGE else 4
        few = flat[:: max(1, flat.numel() // places)][: places + 1].float().cpu()
        digest.update(name.encode() + few.numpy().tobytes())
    return digest.hexdigest()[:12]


# A Hugging Face folder -----------------------------------------------------------------------------------------------


def _from_hugging_face(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    _require_model_type(folder)
    read_shapes(folder)  # every shard is there and whole
    stored = stored_dtype(folder)
    dtype, note = compute_dtype(stored, dtype, device)
    model = load_weights(folder, dtype).to(device)
    tokenizer = _tokenizer(folder)
    processor = _image_processor(folder, model.config)
    return Loaded(model, tokenizer, processor, template_in(folder), "mind_edit", stored, folder.name, note)


def _require_model_type(folder: Path) -> None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not JSON ({error}); fetch it again") from error
    if found != MODEL_TYPE:
        raise CheckpointError(
            f"{folder} holds a model of type {found!r}, needed is {MODEL_TYPE!r} in its transformers layout "
            "(repositories whose name ends in -hf)"
        )


def stored_dtype(path: str | Path) -> torch.dtype:
    """The dtype of most floating numbers in a file or folder, from the headers alone."""
    count: Counter[torch.dtype] = Counter()
    for file_path in weight_files(path):
        with safe_open(file_path, framework="pt") as file:
            for key in file.keys():
                part = file.get_slice(key)
                if part.get_dtype() in DTYPES:
                    count[DTYPES[part.get_dtype()]] += torch.Size(part.get_shape()).numel()
    return count.most_common(1)[0][0] if count else torch.float32


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder} has no tokenizer; fetch tokenizer.json and tokenizer_config.json into it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has a tokenizer that cannot be read ({error}); fetch tokenizer.json, tokenizer_config.json again"
        ) from error


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
    model = build_model(metadata["config"])
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # the parameters only: rotary frequencies are not rounded
    load_strict(model, rename_keys(load_tensors(path), model), str(path))
    tokenizer = load_tokenizer(folder / MINI_TOKENIZER, model_max_length=LONG)
    processor = image_processor_for(model.config)
    return Loaded(model.to(device), tokenizer, processor, None, metadata.get("prompt", "mini"), stored, folder.name)
