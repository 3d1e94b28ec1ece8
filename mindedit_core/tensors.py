"""Tensor shapes and picture layouts, in one place.

A *picture* is float[B, H, W, 3] in 0..1 (as ComfyUI's IMAGE), a *mask* float[B, H, W] in 0..1; models see
float[B, 3, H, W] in -1..1.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


def check_shape(name: str, x: Tensor, pattern: str, **sizes: int) -> dict[str, int]:
    """Raise ValueError unless `x` has the axes of `pattern`; return the size of each axis.

    >>> check_shape("hidden", torch.zeros(2, 7, 32), "b l d", d=32)
    {'b': 2, 'l': 7, 'd': 32}
    >>> check_shape("hidden", torch.zeros(2, 7, 32), "b l d", d=4096)
    Traceback (most recent call last):
    ValueError: hidden must be [b l d] with d=4096, got (2, 7, 32)
    """
    axes = pattern.split()
    found = dict(zip(axes, x.shape, strict=False))
    if x.ndim != len(axes) or any(found[axis] != size for axis, size in sizes.items()):
        wanted = f" with {', '.join(f'{axis}={size}' for axis, size in sizes.items())}" if sizes else ""
        raise ValueError(f"{name} must be [{pattern}]{wanted}, got {tuple(x.shape)}")
    return found


def to_rgb(image: Tensor) -> Tensor:
    """float[B, H, W, 1 | 3 | 4] -> float[B, H, W, 3]: grey is repeated, alpha is laid over white."""
    channels = check_shape("image", image, "b h w c")["c"]
    if channels == 3:
        return image
    if channels == 1:
        return repeat(image, "b h w 1 -> b h w c", c=3)
    if channels == 4:
        colour, alpha = image[..., :3], image[..., 3:]
        return colour * alpha + (1.0 - alpha)
    raise ValueError(f"image must have 1, 3 or 4 channels last, got {tuple(image.shape)}")


def to_model(image: Tensor) -> Tensor:
    """float[B, H, W, 3] in 0..1 -> float[B, 3, H, W] in -1..1."""
    check_shape("image", image, "b h w c", c=3)
    return rearrange(image, "b h w c -> b c h w") * 2.0 - 1.0


def from_model(pixels: Tensor) -> Tensor:
    """float[B, 3, H, W] in -1..1 -> float[B, H, W, 3], clamped to 0..1."""
    check_shape("pixels", pixels, "b c h w", c=3)
    return rearrange((pixels / 2.0 + 0.5).clamp(0.0, 1.0), "b c h w -> b h w c")


def pad_to_multiple(image: Tensor, multiple: int = 8) -> tuple[Tensor, tuple[int, int]]:
    """Repeat the right and bottom edge until both sides are multiples; also return the old (H, W) for `crop_to`.

    Takes a picture float[B, H, W, C] or a mask float[B, H, W].
    """
    height, width = image.shape[1:3]
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return image, (height, width)
    planes = image.unsqueeze(-1) if image.ndim == 3 else image
    padded = F.pad(rearrange(planes, "b h w c -> b c h w"), (0, right, 0, down), mode="replicate")
    padded = rearrange(padded, "b c h w -> b h w c")
    return (padded.squeeze(-1) if image.ndim == 3 else padded), (height, width)


def crop_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `pad_to_multiple`: the top left (H, W) of a picture or a mask."""
    return image[:, : size[0], : size[1]]


def fit_mask(mask: Tensor, image: Tensor) -> Tensor:
    """A mask of any size as float[B, H, W] in 0..1 with the picture's B, H, W.

    mask: float[H, W], float[B, H, W] or float[B, 1, H, W]

    Resized bilinearly, as the host does; one mask serves all pictures.
    """
    batch, height, width = image.shape[:3]
    mask = rearrange(mask.float(), "... h w -> (...) 1 h w").clamp(0.0, 1.0)
    if mask.shape[0] not in (1, batch):
        raise ValueError(f"mask must be one, or one for each of the {batch} pictures, got {mask.shape[0]} masks")
    if mask.shape[2:] != (height, width):
        mask = F.interpolate(mask, size=(height, width), mode="bilinear")
    return mask[:, 0].expand(batch, height, width)


def image_key(image: Tensor) -> str:
    """A name for what is seen: SHA-256 of the uint8 pixels and their shape; the same on every device and dtype."""
    pixels = (image.detach().float().clamp(0.0, 1.0) * 255.0).round().to("cpu", torch.uint8).contiguous()
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.numpy().tobytes())
    return digest.hexdigest()


def composite(source: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """`edited` inside the mask, `source` outside it, bit for bit where the mask is 0; soft edges are blended.

    source, edited: float[B, H, W, 3];  mask: float[B, H, W] in 0..1
    """
    weight = rearrange(mask.to(edited), "b h w -> b h w 1")
    source = source.to(edited)
    return torch.where(weight > 0, torch.lerp(source, edited, weight), source)
