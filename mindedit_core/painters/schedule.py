"""Noise schedules of Stable Diffusion's UNets, in ComfyUI's conventions, so that headless and hosted pictures agree.

sigma is the noise's standard deviation in units of the scaled latents: sigma^2 = (1 - alphas_cumprod) / alphas_cumprod.
The steps are those of the host's scheduler `simple`, which is diffusers' EulerDiscrete with timestep_spacing="trailing"
wherever the number of steps divides 1000.

    NoiseSchedule   SD1.5, SDXL, InstructPix2Pix: 1000 training steps; the UNet predicts the noise, or v
    EDMSchedule     CosXL: continuous noise levels, the UNet is told log(sigma) / 4 and predicts v
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..contracts import Misfit

TRAIN_STEPS = 1000  # SD1.5
BETAS = (0.00085, 0.012)  # SD1.5, "scaled_linear": linear in the square root
EDM_SIGMAS = (0.002, 120.0)  # CosXL
LEAST_ALPHA = 4.8973451890853435e-08  # the host's alphas_cumprod of the noisiest step where it would be 0
BEFORE_EVERYTHING = 999999999.9  # the host's sigma of percent 0
PREDICTIONS = ("epsilon", "v_prediction")


class NoiseSchedule:
    """sigmas: float[train_steps], rising; all on the CPU, where reading one stalls nothing.

    prediction: what the UNet says, "epsilon" (noise) or "v_prediction" (arXiv 2202.00512, appendix D)
    zero_snr: the noisiest step is noise alone (arXiv 2305.08891, algorithm 1)
    """

    def __init__(
        self,
        betas: tuple[float, float] = BETAS,
        train_steps: int = TRAIN_STEPS,
        prediction: str = "epsilon",
        zero_snr: bool = False,
    ) -> None:
        roots = torch.linspace(betas[0] ** 0.5, betas[1] ** 0.5, train_steps, dtype=torch.float64)
        alphas_cumprod = torch.cumprod(1.0 - roots**2, dim=0)
        alphas_cumprod = _without_signal(alphas_cumprod) if zero_snr else alphas_cumprod
        self._set(((1.0 - alphas_cumprod) / alphas_cumprod) ** 0.5, prediction)

    def _set(self, sigmas: Tensor, prediction: str) -> None:
        self.sigmas, self.log_sigmas, self.prediction = sigmas.float(), sigmas.log().float(), prediction

    def __eq__(self, other: object) -> bool:
        return (
            type(self) is type(other) and self.prediction == other.prediction and torch.equal(self.sigmas, other.sigmas)
        )

    __hash__ = None

    # Which noise levels -----------------------------------------------------------------------------------------------

    def simple(self, steps: int) -> Tensor:
        """Falling sigmas float[steps + 1] at even strides from the noisiest, then 0."""
        stride = len(self.sigmas) / steps
        places = [len(self.sigmas) - 1 - int(step * stride) for step in range(steps)]
        return torch.cat([self.sigmas[places], torch.zeros(1)])

    def for_strength(self, steps: int, strength: float) -> Tensor:
        """The host's `denoise`: the last `steps` steps of a schedule of int(steps / strength); none at strength 0."""
        if is_full(strength):
            return self.simple(steps)
        return self.simple(int(steps / strength))[-(steps + 1) :] if strength > 0.0 else self.sigmas[:0]

    def start(self, noise: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
        """Where sampling from `sigma` starts: the host scales by sigma, at the noisiest by sqrt(1 + sigma^2)."""
        noisiest = float(self.sigmas[-1])
        full = math.isclose(noisiest, float(sigma), rel_tol=1e-5) or float(sigma) > noisiest
        return noise * (torch.sqrt(1.0 + sigma**2) if full else sigma) + latents

    def sigma_at(self, fraction: float) -> float:
        """The host's `percent_to_sigma`: the sigma after this fraction of the training steps, 0 at the noisiest."""
        if fraction <= 0.0:
            return BEFORE_EVERYTHING
        return 0.0 if fraction >= 1.0 else self._sigma_within(fraction)

    def _sigma_within(self, fraction: float) -> float:
        place = torch.tensor((1.0 - fraction) * (TRAIN_STEPS - 1))
        low, high, weight = place.floor().long(), place.ceil().long(), place.frac()
        return ((1 - weight) * self.log_sigmas[low] + weight * self.log_sigmas[high]).exp().item()

    def is_within(self, sigma: Tensor, start: float, end: float) -> bool:
        """True if a step at `sigma` lies between the fractions `start` and `end`, both included."""
        return self.sigma_at(start) >= float(sigma) >= self.sigma_at(end)

    # What the UNet is told, and what it says --------------------------------------------------------------------------

    def timestep(self, sigma: Tensor) -> Tensor:
        """The training step, 0..999, whose sigma is nearest in log: long[]."""
        return (sigma.log() - self.log_sigmas).abs().argmin()

    def scaled(self, sample: Tensor, sigma: Tensor) -> Tensor:
        """The noisy latents as the UNet reads them: of unit variance."""
        return sample / (sigma**2 + 1.0) ** 0.5

    def foreseen(self, sample: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """The clean latents that the UNet's output foresees for `sample` at `sigma`."""
        if self.prediction == "epsilon":
            return sample - output * sigma
        return sample / (sigma**2 + 1.0) - output * sigma / (sigma**2 + 1.0) ** 0.5


class EDMSchedule(NoiseSchedule):
    """Continuous noise levels of unit data variance (arXiv 2206.00364), v predicted: CosXL and CosXL-edit.

    sigmas: float[1000], rising geometrically from `least` to `most`: the levels that `simple` strides over, as the
    host's. Its timesteps are fractions: log(sigma) / 4.
    """

    def __init__(self, least: float = EDM_SIGMAS[0], most: float = EDM_SIGMAS[1]) -> None:
        self._set(torch.linspace(math.log(least), math.log(most), TRAIN_STEPS).exp(), "v_prediction")

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the UNet is told of the noise level: float[]."""
        return 0.25 * sigma.log()

    def _sigma_within(self, fraction: float) -> float:
        least, most = math.log(self.sigmas[0]), math.log(self.sigmas[-1])
        return math.exp((most - least) * (1.0 - fraction) + least)


def is_full(strength: float) -> bool:
    """True where painting starts from the noisiest level: the host's rule for `denoise`."""
    return strength > 0.9999


def _without_signal(alphas_cumprod: Tensor) -> Tensor:
    """Zero terminal SNR: the square roots shifted so that the last is 0 and scaled so that the first stays."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    rescaled = ((roots - last) * first / (first - last)) ** 2
    rescaled[-1] = LEAST_ALPHA
    return rescaled


# From a published folder ---------------------------------------------------------------------------------------------


def schedule_from(config: Mapping[str, Any], name: str) -> NoiseSchedule:
    """The schedule of a diffusers scheduler_config.json; `name` is for the error message.

    Which solver the file names does not matter: the painter's is Euler. Raises Misfit for a schedule unknown here.
    """
    prediction = config.get("prediction_type", "epsilon")
    if config.get("_class_name", "").startswith("EDM") or config.get("timestep_type") == "continuous":
        if prediction != "v_prediction" or config.get("sigma_data", 1.0) != 1.0:
            raise Misfit(_unknown(name, f"EDM with {prediction}, sigma_data {config.get('sigma_data')}"))
        return EDMSchedule(config.get("sigma_min") or EDM_SIGMAS[0], config.get("sigma_max") or EDM_SIGMAS[1])
    shape = config.get("beta_schedule")
    if shape != "scaled_linear" or prediction not in PREDICTIONS or config.get("trained_betas") is not None:
        raise Misfit(_unknown(name, f"{config.get('_class_name')} with betas {shape}, prediction {prediction}"))
    betas = config["beta_start"], config["beta_end"]
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    return NoiseSchedule(betas, config.get("num_train_timesteps", TRAIN_STEPS), prediction, zero_snr)


def _unknown(name: str, found: str) -> str:
    return (
        f"{name}: painted is on scaled_linear betas with {' or '.join(PREDICTIONS)}, or on EDM noise levels with "
        f"v_prediction and sigma_data 1 (CosXL), found {found}; use a Stable Diffusion 1.x or XL"
    )


# Noise ---------------------------------------------------------------------------------------------------------------


def cpu_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal fp32 noise from a CPU generator: the same on every device, and the host's for the same shape."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
