"""The optimisers of a run: AdamW for all, or Muon for the matrices of linear layers (arXiv 2502.16982, section 2.2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from train import checkpoints
from train.config import Training


def optimizers(student: nn.Module, config: Training) -> list[Optimizer]:
    """Together they move everything that is trained; `config.matrices` says who moves the linear layers.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate serves both.
    Raises ImportError where torch is too old for it.
    """
    if config.matrices == "muon" and not hasattr(torch.optim, "Muon"):
        raise ImportError(f"matrices=muon needs torch 2.9 or newer, got {torch.__version__}; update it, or use adamw")
    moved = checkpoints.trained(student)
    matrices = linear(student, moved) if config.matrices == "muon" else {}
    rest = [parameter for name, parameter in moved.items() if name not in matrices]
    found = [torch.optim.AdamW(rest, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)]
    if matrices:
        found.append(torch.optim.Muon(matrices.values(), config.learning_rate, weight_decay=config.weight_decay,
                                      adjust_lr_fn="match_rms_adamw"))
    return found


def linear(student: nn.Module, moved: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The trained weights of linear layers, save those that are an embedding as well: their rows are words."""
    words = {id(module.weight) for module in student.modules() if isinstance(module, nn.Embedding)}
    layers = {id(module.weight) for module in student.modules() if isinstance(module, nn.Linear)} - words
    return {name: parameter for name, parameter in moved.items() if id(parameter) in layers}
