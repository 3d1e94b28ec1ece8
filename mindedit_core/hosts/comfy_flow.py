"""Draw-In-Mind's solver and noise levels as the host's SAMPLER and SIGMAS: diffusers' numbers from the host's sampling.

    SamplerCustomAdvanced(noise, CFGGuider(model, cfg), flow_sampler(), flow_sigmas(model, 30))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..contracts import Misfit
from ..painters.flow import FlowSchedule, dpm_solver

SOLVER, LEVELS = "dpm_solver_flow", "flow"  # what Edit Sampler's combos call them


def flow_sampler() -> Any:
    """A SAMPLER: DPM-Solver++(2M) for flow models."""
    return comfy.samplers.KSAMPLER(_sample)


def flow_sigmas(model: Any, steps: int, strength: float = 1.0) -> Tensor:
    """SIGMAS float[steps + 1] as published, with the shift of the MODEL; Misfit for one that is no flow model."""
    sampling = model.get_model_object("model_sampling")
    if not hasattr(sampling, "shift"):
        raise Misfit(
            f"these noise levels are of flow models, this MODEL samples by {type(sampling).__name__}; wire a SANA, or "
            "use BasicScheduler"
        )
    return FlowSchedule(float(sampling.shift)).for_strength(steps, strength)


@torch.no_grad()
def _sample(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
) -> Tensor:
    """The host's form of a solver; `callback` is told of every step, which is where an interrupt is raised."""
    extra_args, levels = extra_args or {}, sigmas.cpu()  # coefficients are made beside the device, without stalling it
    count = 0

    def denoise(sample: Tensor, sigma: Tensor) -> Tensor:
        nonlocal count
        level = sigma.to(sample)
        clean = model(sample, level.expand(len(sample)), **extra_args)
        if callback is not None:
            callback({"x": sample, "i": count, "sigma": level, "sigma_hat": level, "denoised": clean})
        count += 1
        return clean

    return dpm_solver(denoise, x, levels)
