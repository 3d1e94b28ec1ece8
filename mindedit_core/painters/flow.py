"""Flow matching as SANA and Draw-In-Mind sample it: noise levels, what the model is told and says, DPM-Solver++.

A noisy sample is (1 - sigma) * latents + sigma * noise, sigma in 0..1; the model says noise - latents, the velocity
(arXiv 2410.10629, section 2.3, equation 2). Levels, timesteps and solver equal diffusers' DPMSolverMultistepScheduler
(flow_prediction, use_flow_sigmas, dpmsolver++, order 2). B pictures, C latent channels, h w latent size
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sampling import Denoise, OnStep, ShouldStop, stop_if_asked
from .schedule import is_full

TRAIN_STEPS = 1000
SHIFT = 3.0  # Draw-In-Mind's flow_shift, SANA's too


@dataclass(frozen=True)
class FlowSchedule:
    """shift: above 1, more of the steps are spent at high noise."""

    shift: float = SHIFT

    def shifted(self, sigma: Tensor) -> Tensor:
        """Even noise levels in 0..1 as this schedule spreads them."""
        return self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)

    def simple(self, steps: int) -> Tensor:
        """Falling sigmas float[steps + 1], of which the last is 0 and the first a thousandth below all noise."""
        levels = torch.linspace(1.0 - 1.0 / TRAIN_STEPS, 0.0, steps + 1, dtype=torch.float64)
        return self.shifted(levels).float()

    def for_strength(self, steps: int, strength: float) -> Tensor:
        """The host's `denoise`: the last `steps` steps of a schedule of int(steps / strength); none at strength 0."""
        if is_full(strength):
            return self.simple(steps)
        whole = self.simple(max(steps, int(steps / strength))) if strength > 0.0 else torch.zeros(0)
        return whole[-(steps + 1) :]

    def start(self, noise: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
        """Where sampling starts: noise alone at the first of all levels, as published; else the noisy latents."""
        return noise if is_first(sigma) else noised(latents, noise, sigma)

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the model is told of the noise level, in whole thousandths as published: int[], 0..999."""
        return (sigma * TRAIN_STEPS).floor().clamp(0, TRAIN_STEPS - 1).long()


def is_first(sigma: Tensor | float) -> bool:
    """Whether a noise level is at or above the one at which every schedule begins."""
    return float(sigma) >= 1.0 - 1.0 / TRAIN_STEPS


def noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """float[B, C, h, w] at noise level sigma, of any shape that broadcasts."""
    return (1.0 - sigma) * latents + sigma * noise


def foreseen(sample: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The clean latents that a velocity foresees for `sample` at `sigma`."""
    return sample - sigma * velocity


def dpm_solver(
    denoise: Denoise,
    sample: Tensor,
    sigmas: Tensor,
    on_step: OnStep | None = None,
    should_stop: ShouldStop | None = None,
) -> Tensor:
    """DPM-Solver++(2M) for flow (arXiv 2211.01095, algorithm 2, with alpha = 1 - sigma), along falling sigmas.

    sigmas: float[n + 1];  denoise(sample, sigma): the clean latents that the model foresees
    First order at the first step and, where the sigmas end in 0, at the last one.
    """
    steps, before = len(sigmas) - 1, None
    second_order = range(1, steps - int(float(sigmas[-1]) == 0.0))
    for index in range(steps):
        stop_if_asked(should_stop, index, steps)
        clean = denoise(sample, sigmas[index])
        target = _extrapolated(clean, before, sigmas, index) if index in second_order else clean
        sample = _first_order(sample, target, sigmas[index], sigmas[index + 1])
        before = clean
        if on_step is not None:
            on_step(index + 1, steps)
    stop_if_asked(should_stop, steps, steps)
    return sample


def _half_log_snr(sigma: Tensor) -> Tensor:
    """lambda = log(alpha / sigma)."""
    return torch.log1p(-sigma) - sigma.log()


def _first_order(sample: Tensor, clean: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """Equation 9 of arXiv 2211.01095: exact if the model foresaw the same `clean` all the way to `following`."""
    ratio = following / sigma
    return ratio * sample + ((1.0 - following) - ratio * (1.0 - sigma)) * clean


def _extrapolated(clean: Tensor, before: Tensor, sigmas: Tensor, index: int) -> Tensor:
    """What the model will foresee half a step on, if that goes on changing as it did over the last step."""
    last, now, following = (_half_log_snr(sigma.double()) for sigma in sigmas[index - 1 : index + 2])
    return clean + ((following - now) / (now - last) / 2.0).to(clean) * (clean - before)
