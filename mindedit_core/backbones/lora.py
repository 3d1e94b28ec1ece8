"""An adapter in memory, LoRA of the MLLM and the VisionHead: check it, merge it, unmerge it.

A merge is W + strength * (alpha / r) * B @ A, summed in fp32 and cast once, as ComfyUI's own LoRA code does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError
from ..contracts import Misfit

LORA = "lora."
DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
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
    """pairs: module path -> LoRA; head: the trained VisionHead, None if the file has none.

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


# Pairs by their keys --------------------------------------------------------------------------------------------------


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
