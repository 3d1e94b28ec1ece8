"""The noise schedule of SD1.5-type UNets, in ComfyUI's conventions, so that headless and hosted pictures agree.

sigma is the noise's standard deviation in units of the scaled latents: sigma^2 = (1 - alphas_cumprod) / alphas_cumprod.
The steps are those of the host's scheduler `simple`, which is diffusers' EulerDiscrete with timestep_spacing="trailing"
wherever the number of steps divides 1000.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRAIN_STEPS = 1000  # SD1.5
BETAS = (0.00085, 0.012)  # SD1.5, "scaled_linear": linear in the square root
BEFORE_EVERYTHING = 999999999.9  # the host's sigma of percent 0


class NoiseSchedule:
    """sigmas: float[1000], rising; all on the CPU, where reading one stalls nothing."""

    def __init__(self, betas: tuple[float, float] = BETAS, train_steps: int = TRAIN_STEPS) -> None:
        roots = torch.linspace(betas[0] ** 0.5, betas[1] ** 0.5, train_steps, dtype=torch.float64)
        alphas_cumprod = torch.cumprod(1.0 - roots**2, dim=0)
        sigmas = ((1.0 - alphas_cumprod) / alphas_cumprod) ** 0.5
        self.sigmas, self.log_sigmas = sigmas.float(), sigmas.log().float()

    def simple(self, steps: int) -> Tensor:
        """Falling sigmas float[steps + 1] at even strides from the noisiest, then 0."""
        stride = len(self.sigmas) / steps
        places = [len(self.sigmas) - 1 - int(step * stride) for step in range(steps)]
        return torch.cat([self.sigmas[places], torch.zeros(1)])

    def for_strength(self, steps: int, strength: float) -> Tensor:
        """The host's `denoise`: the last `steps` steps of a schedule of int(steps / strength); none at strength 0."""
        if strength > 0.9999:
            return self.simple(steps)
        return self.simple(int(steps / strength))[-(steps + 1) :] if strength > 0.0 else self.sigmas[:0]

    def timestep(self, sigma: Tensor) -> Tensor:
        """The training step, 0..999, whose sigma is nearest in log: long[]."""
        return (sigma.log() - self.log_sigmas).abs().argmin()

    def start(self, noise: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
        """Where sampling from `sigma` starts: the host scales by sigma, at the noisiest by sqrt(1 + sigma^2)."""
        noisiest = float(self.sigmas[-1])
        full = math.isclose(noisiest, float(sigma), rel_tol=1e-5) or float(sigma) > noisiest
        return noise * (torch.sqrt(1.0 + sigma**2) if full else sigma) + latents

    def sigma_at(self, fraction: float) -> float:
        """The host's `percent_to_sigma`: the sigma after this fraction of the training steps, 0 at the noisiest."""
        if fraction <= 0.0:
            return BEFORE_EVERYTHING
        if fraction >= 1.0:
            return 0.0
        place = torch.tensor((1.0 - fraction) * (TRAIN_STEPS - 1))
        low, high, weight = place.floor().long(), place.ceil().long(), place.frac()
        return ((1 - weight) * self.log_sigmas[low] + weight * self.log_sigmas[high]).exp().item()

    def is_within(self, sigma: Tensor, start: float, end: float) -> bool:
        """True if a step at `sigma` lies between the fractions `start` and `end`, both included."""
        return self.sigma_at(start) >= float(sigma) >= self.sigma_at(end)


def cpu_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal fp32 noise from a CPU generator: the same on every device, and the host's for the same shape."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
