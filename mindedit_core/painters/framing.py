"""From a picture of any size to one that a painter of one resolution takes, and back.

    bins    stretched to the nearest whole latent cells of about the painter's area: the whole picture, little distorted
    pad     edges repeated until it is square, then scaled: the whole picture, undistorted, part of the area unused
    crop    short side scaled, centre cut out: as Draw-In-Mind publishes; what comes back is the square

B pictures, H W their size; a picture that fits already is left as it is, to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FRAMINGS = ("bins", "pad", "crop")


class Frame(NamedTuple):
    """How pictures of `source` (H, W) are seen: scaled to `scaled`, of which the box (top, left, h, w) is taken.

    padded: (H, W) to which edges are repeated before all that;  kind: of FRAMINGS
    """

    kind: str
    source: tuple[int, int]
    padded: tuple[int, int]
    scaled: tuple[int, int]
    box: tuple[int, int, int, int]

    @property
    def note(self) -> str:
        """What the user should know of it; "" if the picture fits as it is."""
        height, width = self.source
        if (self.source, self.padded) == (self.box[2:], self.source):
            return ""
        seen = f"the picture ({width}x{height}) is painted at {self.box[3]}x{self.box[2]}"
        ways = {"bins": "stretched a little", "pad": "its edges repeated to a square", "crop": "its centre cut out"}
        back = "the cut-out comes back" if self.kind == "crop" else "the result is scaled back"
        return f"{seen}, {ways[self.kind]}; {back}"

    def apply(self, picture: Tensor) -> Tensor:
        """A picture float[B, H, W, C], or a mask float[B, H, W], as the painter takes it."""
        planes = rearrange(picture.unsqueeze(-1) if picture.ndim == 3 else picture, "b h w c -> b c h w")
        down, right = self.padded[0] - self.source[0], self.padded[1] - self.source[1]
        if down or right:
            planes = F.pad(planes, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")
        top, left, height, width = self.box
        cut = _resized(planes, self.scaled)[..., top : top + height, left : left + width]
        seen = rearrange(cut, "b c h w -> b h w c")
        return seen.squeeze(-1) if picture.ndim == 3 else seen

    def undo(self, painted: Tensor) -> Tensor:
        """float[B, h, w, 3] as painted -> of the source's size; of a crop, as it is."""
        if self.kind == "crop":
            return painted
        whole = _resized(rearrange(painted, "b h w c -> b c h w"), self.padded)
        top, left = (self.padded[0] - self.source[0]) // 2, (self.padded[1] - self.source[1]) // 2
        kept = whole[..., top : top + self.source[0], left : left + self.source[1]]
        return rearrange(kept, "b c h w -> b h w c").clamp(0.0, 1.0)

    def returned(self, picture: Tensor) -> Tensor:
        """The source, or its mask, as large as what comes back: what a result is laid over."""
        return self.apply(picture) if self.kind == "crop" else picture


def frame(kind: str, size: tuple[int, int], base: int, factor: int) -> Frame:
    """How pictures of `size` (H, W) are seen by a painter of `base` x `base` pixels, `factor` a latent cell.

    >>> frame("bins", (768, 1365), 1024, 32).box
    (0, 0, 768, 1376)
    >>> frame("crop", (600, 799), 1024, 32)[3:]
    ((1024, 1363), (0, 170, 1024, 1024))
    """
    if kind not in FRAMINGS:
        raise ValueError(f"framing is one of {', '.join(FRAMINGS)}, got {kind!r}")
    height, width = size
    if kind == "pad":
        side = max(size)
        return Frame(kind, size, (side, side), (base, base), (0, 0, base, base))
    if kind == "crop":
        # torchvision's Resize, which cuts off, and CenterCrop, which rounds to even: what the published code calls
        scaled = tuple(base * edge // min(size) for edge in size)
        return Frame(kind, size, size, scaled, (*(round((edge - base) / 2) for edge in scaled), base, base))
    stretch = (height / width) ** 0.5
    cells = tuple(max(1, round(base / factor * ratio)) * factor for ratio in (stretch, 1.0 / stretch))
    return Frame(kind, size, size, cells, (0, 0, *cells))


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(planes.shape[2:]) == tuple(size):
        return planes
    return F.interpolate(planes.float(), size=size, mode="bilinear", antialias=True).to(planes.dtype)
