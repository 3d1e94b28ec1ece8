"""LoRA for training: low-rank branches beside frozen Linear layers (Hu et al. 2021), saved in the adapter's layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindedit_core.backbones.lora import LoraPair


class LoraLinear(nn.Linear):
    """W x + (alpha / r) B A x; A random, B zero: at the start nothing is changed."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.weight, self.bias = (base.in_features, base.out_features,
                                                                       base.weight, base.bias)
        self.rank, self.alpha = rank, alpha
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.alpha / self.rank * F.linear(F.linear(x, self.lora_a),
                                                                                      self.lora_b)


def add_lora(module: nn.Module, rank: int, alpha: float) -> None:
    """Give every Linear below `module` a branch, in place."""
    for name, child in list(module.named_modules()):
        if type(child) is nn.Linear:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, LoraLinear(child, rank, alpha))


@torch.no_grad()
def take_pairs(model: nn.Module, pairs: Mapping[str, LoraPair]) -> None:
    """Go on from trained branches; the inverse of `pairs_of`. Raises KeyError for a module without a branch."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    for name, pair in pairs.items():
        layers[name].lora_a.copy_(pair.down)
        layers[name].lora_b.copy_(pair.up)


def pairs_of(model: nn.Module) -> dict[str, LoraPair]:
    """The trained branches by the module path that they belong to."""
    return {name: LoraPair(layer.lora_a.detach(), layer.lora_b.detach(), layer.alpha)
            for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
