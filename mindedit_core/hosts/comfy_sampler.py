"""Painting with the host's own sampler: what VAEEncode or InpaintModelConditioning, KSampler and VAEDecode do in a row;
or, for an InstructPix2Pix or CosXL-edit MODEL, InstructPixToPixConditioning, DualCFGGuider and SamplerCustomAdvanced.

Beside them: any picture size, the source put back outside the mask, and a word about what was not as it seemed.
B pictures, H W their size
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import comfy.model_base
import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
from einops import rearrange
from torch import Tensor

from ..contracts import Misfit
from ..painters.schedule import is_full
from ..painters.spatial import grey_out
from ..tensors import check_shape, crop_to, fit_mask, pad_to_multiple, to_rgb
from ..tensors import composite as put_back
from . import comfy_flow, comfy_sana, comfy_sana_sampler
from .comfy_guidance import TwoScaleGuider, with_picture, without_picture

HOST_MULTIPLE = 8  # InpaintModelConditioning cuts pictures to multiples of 8, whatever the VAE


class Edited(NamedTuple):
    """image: float[B, H, W, 3];  latent: {"samples": ...} of the padded picture;  notes: what the user must be told."""

    image: Tensor
    latent: dict[str, Tensor]
    notes: list[str]


class Prepared(NamedTuple):
    """What goes into the sampler. null: the negative without the picture, where the picture guides too."""

    positive: list
    negative: list
    latent: dict[str, Tensor]
    null: list | None = None


class Sampling(NamedTuple):
    """KSampler's widgets; image_cfg: DualCFGGuider's second scale."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    strength: float
    image_cfg: float


def samplers() -> tuple[list[str], list[str]]:
    """Names of samplers and schedulers for the combos: the host's, then those of Draw-In-Mind."""
    host = comfy.samplers.KSampler
    return [*host.SAMPLERS, comfy_flow.SOLVER], [*host.SCHEDULERS, comfy_flow.LEVELS]


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
    image_guidance_scale: float = 1.5,
    framing: str = "bins",
) -> Edited:
    """Paint over `image` float[B, H, W, C] in 0..1 where `mask` (any size, 1 = may change; None: everywhere) allows it.

    strength: KSampler's denoise; 0, or an empty mask, gives the source back bit for bit without running `model`
    An inpainting MODEL sees the mask and what surrounds it (without a mask: everything is masked); any other MODEL is
    held to the mask by a noise mask. An instruct MODEL (InstructPix2Pix, CosXL-edit) sees the source, is guided by it
    with image_guidance_scale, and starts from noise alone at strength 1 without a mask.
    composite: put the source back outside the mask, pixel-exact
    framing: how a SANA, which paints one resolution, sees the picture (`painters.framing`); others take any size
    """
    require_vae(model, vae)
    require_text(model, positive, negative)
    notes: list[str] = []
    source, mask = _source(image, notes), _mask(image, mask, notes)
    settings = Sampling(seed, steps, cfg, sampler_name, scheduler, strength, image_guidance_scale)
    nothing = strength <= 0 or (mask is not None and not bool(mask.round().any()))
    if comfy_sana.painter_of(model) is not None:
        if nothing:
            return Edited(source.clone(), comfy_sana_sampler.unchanged(vae, source, model, framing), notes)
        told = (model, positive, negative, vae, source, mask)
        return Edited(*comfy_sana_sampler.paint(*told, settings, composite, framing, notes), notes)
    _require_flow_only_for_sana(settings)
    multiple = math.lcm(HOST_MULTIPLE, vae.spacial_compression_encode())
    padded, size = pad_to_multiple(source, multiple)
    if nothing:
        return Edited(source.clone(), {"samples": vae.encode(padded)}, notes)
    room = None if mask is None else pad_to_multiple(mask, multiple)[0]
    prepared = _prepared(model, positive, negative, vae, padded, room, strength)
    samples = _sampled(model, prepared, settings)
    edited = crop_to(_decoded(vae, samples), size)
    if mask is not None and composite:
        edited = put_back(source, edited, mask)
    return Edited(edited, {**prepared.latent, "samples": samples}, notes)


def _require_flow_only_for_sana(settings: Sampling) -> None:
    if chosen := {settings.sampler_name, settings.scheduler} & {comfy_flow.SOLVER, comfy_flow.LEVELS}:
        raise Misfit(f"{' and '.join(sorted(chosen))} paint with a SANA alone; choose euler and simple for this MODEL")


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


