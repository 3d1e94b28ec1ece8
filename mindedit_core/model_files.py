"""A model and its configuration in one safetensors file, and the folder of such files that is the mini.

The metadata names the class and its config; the tensors are the class's own `state_dict`, fp16. Only the classes of
MODELS are ever built, so a file cannot choose what code runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import (
    CheckpointError,
    load_strict,
    load_tensors,
    read_metadata,
    read_shapes,
    save_checkpoint,
    variant_of,
)
from .hf_configs import config_from
from .registry import lookup

MODELS = {
    "AutoencoderDC": "diffusers:AutoencoderDC",
    "AutoencoderKL": "diffusers:AutoencoderKL",
    "CLIPModel": "transformers:CLIPModel",
    "CLIPTextModel": "transformers:CLIPTextModel",
    "CLIPTextModelWithProjection": "transformers:CLIPTextModelWithProjection",
    "Gemma2Model": "transformers:Gemma2Model",
    "LlavaOnevisionForConditionalGeneration": "transformers:LlavaOnevisionForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "transformers:Qwen2_5_VLForConditionalGeneration",
    "SanaTransformer2DModel": "diffusers:SanaTransformer2DModel",
    "UNet2DConditionModel": "diffusers:UNet2DConditionModel",
}

MINI_FOLDER = Path(__file__).resolve().parent / "weights" / "mini"
DIM_FOLDER = MINI_FOLDER.parent / "dim"
MINI_COMPONENTS = ("mllm", "mind_edit", "clip", "autoencoder", "unet", "unet_inpaint", "ip_adapter")
TOKENIZER = "tokenizer.json"  # one, of the MLLM and of CLIP
DIM_FILES = ("mllm.safetensors", "dim.safetensors", TOKENIZER)
MINI_FILES = (*(f"{name}.safetensors" for name in MINI_COMPONENTS), TOKENIZER)


def require_mini(folder: Path, files: Sequence[str] = MINI_FILES) -> Path:
    """`folder`, if every one of `files` is in it; else a CheckpointError that names the missing ones."""
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise CheckpointError(
            f"a mini needs {len(files)} files, {folder} lacks {', '.join(missing)}; "
            "fetch them from the repository (git tracks them), or train them with the recipes in train/"
        )
    return folder


def config_of(model: nn.Module) -> dict[str, Any]:
    """The configuration of a transformers or diffusers model as plain JSON values."""
    config = model.config
    return json.loads(config.to_json_string(use_diff=False)) if hasattr(config, "to_json_string") else _plain(config)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))


def save_model(path: str | Path, component: str, model: nn.Module, provenance: Mapping[str, Any]) -> Path:
    """Write `model` in fp16. provenance: recipe, seed, steps, data, score, commit (those that are known)."""
    metadata = {"component": component, "class": type(model).__name__, "config": config_of(model), **provenance}
    return save_checkpoint(path, model.state_dict(), metadata, dtype=torch.float16)


def build_model(metadata: Mapping[str, Any], name: str) -> nn.Module:
    """A model with random weights, as `metadata` describes it; `name` is for the error message."""
    if not {"class", "config"} <= set(metadata):
        raise CheckpointError(
            f"{name} does not say what it is (metadata has {', '.join(sorted(metadata)) or 'nothing'}, needed: class "
            "and config); it was not written by MindEdit's recipes, put the shipped file back"
        )
    model_class = lookup(MODELS, metadata["class"], "", "model class")
    if hasattr(model_class, "config_class"):
        return model_class(config_from(model_class.config_class, metadata["config"]))
    return model_class.from_config(dict(metadata["config"]))


def load_model(path: str | Path) -> nn.Module:
    """The model in `path` in float32, in eval mode and frozen, its numbers exactly the stored ones."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights that are overwritten at once
        model = build_model(read_metadata(path), str(path))
    load_strict(model, load_tensors(path), str(path))
    return model.eval().requires_grad_(False)


def load_published(class_name: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model of MODELS from its published folder (config.json and .safetensors), frozen; local files only.

    dtype: of its weights, which are read in it and never held in a wider one
    Where the folder holds nothing but a variant (`*.fp16.safetensors`, in shards or not), that is what is read.
    Raises CheckpointError for a missing folder, shard or weight: a weight that is not there is never a random number.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no {class_name} in {folder}: it lacks config.json; fetch the published folder into it")
    read_shapes(folder)  # every shard is there and whole
    model_class = lookup(MODELS, class_name, "", "model class")
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    options["variant"] = variant_of(folder)
    named = "dtype" if hasattr(model_class, "config_class") else "torch_dtype"  # of transformers, of diffusers
    options[named] = dtype
    model, info = model_class.from_pretrained(folder, **options)
    if lacking := sorted(map(str, info["missing_keys"])):
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} weights of {class_name}, first: {lacking[0]}; fetch its files again"
        )
    model = model.float() if dtype == torch.float32 else model  # what a class computes for itself as well
    return model.eval().requires_grad_(False)
