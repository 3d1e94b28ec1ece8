"""The mask that an MLLM itself gives: its region lines, drawn into the picture."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .contracts import MAX_COORDINATE, Region

MARGIN = 0.03  # of the picture's side: a box is grown by this, since a mask has to be a little larger than its object


def region_mask(regions: Iterable[Region], height: int, width: int) -> Tensor:
    """float[H, W]: 1 where these regions say that the edit takes place; all 0 if they say nothing.

    Boxes are grown by MARGIN. A background is everywhere but in the `keep` boxes; without them all of the picture.
    """
    regions = tuple(regions)
    mask = torch.zeros(height, width)
    if any(region.kind == "background" for region in regions):
        mask[:] = 1.0
        for region in regions:
            if region.kind == "keep":
                _fill(mask, region, 0.0)
    for region in regions:
        if region.kind == "box":
            _fill(mask, region, 1.0, MARGIN)
    return mask


def _fill(mask: Tensor, region: Region, value: float, margin: float = 0.0) -> None:
    """Write `value` into the region's box, at least one pixel of it, in place."""
    height, width = mask.shape
    x0, y0, x1, y1 = (edge / MAX_COORDINATE for edge in region.box)
    mask[_pixels(y0 - margin, y1 + margin, height), _pixels(x0 - margin, x1 + margin, width)] = value


def _pixels(low: float, high: float, side: int) -> slice:
    first = min(max(0, int(low * side)), side - 1)
    return slice(first, max(first + 1, min(side, round(high * side))))
