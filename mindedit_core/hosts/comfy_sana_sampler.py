"""Painting with SANA on the host's own sampler: VAEEncode, the source on the channels, sampling, VAEDecode in a row.

B pictures, H W their size
"""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import node_helpers
import torch
from torch import Tensor

from ..painters.framing import Frame, frame
from ..tensors import composite
from .comfy_flow import LEVELS, SOLVER, flow_sampler, flow_sigmas
from .comfy_guidance import CONCAT
from .comfy_sana import Painter, painter_of

SIZE_ONLY = "this MODEL paints from text alone: of the picture only the size is used"
OTHERWISE = "painted with {} and {}; SANA is published with {} and {} (Draw-In-Mind: 30 steps, cfg 7.5)"


def paint(
    model: Any,
    positive: list,
    negative: list,
    vae: Any,
    source: Tensor,
    mask: Tensor | None,
    settings: Any,
    keep: bool,
    framing: str,
    notes: list[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """(picture float[B, H, W, 3], latent). source: float[B, H, W, 3];  mask: float[B, H, W] of its size, or None

    settings: comfy_sampler.Sampling;  keep: put the source back outside the mask;  notes: what the user must be told
    """
    painter: Painter = painter_of(model)
    framed = frame(framing, tuple(source.shape[1:3]), painter.base, painter.factor)
    notes += [note for note in (framed.note, "" if model.model.reads_source else SIZE_ONLY, _how(settings)) if note]
    latent = {"samples": vae.encode(framed.apply(source))}
    if mask is not None:
        latent["noise_mask"] = framed.apply(mask).unsqueeze(1)
    conds = [_with_source(cond, latent["samples"], model) for cond in (positive, negative)]
    samples = _sampled(model, *conds, latent, settings)
    edited = framed.undo(vae.decode(samples))
    if mask is not None and keep:
        edited = composite(framed.returned(source), edited, framed.returned(mask))
    return edited, {**latent, "samples": samples}


def _how(settings: Any) -> str:
    """A word about solver and noise levels that are not the published ones; "" if they are."""
    chosen, published = (settings.sampler_name, settings.scheduler), (SOLVER, LEVELS)
    return "" if chosen == published else OTHERWISE.format(*chosen, *published)


def unchanged(vae: Any, source: Tensor, model: Any, framing: str) -> dict[str, Tensor]:
    """The latent of a picture that is not painted over."""
    painter: Painter = painter_of(model)
    framed: Frame = frame(framing, tuple(source.shape[1:3]), painter.base, painter.factor)
    return {"samples": vae.encode(framed.apply(source))}


def _with_source(conditioning: list, latents: Tensor, model: Any) -> list:
    """What an edit SANA sees on its further channels; the MODEL scales it."""
    if not model.model.reads_source:
        return conditioning
    return node_helpers.conditioning_set_values(conditioning, {CONCAT: latents})


def _sampled(model: Any, positive: list, negative: list, latent: dict[str, Tensor], settings: Any) -> Tensor:
    """With solver and noise levels of the combos: the host's own, or Draw-In-Mind's."""
    noise = comfy.sample.prepare_noise(latent["samples"], settings.seed)
    custom = settings.sampler_name == SOLVER
    sampler = flow_sampler() if custom else comfy.samplers.sampler_object(settings.sampler_name)
    return comfy.sample.sample_custom(
        model,
        noise,
        settings.cfg,
        sampler,
        _sigmas(model, settings),
        positive,
        negative,
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, settings.steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed,
    )


def _sigmas(model: Any, settings: Any) -> Tensor:
    if settings.scheduler == LEVELS:
        return flow_sigmas(model, settings.steps, settings.strength)
    options = {"sampler": "euler", "scheduler": settings.scheduler, "denoise": settings.strength}
    return comfy.samplers.KSampler(
        model, settings.steps, device=torch.device("cpu"), model_options=model.model_options, **options
    ).sigmas
