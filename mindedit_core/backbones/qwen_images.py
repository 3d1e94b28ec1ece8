"""Pictures as Qwen2.5-VL sees them: resized, normalised, cut into patches in the order in which they are merged.

N pictures of one size, H W their size, h w their patches, m patches merged along a side, t frames (a picture twice),
p pixels of a patch's side
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN as MEAN
from transformers.image_utils import OPENAI_CLIP_STD as STD

LEAST_TOKENS, MOST_TOKENS = 4, 1280  # of a picture whose aspect is kept: 56 x 56 to 28 x 28 x 1280 pixels


class Seen(NamedTuple):
    """pixel_values: float[N * h * w, 3 * t * p * p];  grid: int[N, 3], frames (1), h and w of each picture"""

    pixel_values: Tensor
    grid: Tensor

    def tokens(self, merge: int) -> int:
        """How many tokens one picture becomes."""
        return int(self.grid[0].prod()) // merge**2


def smart_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Height and width as whole multiples of `factor`, to the nearest, at least one each."""
    return tuple(max(factor, round(side / factor) * factor) for side in (height, width))


def bounded_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """As `smart_size`, scaled so that the area lies in least..most pixels: the rule of Qwen's image processor."""
    area = height * width
    rows, columns = smart_size(height, width, factor)
    if rows * columns > most:
        scale = (most / area) ** 0.5
        return tuple(max(factor, int(side * scale / factor) * factor) for side in (height, width))
    if rows * columns < least:
        scale = (least / area) ** 0.5
        return tuple(-int(-side * scale // factor) * factor for side in (height, width))
    return rows, columns


def unit(config: Any) -> int:
    """Pixels along one side of a token: 28 in the published models."""
    return config.vision_config.patch_size * config.vision_config.spatial_merge_size


def see(pixels: np.ndarray, size: Sequence[int], config: Any) -> Seen:
    """Pictures uint8[N, H, W, 3], stretched to `size` (height, width; whole multiples of `unit`), bicubic."""
    vision = config.vision_config
    scaled = torch.from_numpy(np.stack([_resized(picture, size) for picture in pixels])).float() / 255.0
    normal = rearrange((scaled - torch.tensor(MEAN)) / torch.tensor(STD), "n h w c -> n c h w")
    cut = rearrange(
        normal,
        "n c (h mh p) (w mw q) -> n h w mh mw c p q",
        mh=vision.spatial_merge_size,
        mw=vision.spatial_merge_size,
        p=vision.patch_size,
        q=vision.patch_size,
    )
    rows = repeat(cut, "n h w mh mw c p q -> (n h w mh mw) (c t p q)", t=vision.temporal_patch_size)
    grid = torch.tensor([[1, size[0] // vision.patch_size, size[1] // vision.patch_size]] * len(pixels))
    return Seen(rows, grid)


def _resized(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    if picture.shape[:2] == tuple(size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))
