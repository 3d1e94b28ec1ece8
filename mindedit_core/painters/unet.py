"""Painting with a frozen Stable Diffusion UNet, SD1.5 or SDXL: img2img, InstructPix2Pix, or inpainting.

Everything follows ComfyUI's own nodes (VAEEncode, InstructPixToPixConditioning, or InpaintModelConditioning without
noise mask; KSampler, or DualCFGGuider for two scales, with `euler` and `simple`; VAEDecode), so that the same weights,
seed and settings give the same picture headless and hosted.

Axes: B pictures, H W their size, C latent channels, h w latent size, G branches under guidance (`guidance.branches`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn

from ..contracts import Condition, Misfit, PaintSettings, Plan
from ..tensors import check_shape, composite, crop_to, fit_mask, pad_to_multiple
from .guidance import Branch, branches, guided
from .latents import decode, encode, encode_unscaled, pixels_per_latent
from .sampling import OnStep, ShouldStop, euler, held_to_mask
from .schedule import NoiseSchedule, cpu_noise, is_full
from .sdxl import encode_text_sdxl, require_text_encoders, size_ids
from .spatial import (
    KINDS,
    fitted_mask,
    grey_out,
    is_empty,
    kind_of,
    latent_mask,
    soft_latent_mask,
    source_channels,
)
from .text import Say, Text, encode_text, joined

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What the UNet is given at every step beside the noisy latents, for all branches in one batch.

    text_tokens: float[G*B, Lt, Dt];  spatial: float[G*B, C', h, w] or None
    added: SDXL's text_embeds float[G*B, Dp] and time_ids float[G*B, 6], or None
    """

    text_tokens: Tensor
    spatial: Tensor | None
    added: Mapping[str, Tensor] | None


