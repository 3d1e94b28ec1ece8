"""MIND-Edit's trained file `mind_edit.safetensors`: LoRA of the MLLM and the VisionHead; read, check, merge, unmerge.

Keys: `lora.{module}.lora_A.weight` float[r, in], `lora.{module}.lora_B.weight` float[out, r], scalar
`lora.{module}.alpha`, where {module} is a path in the MLLM, `vision_head.*`, and for a head that predicts states
`negative_image_embeds` float[T, Dh]: those of a zero image, for the unconditional branch.
A merge is W + strength * (alpha / r) * B @ A, summed in fp32 and cast once, as ComfyUI's own LoRA code does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_strict, load_tensors, read_metadata, require_kind, save_checkpoint
from ..contracts import GLOBAL, Misfit
from .heads import build_head, describe_head

LORA, HEAD, NEGATIVE = "lora.", "vision_head.", "negative_image_embeds"
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
CONFIG_KEYS = ("hidden_size", "num_layers", "layer", "clip_space", "vision_head")
REMEDY = "load the adapter file that was trained for this MLLM, or the MLLM named in the adapter"


@dataclass(frozen=True)
class LoraPair:
    """One module's LoRA: down float[r, in], up float[out, r], alpha."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, device: torch.device | str = "cpu", strength: float = 1.0) -> Tensor:
        """float32[out, in], what is added to the weight."""
        scale = strength * (self.alpha / self.rank)
        return scale * (self.up.to(device, torch.float32) @ self.down.to(device, torch.float32))


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter file in memory. pairs: module path -> LoRA; head: the trained VisionHead, None if the file has none.

    config: `mllm, hidden_size, num_layers, layer, clip_space {name, dim}, prompt, rank, alpha, vision_head {sizes}`;
    dim is the width of what the head predicts
    negative_image_embeds: float[T, Dh], the CLIP states of a zero image; None: zeros stand in
    """

    name: str
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    head: nn.Module | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    negative_image_embeds: Tensor | None = None

    @property
    def layer(self) -> int | None:
        """None: it was trained for the text alone, and says nothing of a layer."""
        return int(self.config["layer"]) if "layer" in self.config else None

    @property
    def clip_space(self) -> str:
        return str(self.config["clip_space"]["name"])

    @property
    def digest(self) -> str:
        """8 hexadecimal digits of the LoRA's numbers; the head does not change what the MLLM's states are."""
        digest = hashlib.sha256()
        for module, pair in sorted(self.pairs.items()):
            few = torch.cat([pair.down.flatten()[:8], pair.up.flatten()[:8]]).float().cpu()
            digest.update(module.encode() + few.numpy().tobytes() + str(pair.alpha).encode())
        return digest.hexdigest()[:8]


# Reading and writing -------------------------------------------------------------------------------------------------


def read_adapter(path: str | Path) -> Adapter:
    """Of this project, or a LoRA that peft saved (text alone, no VisionHead).

    Raises CheckpointError if the file is missing, damaged, of another kind or without its config.
    """
    path = Path(path)
    kind = require_kind(path, "mind_edit", "peft_lora", where="a MIND-Edit adapter belongs in models/mindedit")
    if kind == "peft_lora":
        from .peft_files import read_peft

        return read_peft(path)
    metadata = read_metadata(path)
    config = metadata.get("config") or {}
    if missing := [key for key in CONFIG_KEYS if key not in config]:
        raise CheckpointError(
            f"{path} has no {', '.join(missing)} in its metadata; an adapter says which MLLM, layer and CLIP space it "
            "was trained for: save it with mindedit_core.backbones.lora.save_adapter"
        )
    pairs = parse_pairs(load_tensors(path, LORA), path.name)
    head = _head(load_tensors(path, HEAD), config, path.name)
    negative = _negative(load_tensors(path, NEGATIVE).get(""), head, path.name)
    return Adapter(path.name, config, pairs, head, metadata, negative)


def parse_pairs(tensors: Mapping[str, Tensor], name: str) -> dict[str, LoraPair]:
    """`{module}.lora_A.weight` and its partners -> LoraPair by module; alpha is the rank where it is absent."""
    modules = sorted({key.removesuffix(suffix) for key in tensors for suffix in (DOWN, UP) if key.endswith(suffix)})
    known = {module + suffix for module in modules for suffix in (DOWN, UP, ALPHA)}
    if stray := sorted(set(tensors) - known):
        raise CheckpointError(f"adapter {name} has {len(stray)} LoRA keys of no known form, first: {LORA}{stray[0]}")
    return {module: _pair(tensors, module, name) for module in modules}


def _pair(tensors: Mapping[str, Tensor], module: str, name: str) -> LoraPair:
    if lost := [module + suffix for suffix in (DOWN, UP) if module + suffix not in tensors]:
        raise CheckpointError(f"adapter {name} lacks {LORA}{lost[0]}; the file is incomplete, fetch it again")
    down, up = tensors[module + DOWN], tensors[module + UP]
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        raise CheckpointError(
            f"adapter {name}: {LORA}{module} must be A [r in] and B [out r], "
            f"got {tuple(down.shape)} and {tuple(up.shape)}"
        )
    return LoraPair(down, up, float(tensors.get(module + ALPHA, torch.tensor(float(down.shape[0])))))


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


def from_peft(state_dict: Mapping[str, Tensor], alpha: float) -> dict[str, LoraPair]:
    """The LoRA of a model wrapped by peft's `get_peft_model` (one adapter), from the wrapped model's state dict."""
    renamed = {}
    for key, tensor in state_dict.items():
        if ".lora_A." in key or ".lora_B." in key:
            key = key.removeprefix("base_model.model.").replace(".default.weight", ".weight")
            renamed[key] = tensor.detach().clone()
    modules = {key.removesuffix(DOWN) for key in renamed if key.endswith(DOWN)}
    return parse_pairs(renamed | {module + ALPHA: torch.tensor(float(alpha)) for module in modules}, "peft")


# Checking ------------------------------------------------------------------------------------------------------------


def weight_keys(adapter: Adapter) -> dict[str, str]:
    """`lora.{module}` -> `{module}.weight`: which parameter of the MLLM each LoRA changes, as a host's loader asks."""
    return {LORA + module: f"{module}.weight" for module in adapter.pairs}


