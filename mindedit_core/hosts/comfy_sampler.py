"""Painting with the host's own sampler: what VAEEncode or InpaintModelConditioning, KSampler and VAEDecode do in a row.

Beside them: any picture size, the source put back outside the mask, and a word about what was not as it seemed.
B pictures, H W their size
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
from einops import rearrange
from torch import Tensor

from ..contracts import Misfit
from ..painters.unet import grey_out
from ..tensors import check_shape, crop_to, fit_mask, pad_to_multiple, to_rgb
from ..tensors import composite as put_back

HOST_MULTIPLE = 8  # InpaintModelConditioning cuts pictures to multiples of 8, whatever the VAE


class Edited(NamedTuple):
    """image: float[B, H, W, 3];  latent: {"samples": ...} of the padded picture;  notes: what the user must be told."""

    image: Tensor
    latent: dict[str, Tensor]
    notes: list[str]


def samplers() -> tuple[list[str], list[str]]:
    """Names of samplers and schedulers for the combos."""
    return list(comfy.samplers.KSampler.SAMPLERS), list(comfy.samplers.KSampler.SCHEDULERS)


def edit_sample(
    model: Any,
    positive: list,
    negative: list,
    vae: Any,
    image: Tensor,
    mask: Tensor | None = None,
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    strength: float = 1.0,
    composite: bool = True,
) -> Edited:
    """Paint over `image` float[B, H, W, C] in 0..1 where `mask` (any size, 1 = may change; None: everywhere) allows it.

    strength: KSampler's denoise; 0, or an empty mask, gives the source back bit for bit without running `model`
    An inpainting MODEL sees the mask and what surrounds it (without a mask: everything is masked); any other MODEL is
    held to the mask by a noise mask.  composite: put the source back outside the mask, pixel-exact
    """
    require_vae(model, vae)
    notes: list[str] = []
    source, mask = _source(image, notes), _mask(image, mask, notes)
    multiple = math.lcm(HOST_MULTIPLE, vae.spacial_compression_encode())
    padded, size = pad_to_multiple(source, multiple)
    if strength <= 0 or (mask is not None and not bool(mask.round().any())):
        return Edited(source.clone(), {"samples": vae.encode(padded)}, notes)
    room = None if mask is None else pad_to_multiple(mask, multiple)[0]
    positive, negative, latent = _prepared(model, positive, negative, vae, padded, room)
    samples = _sampled(model, positive, negative, latent, seed, steps, cfg, sampler_name, scheduler, strength)
    edited = crop_to(_decoded(vae, samples), size)
    if mask is not None and composite:
        edited = put_back(source, edited, mask)
    return Edited(edited, {**latent, "samples": samples}, notes)


def require_vae(model: Any, vae: Any) -> None:
    """Raise Misfit unless the VAE makes the latents that the MODEL paints."""
    if vae is None:
        raise Misfit("there is no VAE: this checkpoint has none; wire one from a VAE loader")
    wanted = model.get_model_object("latent_format").latent_channels
    if vae.latent_channels != wanted:
        raise Misfit(
            f"the VAE makes latents of {vae.latent_channels} channels, this MODEL paints {wanted}; "
            "wire the VAE that belongs to the MODEL"
        )


def is_inpainter(model: Any) -> bool:
    """A MODEL that takes mask and masked picture on extra channels, as the host marked it when loading."""
    return "masked_image" in getattr(model.model, "concat_keys", ())


# Before sampling -----------------------------------------------------------------------------------------------------


def _source(image: Tensor, notes: list[str]) -> Tensor:
    check_shape("image", image, "b h w c")
    if image.shape[-1] == 4:
        notes.append("the picture has an alpha channel: it was laid over white")
    return to_rgb(image)


def _mask(image: Tensor, mask: Tensor | None, notes: list[str]) -> Tensor | None:
    """float[B, H, W] in 0..1 of the picture's size, or None."""
    if mask is None:
        return None
    theirs, ours = tuple(mask.shape[-2:]), tuple(image.shape[1:3])
    if theirs != ours:
        sizes = f"the mask is {theirs[1]}x{theirs[0]}, the picture {ours[1]}x{ours[0]}"
        notes.append(f"{sizes}: the mask was resized to fit")
    mask = fit_mask(mask.to(image.device), image)
    if not bool(mask.round().any()):
        said = "the mask is empty (nowhere above 0.5): there is nothing to edit and the source comes back"
        notes.append(f"{said}; unplug it to edit everywhere")
    return mask


def _prepared(
    model: Any, positive: list, negative: list, vae: Any, padded: Tensor, mask: Tensor | None
) -> tuple[list, list, dict[str, Tensor]]:
    """Conditionings and latent, as InpaintModelConditioning(noise_mask=False) or VAEEncode [and SetLatentNoiseMask]."""
    latent = {"samples": vae.encode(padded)}
    if not is_inpainter(model):
        return positive, negative, latent if mask is None else {**latent, "noise_mask": _with_channel(mask)}
    mask = torch.ones_like(padded[..., 0]) if mask is None else mask
    seen = {"concat_latent_image": vae.encode(grey_out(padded, mask)), "concat_mask": _with_channel(mask)}
    set_values = node_helpers.conditioning_set_values
    return set_values(positive, seen), set_values(negative, seen), latent


def _with_channel(mask: Tensor) -> Tensor:
    return rearrange(mask, "b h w -> b 1 h w")


# Sampling ------------------------------------------------------------------------------------------------------------


def _sampled(
    model: Any,
    positive: list,
    negative: list,
    latent: dict[str, Tensor],
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    strength: float,
) -> Tensor:
    """What KSampler does."""
    latents = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latents, seed),
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latents,
        denoise=strength,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def _decoded(vae: Any, samples: Tensor) -> Tensor:
    """float[B, H, W, 3]; frames of a video VAE count as pictures."""
    decoded = vae.decode(samples)
    return decoded if decoded.ndim == 4 else rearrange(decoded, "b t h w c -> (b t) h w c")
