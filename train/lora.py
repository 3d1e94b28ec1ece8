"""LoRA for training, by peft, put into the frozen language model in place; saved in our adapter's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from mindedit_core.backbones.lora import LoraPair


def add_lora(language_model: nn.Module, rank: int, alpha: float, layers: Iterable[int], dropout: float = 0.0) -> None:
    """Give every Linear of these decoder layers a branch (alpha / rank) B A x, B zero at the start; in place.

    Raises ValueError if there is none.
    """
    paths = [f"layers.{number}.{name}" for number in layers
             for name, child in language_model.layers[number].named_modules() if type(child) is nn.Linear]
    if not paths:
        raise ValueError("these layers of the language model have no Linear that LoRA could change")
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=paths)
    inject_adapter_in_model(config, language_model)


def branches(model: nn.Module) -> dict[str, LoraLinear]:
    """Module path -> layer with a branch."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@torch.no_grad()
def take_pairs(model: nn.Module, pairs: Mapping[str, LoraPair]) -> None:
    """Go on from trained branches; the inverse of `pairs_of`. Raises KeyError for a module without a branch."""
    layers = branches(model)
    for name, pair in pairs.items():
        layers[name].lora_A["default"].weight.copy_(pair.down)
        layers[name].lora_B["default"].weight.copy_(pair.up)


def pairs_of(model: nn.Module) -> dict[str, LoraPair]:
    """The trained branches by the module path that they belong to."""
    return {name: LoraPair(layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach(),
                           float(layer.lora_alpha["default"])) for name, layer in branches(model).items()}
