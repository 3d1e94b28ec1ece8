"""Painting with SANA (arXiv 2410.10629) as Draw-In-Mind does (arXiv 2509.01986): the source's latents on the channels.

    C     text-to-image, and from the source at strengths below 1
    2C    edit: noisy latents first, then the source's, scaled

Text comes as tokens from a bridge. Under guidance the unconditional branch reads the learned null tokens, as many and
under the same mask, and sees the source as well: v = v_null + s * (v_text - v_null).
Axes: B pictures, H W their size, C latent channels, h w latent size, L text tokens, Dt their width
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..contracts import Condition, Misfit, PaintSettings, Plan
from ..tensors import check_shape, composite
from .flow import FlowSchedule, dpm_solver, foreseen, noised
from .framing import Frame, frame
from .latents import decode, encode, pixels_per_latent
from .sampling import OnStep, ShouldStop, held_to_mask
from .schedule import cpu_noise
from .spatial import fitted_mask, is_empty, soft_latent_mask
from .text import Say

log = logging.getLogger(__name__)


class Text(NamedTuple):
    """tokens: float[R, L, Dt], the null branch's rows first;  mask: bool[R, L], or None where every token counts"""

    tokens: Tensor
    mask: Tensor | None


class SanaPainter:
    """transformer: SanaTransformer2DModel;  vae: AutoencoderDC;  null_tokens: float[Lmax, Dt], learned

    schedule: None is Draw-In-Mind's. Nothing is changed by painting.
    """

    accepts = frozenset({"text_tokens"})

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        null_tokens: Tensor,
        schedule: FlowSchedule | None = None,
    ) -> None:
        self.transformer, self.vae, self.null_tokens = transformer, vae, null_tokens
        self.schedule = schedule or FlowSchedule()
        self.factor = pixels_per_latent(vae)
        self.base = transformer.config["sample_size"] * self.factor
        self._require_parts()

    def _require_parts(self) -> None:
        latent, found = self.vae.config["latent_channels"], self.transformer.config["in_channels"]
        if found not in (latent, 2 * latent) or self.transformer.config["out_channels"] != latent:
            raise Misfit(
                f"with this VAE's {latent} latent channels a SANA takes {latent} (text-to-image) or {2 * latent} "
                f"(edit), got {found}; load the VAE it was made for"
            )
        check_shape("null_tokens", self.null_tokens, "l d", d=self.token_dim)

    @property
    def token_dim(self) -> int:
        """Width of the text tokens that it reads."""
        return self.transformer.config["caption_channels"]

    def reads_source(self) -> bool:
        """True if it sees the source on its channels, and need not start from it."""
        return self.transformer.config["in_channels"] == 2 * self.vae.config["latent_channels"]

    @torch.no_grad()
    def paint(
        self,
        image: Tensor,
        plan: Plan | Sequence[Plan],
        condition: Condition,
        settings: PaintSettings,
        on_step: OnStep | None = None,
        should_stop: ShouldStop | None = None,
        on_note: Say | None = None,
    ) -> Tensor:
        """Picture float[B, H, W, 3] in 0..1 of any size -> the edited one: of its size, or of framing `crop` a square.

        The plan's text is not read: condition.text_tokens are what was made of it.
        Strength 0 and an empty mask return the source bit for bit, without a model call.
        Raises Misfit without text tokens; Interrupted within one step of `should_stop()` saying yes.
        """
        say = on_note or log.warning
        check_shape("image", image, "b h w c", c=3)
        if settings.strength == 0 or is_empty(settings.mask, image, say):
            return image.clone()
        framed = frame(settings.framing, tuple(image.shape[1:3]), self.base, self.factor)
        if framed.note:
            say(framed.note)
        mask = None if settings.mask is None else fitted_mask(settings.mask, image, say)
        latents = self._latents(framed, image, mask, condition, settings, on_step, should_stop)
        edited = framed.undo(decode(self.vae, latents)).to(image)
        if settings.composite and mask is not None:
            edited = composite(framed.returned(image), edited, framed.returned(mask.to(image)))
        return edited

    @torch.no_grad()
    def paint_latents(
        self,
        image: Tensor,
        condition: Condition,
        settings: PaintSettings,
        on_step: OnStep | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Tensor:
        """As `paint`, but not decoded: scaled latents float[B, C, h, w] of the framed picture."""
        framed = frame(settings.framing, tuple(image.shape[1:3]), self.base, self.factor)
        mask = None if settings.mask is None else fitted_mask(settings.mask, image, log.warning)
        return self._latents(framed, image, mask, condition, settings, on_step, should_stop)

    def _latents(
        self,
        framed: Frame,
        image: Tensor,
        mask: Tensor | None,
        condition: Condition,
        settings: PaintSettings,
        on_step: OnStep | None,
        should_stop: ShouldStop | None,
    ) -> Tensor:
        source = encode(self.vae, framed.apply(image.float())).to(self.transformer.device)
        sigmas = self.schedule.for_strength(settings.steps, settings.strength)
        if len(sigmas) == 0:
            return source
        text = self._text(condition, len(image), settings.guidance_scale)
        noise = cpu_noise(tuple(source.shape), settings.seed).to(source)

        def denoise(sample: Tensor, sigma: Tensor) -> Tensor:
            return foreseen(sample, self.velocity(sample, sigma, source, text, settings.guidance_scale), sigma)

        if mask is not None:
            small = soft_latent_mask(framed.apply(mask), source.shape[2:]).to(source)
            denoise = held_to_mask(denoise, small, source, lambda sigma: noised(source, noise, sigma))
        return dpm_solver(denoise, self.schedule.start(noise, source, sigmas[0]), sigmas, on_step, should_stop)

    def velocity(self, sample: Tensor, sigma: Tensor, source: Tensor, text: Text, guidance_scale: float) -> Tensor:
        """float[B, C, h, w], guided; both branches in one batch. sample, source: float[B, C, h, w]"""
        seen = torch.cat([sample, source], dim=1) if self.reads_source() else sample
        branches = text.tokens.shape[0] // len(sample)
        dtype = self.transformer.dtype
        output = self.transformer(
            seen.repeat(branches, 1, 1, 1).to(dtype),
            encoder_hidden_states=text.tokens.to(dtype),
            timestep=self.schedule.timestep(sigma).expand(len(text.tokens)).to(sample.device),
            encoder_attention_mask=None if text.mask is None else text.mask.to(dtype),
        ).sample.float()
        null, told = (None, output) if branches == 1 else output.chunk(2)
        return told if null is None else null + guidance_scale * (told - null)

    def _text(self, condition: Condition, batch: int, guidance_scale: float) -> Text:
        """Rows of the null branch, where guidance needs it, then one row for each picture."""
        tokens, mask = condition.text_tokens, condition.text_mask
        if tokens is None:
            raise Misfit(
                "SanaPainter has no text encoder: it paints from text_tokens, got none; use the bridge `mlp` with "
                "the MLLM that this painter was trained with"
            )
        if tokens.shape[0] not in (1, batch) or tokens.shape[1] > len(self.null_tokens):
            raise Misfit(
                f"text_tokens must be one row, or one for each of the {batch} pictures, of at most "
                f"{len(self.null_tokens)} tokens, got {tuple(tokens.shape)}"
            )
        tokens = tokens.to(self.transformer.device).expand(batch, -1, -1)
        mask = None if mask is None or bool(mask.all()) else mask.to(tokens.device).expand(batch, -1)
        if math.isclose(guidance_scale, 1.0):
            return Text(tokens, mask)
        null = self.null_tokens[: tokens.shape[1]].to(tokens).expand_as(tokens)
        return Text(torch.cat([null, tokens]), None if mask is None else torch.cat([mask, mask]))
