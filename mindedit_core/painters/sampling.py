"""Euler steps, and painting held to a mask: what the host's KSampler does with `euler`.

B pictures, C latent channels, h w latent size
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from ..contracts import Interrupted

OnStep = Callable[[int, int], None]
ShouldStop = Callable[[], bool]
Denoise = Callable[[Tensor, Tensor], Tensor]  # (sample, sigma) -> the clean picture that the model foresees


def held_to_mask(denoise: Denoise, mask: Tensor, latents: Tensor, noised: Callable[[Tensor], Tensor]) -> Denoise:
    """`denoise` that finds and foresees `latents` wherever the mask is 0: the host's noise mask.

    mask: float[B, 1, h, w] in 0..1, 1 = may change;  latents: float[B, C, h, w]
    noised(sigma): the latents under the noise of that level
    """

    def held(sample: Tensor, sigma: Tensor) -> Tensor:
        known = noised(sigma)
        return denoise(sample * mask + known * (1.0 - mask), sigma) * mask + latents * (1.0 - mask)

    return held


def euler(
    denoise: Denoise,
    sample: Tensor,
    sigmas: Tensor,
    on_step: OnStep | None = None,
    should_stop: ShouldStop | None = None,
) -> Tensor:
    """Euler steps along falling sigmas float[n + 1]; denoise(sample, sigma) is the clean picture the model foresees."""
    steps = len(sigmas) - 1
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        stop_if_asked(should_stop, index, steps)
        sample = sample + (sample - denoise(sample, sigma)) / sigma * (following - sigma)
        if on_step is not None:
            on_step(index + 1, steps)
    stop_if_asked(should_stop, steps, steps)
    return sample


def stop_if_asked(should_stop: ShouldStop | None, done: int, steps: int) -> None:
    """Raise Interrupted if `should_stop()` says so."""
    if should_stop is not None and should_stop():
        raise Interrupted(f"painting was interrupted after {done} of {steps} steps")