class UNetPainter:
    """Frozen parts of diffusers and transformers; none of them is changed by painting.

    unet: C channels in (img2img) or 2C (instruct), unet_inpaint: 2C + 1 (latents, mask, masked picture); one may be
        None. Without a mask the first paints; with one the second, or else the first, held to the mask.
    vae: AutoencoderKL or AutoencoderDC;  text_encoder: CLIPTextModel, or CLIPModel for its text part
    text_encoder_2, tokenizer_2: SDXL's second, a CLIPTextModelWithProjection
    adapter: the IPAdapter whose `attached` lets a UNet see image tokens; None if there is none
    schedule: the noise levels that both UNets were trained on; None is SD1.5's, and SDXL's
    """

    accepts = frozenset({"text_tokens", "image_tokens"})

    def __init__(
        self,
        unet: nn.Module | None,
        unet_inpaint: nn.Module | None,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        adapter: Any = None,
        schedule: NoiseSchedule | None = None,
        *,
        text_encoder_2: nn.Module | None = None,
        tokenizer_2: Any = None,
    ) -> None:
        self.unet, self.unet_inpaint, self.vae = unet, unet_inpaint, vae
        self.text_encoder, self.tokenizer, self.adapter = text_encoder, tokenizer, adapter
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.schedule = schedule or NoiseSchedule()
        self.factor = pixels_per_latent(vae)
        self._require_parts()

    def _require_parts(self) -> None:
        channels = self.vae.config["latent_channels"]
        if self.unet is None and self.unet_inpaint is None:
            raise Misfit("a UNetPainter needs a UNet: one for img2img, one for inpainting, or both")
        for unet, kinds in ((self.unet, ("img2img", "instruct")), (self.unet_inpaint, ("inpaint",))):
            if unet is not None:
                kind_of(unet, channels, *kinds)
                require_text_encoders(unet, self.text_encoder, self.text_encoder_2)
            if unet is not None and self.adapter is not None:
                self.adapter.require_unet(unet)

    @property
    def token_dim(self) -> int:
        """Width of the text and image tokens that the UNets read."""
        return (self.unet or self.unet_inpaint).config["cross_attention_dim"]

    def reads_source(self) -> bool:
        """True if without a mask the UNet sees the source on its channels, and needs not start from it."""
        return self.unet is not None and self._kind(self.unet) == "instruct"

    def _kind(self, unet: nn.Module) -> str:
        return kind_of(unet, self.vae.config["latent_channels"], *KINDS)

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
        """Picture float[B, H, W, 3] in 0..1, of any size -> the edited one, of the same size.

        plan: one for all pictures, or one each;  on_step(i, n) after step i = 1..n
        on_note(text): what the user has to be told; logged if nobody listens
        Strength 0 and an empty mask return the source bit for bit, without a model call.
        Raises Interrupted within one step of `should_stop()` saying yes; the painter stays usable.
        """
        say = on_note or log.warning
        check_shape("image", image, "b h w c", c=3)
        if settings.strength == 0 or is_empty(settings.mask, image, say):
            return image.clone()
        latents = self.paint_latents(image, plan, condition, settings, on_step, should_stop, on_note)
        edited = crop_to(decode(self.vae, latents), image.shape[1:3]).to(image)
        if settings.composite and settings.mask is not None:
            edited = composite(image, edited, fit_mask(settings.mask.to(image), image))
        return edited

    @torch.no_grad()
    def paint_latents(
        self,
        image: Tensor,
        plan: Plan | Sequence[Plan],
        condition: Condition,
        settings: PaintSettings,
        on_step: OnStep | None = None,
        should_stop: ShouldStop | None = None,
        on_note: Say | None = None,
    ) -> Tensor:
        """As `paint`, but not decoded: scaled latents float[B, C, h, w] of the picture padded to whole latent cells.

        Painting starts from the source's latents and noise; an instruct UNet at full strength without a mask from
        noise alone, as the host's InstructPixToPixConditioning has it: it sees the source on its channels.
        """
        say = on_note or log.warning
        _require_streams(condition, self.accepts)
        mask = None if settings.mask is None else fitted_mask(settings.mask, image, say)
        padded = pad_to_multiple(image.float(), self.factor)[0]
        unet = self._unet_for(mask, say)
        kind = self._kind(unet)
        unscaled = encode_unscaled(self.vae, padded).to(unet.device)
        latents = unscaled * self.vae.config["scaling_factor"]
        rows = branches(settings, two_scales=kind == "instruct")
        text = self._text(plan, condition, settings, rows, len(image), say)
        inputs = self._inputs(kind, padded, mask, unscaled, text, rows, say)
        sigmas = self.schedule.for_strength(settings.steps, settings.strength)
        if len(sigmas) == 0:
            return latents
        noise = cpu_noise(tuple(latents.shape), settings.seed).to(latents)
        from_noise = kind == "instruct" and mask is None and is_full(settings.strength)
        started = torch.zeros_like(latents) if from_noise else latents
        with self._image_branch(unet, condition, settings, rows, len(image)) as branch:

            def denoise(sample: Tensor, sigma: Tensor) -> Tensor:
                if branch is not None:
                    branch.gate = self.schedule.is_within(sigma, settings.start, settings.end)
                return guided(self._foreseen(unet, sample, sigma, inputs, len(rows)), settings)

            if kind != "inpaint" and mask is not None:
                small = soft_latent_mask(pad_to_multiple(mask, self.factor)[0], latents.shape[2:]).to(latents)
                denoise = held_to_mask(denoise, small, latents, lambda sigma: latents + noise * sigma)
            return euler(denoise, self.schedule.start(noise, started, sigmas[0]), sigmas, on_step, should_stop)

    def _foreseen(self, unet: nn.Module, sample: Tensor, sigma: Tensor, inputs: Inputs, count: int) -> Sequence[Tensor]:
        """The clean latents that each branch foresees at `sigma`, all of them from one batch."""
        pixels = repeat(self.schedule.scaled(sample, sigma), "b c h w -> (g b) c h w", g=count)
        pixels = pixels if inputs.spatial is None else torch.cat([pixels, inputs.spatial], dim=1)
        timestep = self.schedule.timestep(sigma).float().to(sample.device)
        tokens = inputs.text_tokens.to(unet.dtype)
        output = unet(pixels.to(unet.dtype), timestep, tokens, added_cond_kwargs=inputs.added).sample.float()
        return [self.schedule.foreseen(sample, branch, sigma) for branch in output.chunk(count)]

    def _unet_for(self, mask: Tensor | None, say: Say) -> nn.Module:
        wanted, other = (self.unet, self.unet_inpaint) if mask is None else (self.unet_inpaint, self.unet)
        if wanted is None and mask is None:
            say("no img2img UNet is loaded: without a mask the inpainting UNet repaints the whole picture")
        elif wanted is None:
            say("no inpainting UNet is loaded: this one paints inside the mask, but is not told where the mask ends")
        return other if wanted is None else wanted

    # What the UNet is given ------------------------------------------------------------------------------------------

    def _inputs(
        self,
        kind: str,
        padded: Tensor,
        mask: Tensor | None,
        unscaled: Tensor,
        text: Text,
        rows: Sequence[Branch],
        say: Say,
    ) -> Inputs:
        """For all branches in one batch; padded: float[B, H, W, 3];  text: one row a branch and picture."""
        spatial = None
        if kind == "inpaint":
            channels = self._inpaint_channels(padded, mask, unscaled, say)
            spatial = repeat(channels, "b c h w -> (g b) c h w", g=len(rows))
        elif kind == "instruct":
            seen = source_channels(unscaled, self.vae.config["scaling_factor"], self.schedule)
            spatial = torch.cat([seen if branch.has_picture else torch.zeros_like(seen) for branch in rows])
        if text.pooled is None:
            return Inputs(text.tokens, spatial, None)
        sizes = size_ids(*padded.shape[1:3], len(text.pooled))
        return Inputs(text.tokens, spatial, {"text_embeds": text.pooled, "time_ids": sizes.to(text.pooled.device)})

    def _inpaint_channels(self, padded: Tensor, mask: Tensor | None, latents: Tensor, say: Say) -> Tensor:
        """float[B, 1 + C, h, w]: the mask and the latents of the picture with grey in its place."""
        mask = torch.ones_like(padded[..., 0]) if mask is None else pad_to_multiple(mask, self.factor)[0]
        small = latent_mask(mask, latents.shape[2:]).to(latents)
        if not bool(small.any()):
            say(f"the mask is finer than the {self.factor} px of a latent cell and vanishes there; make it larger")
        return torch.cat([small, encode(self.vae, grey_out(padded, mask)).to(latents)], dim=1)

    def _text(
        self,
        plan: Plan | Sequence[Plan],
        condition: Condition,
        settings: PaintSettings,
        rows: Sequence[Branch],
        batch: int,
        say: Say,
    ) -> Text:
        """One row a branch and picture. A bridge's text tokens win over the plan's text, but not over its pooled."""
        positive = self._positive(plan, condition, say).rows(batch)
        if all(branch.has_text for branch in rows):
            return positive
        negative = self._encoded(settings.negative, say).rows(batch)
        return joined([positive if branch.has_text else negative for branch in rows])

    def _positive(self, plan: Plan | Sequence[Plan], condition: Condition, say: Say) -> Text:
        tokens = condition.text_tokens
        if condition.text_mask is not None and not bool(condition.text_mask.all()):
            raise Misfit("an SD-type UNet reads every text token, got some that are masked out; fill or drop them")
        if tokens is not None and self.text_encoder_2 is None:
            return Text(tokens)
        plans = [plan] if isinstance(plan, Plan) else list(plan)
        encoded = joined([self._encoded(each.text, say) for each in plans])
        return encoded if tokens is None else encoded._replace(tokens=tokens)

    def _encoded(self, text: str, say: Say) -> Text:
        """One row, by the one text encoder or by both."""
        if self.text_encoder_2 is None:
            return Text(encode_text(self.text_encoder, self.tokenizer, text, say))
        encoders = self.text_encoder, self.tokenizer, self.text_encoder_2, self.tokenizer_2
        return encode_text_sdxl(*encoders, text, say)

    def _image_branch(
        self, unet: nn.Module, condition: Condition, settings: PaintSettings, rows: Sequence[Branch], batch: int
    ) -> AbstractContextManager:
        """The adapter attached to `unet` for one run, or nothing where the insight is off."""
        tokens, negative = condition.image_tokens, condition.negative_image_tokens
        if tokens is None or settings.insight_scale == 0:
            return nullcontext()
        if self.adapter is None:
            raise Misfit("image tokens came without an IP-Adapter to read them; load one, or set insight_scale to 0")
        tokens = _for_batch("image_tokens", tokens, batch)
        if not all(branch.has_text for branch in rows):
            if negative is None:
                raise Misfit("guidance needs negative_image_tokens beside image_tokens; use a bridge that emits both")
            negative = _for_batch("negative_image_tokens", negative, batch)
            tokens = torch.cat([tokens if branch.has_text else negative for branch in rows])
        return self.adapter.attached(unet, image_tokens=tokens.to(unet.device), scale=settings.insight_scale)


def _require_streams(condition: Condition, accepts: frozenset[str]) -> None:
    if homeless := sorted(condition.streams - accepts):
        raise Misfit(f"UNetPainter has no place for {', '.join(homeless)}; it accepts {', '.join(sorted(accepts))}")


def _for_batch(name: str, tokens: Tensor, batch: int) -> Tensor:
    """float[1 or B, N, D] -> float[B, N, D]."""
    if tokens.shape[0] not in (1, batch):
        raise Misfit(f"{name} must be one, or one for each of the {batch} pictures, got {tokens.shape[0]}")
    return tokens.expand(batch, -1, -1)
