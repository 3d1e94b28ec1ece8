"""Checkpoints of a run: a folder each, written aside and renamed, so that a killed run finds the last one whole.

    checkpoint-00000500/  trained.safetensors (what is trained, nothing that is frozen), optimizer.bin,
                          random_states_*.pkl and average-*.pt, one a process, progress.json
Under FSDP and DeepSpeed accelerate writes the weights and the optimiser in its own, sharded form.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX, PART = "checkpoint-", "checkpoint.part"
TRAINED, PROGRESS = "trained.safetensors", "progress.json"


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that is trained."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def leave_out_frozen(accelerator: Accelerator, student: nn.Module) -> None:
    """Have accelerate's checkpoints hold what is trained: a frozen MLLM of gigabytes is not written every time."""

    def save(_models: list, weights: list, folder: str) -> None:
        if weights and accelerator.is_main_process:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained(student).items()}
            save_file(tensors, Path(folder) / TRAINED)
        weights.clear()

    def load(models: list, folder: str) -> None:
        if (path := Path(folder) / TRAINED).exists():
            take(student, load_file(path))
            models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


@torch.no_grad()
def take(student: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved tensors into what is trained. Raises KeyError if the two do not name the same parameters."""
    own = trained(student)
    if own.keys() != tensors.keys():
        raise KeyError(f"the checkpoint holds other parameters: {sorted(own.keys() ^ tensors.keys())[:3]}")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


def save(accelerator: Accelerator, average: EMAModel, folder: Path, step: int, keep: int) -> None:
    """Write a checkpoint; all processes call it. The newest `keep` ones stay."""
    part = folder / PART
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)  # of a save that was killed
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    torch.save(average_state(average), part / f"average-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        progress = {"step": step, "processes": accelerator.num_processes}
        (part / PROGRESS).write_text(json.dumps(progress))
        part.replace(folder / f"{PREFIX}{step:08d}")
        for old in found(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def average_state(average: EMAModel) -> dict[str, Any]:
    """The averages of this process: under FSDP its own shards."""
    return {"shadow": [local(tensor).cpu() for tensor in average.shadow_params], "count": average.optimization_step}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def found(folder: Path) -> list[Path]:
    """All whole checkpoints, the oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / PROGRESS).exists())


def load(accelerator: Accelerator, average: EMAModel, folder: Path) -> int:
    """Go on from the newest checkpoint; returns its step, 0 if there is none. Raises ValueError for other processes."""
    if not (whole := found(folder)):
        return 0
    progress = json.loads((whole[-1] / PROGRESS).read_text())
    if progress["processes"] != accelerator.num_processes:
        raise ValueError(
            f"the run in {folder} has {progress['processes']} processes, got {accelerator.num_processes}; resume it "
            "with as many, and set accumulate when you begin anew with fewer"
        )
    accelerator.load_state(str(whole[-1]))
    state = torch.load(whole[-1] / f"average-{accelerator.process_index}.pt", weights_only=True)
    for tensor, saved in zip(average.shadow_params, state["shadow"], strict=True):
        local(tensor).copy_(saved)
    average.optimization_step = state["count"]
    return progress["step"]
