"""Guidance: which branches the UNet runs in one batch, and how they are weighed.

    text alone    e(u) + s_T * (e(c) - e(u))                                  classifier-free guidance, arXiv 2207.12598
    two scales    e(0, 0) + s_I * (e(i, 0) - e(0, 0)) + s_T * (e(i, c) - e(i, 0))
                  InstructPix2Pix, arXiv 2211.09800, equation 3

i is the picture on the UNet's channels, 0 in its place zeros; c the text, 0 in its place the negative text, which is
the paper's empty text unless the settings name one. s_T = settings.guidance_scale,
s_I = settings.image_guidance_scale. The host's DualCFGGuider, style "regular", computes the same with
cond1 = (i, c), cond2 = (i, 0), negative = (0, 0), cfg_conds = s_T, cfg_cond2_negative = s_I; only its style "nested"
differs. diffusers' pipelines order the rows (i, c), (i, 0), (0, 0); here the unconditional ones come first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..contracts import PaintSettings


class Branch(NamedTuple):
    """One picture-sized part of the batch. has_text: reads plan and insight, else their negatives; has_picture: i"""

    has_text: bool
    has_picture: bool


NULL, PICTURE, FULL = Branch(False, False), Branch(False, True), Branch(True, True)


def branches(settings: PaintSettings, two_scales: bool) -> tuple[Branch, ...]:
    """Those whose weight is not 0, unconditional first, as the host: a scale of 1 leaves out what it would cancel."""
    text, picture = (not math.isclose(s, 1.0) for s in (settings.guidance_scale, settings.image_guidance_scale))
    if two_scales and picture:
        return NULL, PICTURE, FULL
    return (PICTURE, FULL) if text else (FULL,)


def guided(foreseen: Sequence[Tensor], settings: PaintSettings) -> Tensor:
    """What the branches foresee, in the order of `branches`, as one float[B, C, h, w]."""
    if len(foreseen) == 1:
        return foreseen[0]
    *null, uncond, cond = foreseen
    if not null:
        return uncond + (cond - uncond) * settings.guidance_scale
    by_picture = null[0] + (uncond - null[0]) * settings.image_guidance_scale
    return by_picture + (cond - uncond) * settings.guidance_scale