def require_match(adapter: Adapter, model: nn.Module, hidden_size: int, num_layers: int) -> None:
    """Raises Misfit, before anything is changed, if the adapter was not made for an MLLM of these sizes."""
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers}
    made_for = tuple(int(adapter.config.get(name, own)) for name, own in sizes.items())
    if made_for != (hidden_size, num_layers):
        raise Misfit(
            f"adapter {adapter.name} was trained for {adapter.config.get('mllm', 'an MLLM')} with hidden_size "
            f"{made_for[0]} and {made_for[1]} layers; this MLLM has hidden_size {hidden_size} and {num_layers} layers: "
            f"{REMEDY}"
        )
    if adapter.layer is not None and not 1 <= adapter.layer <= num_layers:
        raise Misfit(
            f"adapter {adapter.name} reads layer {adapter.layer}, this MLLM has layers 1..{num_layers}: {REMEDY}"
        )
    if adapter.head is not None:
        _require_head(adapter, hidden_size)
    for module, pair in adapter.pairs.items():
        _require_module(adapter.name, module, pair, model)


def _require_head(adapter: Adapter, hidden_size: int) -> None:
    head, dim = adapter.head, int(adapter.config["clip_space"]["dim"])
    if head.hidden_size != hidden_size or head.embed_dim != dim:
        raise Misfit(
            f"adapter {adapter.name} has a VisionHead from {head.hidden_size} to {head.embed_dim}; its metadata "
            f"and this MLLM say from {hidden_size} to {dim}: {REMEDY}"
        )


def _require_module(name: str, module: str, pair: LoraPair, model: nn.Module) -> None:
    try:
        weight = model.get_submodule(module).weight
    except AttributeError:
        raise Misfit(f"adapter {name} changes {module}, which this MLLM does not have: {REMEDY}") from None
    wanted = (pair.up.shape[0], pair.down.shape[1])
    if tuple(weight.shape) != wanted:
        raise Misfit(f"adapter {name} changes {module} of size {wanted}, here it is {tuple(weight.shape)}: {REMEDY}")


# Merging -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge(
    model: nn.Module, pairs: Mapping[str, LoraPair], stored: torch.dtype | None = None, strength: float = 1.0
) -> dict[str, Tensor]:
    """Add the LoRA, times `strength`, to the weights in place; returns the original weights, for `unmerge`.

    stored: the dtype of the weights' file, None: that of the weights. The sum is rounded to it, so that weights read
    from an fp16 file and computed in fp32 here equal those that a host keeps in fp16.
    """
    originals = {}
    for module, pair in pairs.items():
        weight = model.get_submodule(module).weight
        originals[module] = weight.detach().clone()
        weight.copy_((weight.float() + pair.delta(weight.device, strength)).to(stored or weight.dtype))
    return originals


@torch.no_grad()
def unmerge(model: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Put the original weights back, bit for bit."""
    for module, weight in originals.items():
        model.get_submodule(module).weight.copy_(weight)
