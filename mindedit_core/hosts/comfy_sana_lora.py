"""LoRA on SANA's weights as the host's own patches: files of diffusers and peft, with keys such as `transformer.*`.

The host skips a pair of another size with a line in its log; here it counts as matching nothing, and the user is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..contracts import Misfit
from .comfy_folders import WEIGHTS
from .comfy_sana import painter_of

OURS = "diffusion_model.transformer."
PREFIXES = ("transformer.", "base_model.model.", "diffusion_model.", "lora_transformer_", "")


def list_loras() -> list[str]:
    """Files under models/loras."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(WEIGHTS)]


def resolve_lora(choice: str) -> str:
    """The file that a value of `list_loras` stands for."""
    path = folder_paths.get_full_path("loras", choice) if choice in list_loras() else None
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths("loras"))
        raise FileNotFoundError(f"{choice!r} is not there; put a .safetensors file under {places}, and press R")
    return path


def with_lora(model: Any, path: str, strength: float) -> tuple[Any, list[str]]:
    """A clone of `model` under a LoRA file, and the file's keys that match nothing, by name or by size.

    Raises Misfit for a MODEL that is no SANA, and for a file of which nothing matches.
    """
    if painter_of(model) is None:
        raise Misfit("this MODEL is no SANA; use the host's own Load LoRA for it")
    tensors = comfy.utils.load_torch_file(path, safe_load=True)
    patches, strange = lora_patches(model, tensors)
    if not patches:
        raise Misfit(
            f"{path} has nothing for this SANA: of its {len(tensors)} keys, such as {next(iter(tensors), None)}, none "
            "matches in name and size; choose a LoRA that was trained for this SANA in diffusers"
        )
    clone = model.clone()
    clone.add_patches(patches, strength)
    return clone, strange


def lora_patches(model: Any, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    """The host's patches of a LoRA's tensors, and the keys that were of no use."""
    places = key_map(model)
    patches = comfy.lora.load_lora(dict(tensors), places, log_missing=False)
    weights = model.model.state_dict()
    patches = {key: patch for key, patch in patches.items() if key in weights and _fits(patch, weights[key].shape)}
    used = {name for name, place in places.items() if place in patches}
    strange = [key for key in tensors if not any(_begins(key, name) for name in used)]
    return patches, strange


def key_map(model: Any) -> dict[str, str]:
    """How LoRA files may call a weight -> its key in the MODEL."""
    places = {}
    for key in model.model.state_dict():
        if key.startswith(OURS) and key.endswith(".weight"):
            name = key.removeprefix(OURS).removesuffix(".weight")
            plain = {f"{prefix}{name}" for prefix in PREFIXES if not prefix.endswith("_")}
            places |= dict.fromkeys(plain | {f"lora_transformer_{name.replace('.', '_')}"}, key)
    return places


def _fits(patch: Any, shape: torch.Size) -> bool:
    """Whether a patch is of a weight's size: a pair of matrices, or what is added; True of other forms."""
    if isinstance(patch, tuple):
        return patch[1][0].shape == shape
    if patch.name != "lora" or patch.weights[3] is not None:  # a third matrix between the two
        return True
    up, down = patch.weights[:2]
    return len(up) == shape[0] and down[0].numel() == shape[1:].numel()


def _begins(key: str, name: str) -> bool:
    return key.startswith(f"{name}.")