def require_text(model: Any, *conditionings: list) -> None:
    """Raise Misfit for text that a SANA does not read, and for an MLLM's states where the MODEL is none."""
    for tokens, extras in (each for conditioning in conditionings for each in conditioning):
        if comfy_sana.painter_of(model) is not None:
            comfy_sana.require_width(tokens, model.model.token_dim, model.model.text_from)
        elif comfy_sana.STATES in extras:
            raise Misfit(
                "this conditioning is of an MLLM's states, which a SANA alone reads, and this MODEL is none; wire "
                "model, positive and negative of the same IP-Adapter Bridge"
            )


def kind_of(model: Any) -> str:
    """One of `painters.spatial.KINDS`: instruct, inpaint or img2img, as the host found when it loaded the MODEL."""
    if isinstance(model.model, comfy.model_base.IP2P):
        return "instruct"
    return "inpaint" if "masked_image" in getattr(model.model, "concat_keys", ()) else "img2img"


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
    model: Any, positive: list, negative: list, vae: Any, padded: Tensor, mask: Tensor | None, strength: float
) -> Prepared:
    """As VAEEncode [, SetLatentNoiseMask], as InpaintModelConditioning, or as InstructPixToPixConditioning."""
    source, kind = vae.encode(padded), kind_of(model)
    if kind == "inpaint":
        mask = torch.ones_like(padded[..., 0]) if mask is None else mask
        seen = {"concat_latent_image": vae.encode(grey_out(padded, mask)), "concat_mask": _with_channel(mask)}
        told = (node_helpers.conditioning_set_values(each, seen) for each in (positive, negative))
        return Prepared(*told, {"samples": source})
    latent = {"samples": source} if mask is None else {"samples": source, "noise_mask": _with_channel(mask)}
    if kind == "img2img":
        return Prepared(positive, negative, latent)
    if mask is None and is_full(strength):
        latent = {"samples": torch.zeros_like(source)}
    told = (with_picture(each, source) for each in (positive, negative))
    return Prepared(*told, latent, without_picture(negative))


def _with_channel(mask: Tensor) -> Tensor:
    return rearrange(mask, "b h w -> b 1 h w")


# Sampling ------------------------------------------------------------------------------------------------------------


def _sampled(model: Any, prepared: Prepared, settings: Sampling) -> Tensor:
    """What KSampler does, or, where there is a branch without the picture, DualCFGGuider and SamplerCustomAdvanced."""
    latents = comfy.sample.fix_empty_latent_channels(model, prepared.latent["samples"])
    noise, noise_mask = comfy.sample.prepare_noise(latents, settings.seed), prepared.latent.get("noise_mask")
    watched = {
        "callback": latent_preview.prepare_callback(model, settings.steps),
        "disable_pbar": not comfy.utils.PROGRESS_BAR_ENABLED,
        "seed": settings.seed,
    }
    if prepared.null is not None:
        guider, sampler = _two_scales(model, prepared, settings), comfy.samplers.sampler_object(settings.sampler_name)
        samples = guider.sample(noise, latents, sampler, _sigmas(model, settings), noise_mask, **watched)
        return samples.to(mm.intermediate_device())
    how = settings.steps, settings.cfg, settings.sampler_name, settings.scheduler
    conds = prepared.positive, prepared.negative
    options = {"denoise": settings.strength, "noise_mask": noise_mask, **watched}
    return comfy.sample.sample(model, noise, *how, *conds, latents, **options)


def _two_scales(model: Any, prepared: Prepared, settings: Sampling) -> TwoScaleGuider:
    guider = TwoScaleGuider(model)
    guider.set_conds(prepared.positive, prepared.negative, prepared.null)
    guider.set_cfg(settings.cfg, settings.image_cfg)
    return guider


def _sigmas(model: Any, settings: Sampling) -> Tensor:
    """The noise levels that KSampler would take."""
    named = {"sampler": settings.sampler_name, "scheduler": settings.scheduler}
    options = {"steps": settings.steps, "denoise": settings.strength, "model_options": model.model_options}
    return comfy.samplers.KSampler(model, device=model.load_device, **named, **options).sigmas


def _decoded(vae: Any, samples: Tensor) -> Tensor:
    """float[B, H, W, 3]; frames of a video VAE count as pictures."""
    decoded = vae.decode(samples)
    return decoded if decoded.ndim == 4 else rearrange(decoded, "b t h w c -> (b t) h w c")
