"""What a UNet sees beside the noisy latents, told by its number of input channels.

    C         img2img    nothing: the source is where painting starts
    2C        instruct   the source's latents (InstructPix2Pix, arXiv 2211.09800, section 3.2; CosXL-edit)
    2C + 1    inpaint    the mask and the latents of the picture with grey in its place (Stable Diffusion inpainting)

InstructPix2Pix reads the source's latents as the autoencoder gives them, unscaled; CosXL-edit reads them scaled.

Axes: B pictures, H W their size, C latent channels, h w latent size.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Misfit
from ..tensors import fit_mask
from .schedule import EDMSchedule, NoiseSchedule
from .text import Say

GREY = 0.5  # what the inpainting UNet sees in place of the masked pixels
KINDS = {"img2img": (1, 0), "instruct": (2, 0), "inpaint": (2, 1)}  # kind -> a, b of a * C + b channels


def channels_of(kind: str, latent_channels: int) -> int:
    """How many channels a UNet of this kind takes."""
    times, more = KINDS[kind]
    return times * latent_channels + more


def kind_of(unet: nn.Module, latent_channels: int, *wanted: str) -> str:
    """The kind of this UNet, one of `wanted`; else a Misfit that says which channels belong."""
    found = unet.config["in_channels"]
    for kind in wanted:
        if found == channels_of(kind, latent_channels):
            return kind
    takes = ", ".join(f"{channels_of(kind, latent_channels)} ({kind})" for kind in KINDS)
    belong = " or ".join(str(channels_of(kind, latent_channels)) for kind in wanted)
    raise Misfit(
        f"with this VAE's {latent_channels} latent channels a UNet takes {takes} channels, "
        f"got {found} where {belong} belong; put it in its own place, or load the VAE it was made for"
    )


def source_channels(unscaled: Tensor, scaling_factor: float, schedule: NoiseSchedule) -> Tensor:
    """The source's latents float[B, C, h, w] as an instruct UNet reads them; CosXL's schedule tells, as in the host."""
    return unscaled * scaling_factor if isinstance(schedule, EDMSchedule) else unscaled


# Masks ---------------------------------------------------------------------------------------------------------------


def is_empty(mask: Tensor | None, image: Tensor, say: Say) -> bool:
    """True if there is a mask and it rounds to 0 everywhere, which `say` is told."""
    empty = mask is not None and not bool((fit_mask(mask, image).round() > 0).any())
    if empty:
        said = "the mask is empty (nowhere above 0.5): there is nothing to edit and the source comes back"
        say(f"{said}; disconnect it to edit everywhere")
    return empty


def fitted_mask(mask: Tensor, image: Tensor, say: Say) -> Tensor:
    """float[B, H, W] in 0..1 of the picture's size; `say` is told if it was resized."""
    theirs, ours = tuple(mask.shape[-2:]), tuple(image.shape[1:3])
    if theirs != ours:
        say(f"the mask is {theirs[1]}x{theirs[0]}, the picture {ours[1]}x{ours[0]}: the mask was resized to fit")
    return fit_mask(mask.to(image.device), image)


def grey_out(image: Tensor, mask: Tensor) -> Tensor:
    """Grey where the mask rounds to 1. image: float[B, H, W, 3];  mask: float[B, H, W]"""
    kept = 1.0 - rearrange(mask.round(), "b h w -> b h w 1")
    return (image - GREY) * kept + GREY


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """float[B, H, W] -> 0 or 1, float[B, 1, h, w]: resized bilinearly without smoothing, then rounded."""
    return soft_latent_mask(mask, size).round()


def soft_latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The same in 0..1, not rounded."""
    return F.interpolate(rearrange(mask, "b h w -> b 1 h w"), size=size, mode="bilinear")
