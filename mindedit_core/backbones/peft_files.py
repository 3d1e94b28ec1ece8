"""A LoRA as peft saves it, `adapter_model.safetensors` beside its `adapter_config.json`: an Adapter without a head.

Only plain LoRA on Linear layers is taken: B @ A times alpha / r, or alpha / sqrt(r) where the config says rslora.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import CheckpointError, load_tensors
from .llava_keys import modern
from .lora import ALPHA, DOWN, Adapter, parse_pairs

CONFIG, PREFIX = "adapter_config.json", "base_model.model."
UNKNOWN = ("use_dora", "alpha_pattern", "modules_to_save", "use_qalora")  # settings under which the sum is another one


def read_peft(path: Path) -> Adapter:
    """The adapter beside whose weights its config lies; it says nothing of a layer or a VisionHead."""
    config = _config(path.with_name(CONFIG), path)
    tensors = {modern(key): tensor for key, tensor in load_tensors(path, PREFIX).items()}
    for module in [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]:
        tensors[module + ALPHA] = torch.tensor(_alpha(config, tensors[module + DOWN].shape[0]))
    settings = {"mllm": config.get("base_model_name_or_path"), "rank": config["r"], "alpha": config["lora_alpha"]}
    return Adapter(f"{path.parent.name}/{path.name}", settings, parse_pairs(tensors, path.name))


def _alpha(config: dict[str, Any], rank: int) -> float:
    """Such that alpha / rank is peft's scaling."""
    return float(config["lora_alpha"]) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _config(path: Path, weights: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{weights} was saved by peft and needs its {CONFIG} beside it; fetch that file as well")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        float(config["lora_alpha"]), int(config["r"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no LoRA config of peft ({error!r}); fetch it again") from error
    if unknown := [name for name in UNKNOWN if config.get(name)]:
        raise CheckpointError(
            f"{path} sets {', '.join(unknown)}, which is more than a plain LoRA; train one without, or merge it with "
            "peft's merge_and_unload and load the merged model"
        )
    return config
