"""Scores as pure functions of tensors, and intervals for their means.

Pictures are float[B, H, W, C] in 0..1. A score is float[B], one number a picture; whoever reports it takes the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from .tensors import check_shape

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, section III-B
SSIM_K1, SSIM_K2 = 0.01, 0.03  # the same, equations 7 and 9
PSNR_CEILING = 100.0  # decibel; equal pictures, whose PSNR would be infinite and spoil every mean


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio in decibel, float[B], at most PSNR_CEILING.

    >>> psnr(torch.zeros(1, 4, 4, 3), torch.full((1, 4, 4, 3), 0.5))
    tensor([6.0206])
    """
    _check_pair(image, target)
    error = reduce((image.double() - target.double()) ** 2, "b h w c -> b", "mean")
    return (-10.0 * torch.log10(error)).clamp(max=PSNR_CEILING).float()


def l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, float[B] in 0..1."""
    _check_pair(image, target)
    return reduce((image.float() - target.float()).abs(), "b h w c -> b", "mean")


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, float[B], the mean over channels and every full 11 x 11 window.

    The Gaussian variant of Wang et al. (2004) without sample correction; equals scikit-image's structural_similarity
    with gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1. Sides: 11 pixels or more.
    """
    _check_pair(image, target)
    if min(image.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"ssim needs sides of {SSIM_WINDOW} pixels or more, got {tuple(image.shape[1:3])}; "
            f"widen the box with mask_box(mask, least={SSIM_WINDOW})"
        )
    x, y = image.double(), target.double()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return reduce(luminance * structure, "b c h w -> b", "mean").float()


def _blur(image: Tensor) -> Tensor:
    """float[B, H, W, C] -> float[B, C, H - 10, W - 10]: the Gaussian mean of every full window."""
    offsets = torch.arange(SSIM_WINDOW, dtype=image.dtype, device=image.device) - SSIM_WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    batch, channels = image.shape[0], image.shape[3]
    planes = rearrange(image, "b h w c -> (b c) 1 h w")
    planes = F.conv2d(F.conv2d(planes, rearrange(kernel, "k -> 1 1 k 1")), rearrange(kernel, "k -> 1 1 1 k"))
    return rearrange(planes, "(b c) 1 h w -> b c h w", b=batch, c=channels)


def _check_pair(image: Tensor, target: Tensor) -> None:
    check_shape("image", image, "b h w c")
    if image.shape != target.shape:
        raise ValueError(f"image and target must have one shape, got {tuple(image.shape)} and {tuple(target.shape)}")


def mask_box(mask: Tensor, least: int = 1) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the smallest box around mask > 0, grown to `least` pixels a side where that fits.

    mask: [H, W], any dtype. An empty mask gives the whole picture.
    """
    check_shape("mask", mask, "h w")
    rows, columns = (mask > 0).any(1).nonzero(), (mask > 0).any(0).nonzero()
    if not len(rows):
        return 0, mask.shape[0], 0, mask.shape[1]
    top, bottom = _widened(int(rows[0]), int(rows[-1]) + 1, least, mask.shape[0])
    left, right = _widened(int(columns[0]), int(columns[-1]) + 1, least, mask.shape[1])
    return top, bottom, left, right


def _widened(start: int, stop: int, least: int, limit: int) -> tuple[int, int]:
    start = max(0, min(start - max(0, least - (stop - start)) // 2, limit - least))
    return start, min(limit, max(stop, start + least))


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap_interval(values: Tensor, seed: int = 0, n: int = 2000, level: float = 0.95) -> Estimate:
    """The mean of `values` float[M] and its percentile bootstrap interval (Efron 1979) from `n` resamples.

    Raises ValueError for no values at all.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    check_shape("values", values, "m")
    if not len(values):
        raise ValueError("an interval needs at least one value, got none; evaluate more samples")
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randint(len(values), (len(values),), generator=generator) for _ in range(n))
    means = torch.stack([values[draw].mean() for draw in draws])
    tail = (1.0 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Estimate(value=values.mean().item(), low=low, high=high, n=len(values))


def paired_interval(values: Tensor, others: Tensor, seed: int = 0, n: int = 2000, level: float = 0.95) -> Estimate:
    """`bootstrap_interval` of values - others, measured on the same samples in the same order."""
    values, others = torch.as_tensor(values, dtype=torch.float64), torch.as_tensor(others, dtype=torch.float64)
    if values.shape != others.shape:
        raise ValueError(f"paired values need one partner each, got {tuple(values.shape)} and {tuple(others.shape)}")
    return bootstrap_interval(values - others, seed, n, level)


def paired_p_value(values: Tensor, others: Tensor, seed: int = 0, n: int = 10_000) -> float:
    """Two-sided p-value of the mean difference of paired values float[M], by sign flips (Fisher's randomisation test).

    If the two came from the same system, every difference could as well have had the other sign: the share of `n`
    random assignments of signs whose mean is at least as far from 0, the found one counted among them.
    """
    gap = torch.as_tensor(values, dtype=torch.float64) - torch.as_tensor(others, dtype=torch.float64)
    check_shape("values - others", gap, "m")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (n, len(gap)), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
    means = torch.stack([(part.to(gap) @ gap).abs() for part in signs.split(1000)]).flatten()
    return (1 + int((means >= gap.sum().abs() - 1e-9).sum())) / (n + 1)
