"""Painting with a frozen SD1.5-type UNet: img2img without a mask, inpainting with one.

Everything follows ComfyUI's own nodes (VAEEncode or InpaintModelConditioning without noise mask, KSampler with `euler`
and `simple`, VAEDecode), so that the same weights, seed and settings give the same picture headless and hosted.

Axes: B pictures, H W their size, C latent channels, h w latent size, G branches under guidance (uncond, cond) or 1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..contracts import Condition, Interrupted, Misfit, PaintSettings, Plan
from ..tensors import check_shape, composite, crop_to, fit_mask, from_model, pad_to_multiple, to_model
from .schedule import NoiseSchedule, cpu_noise

log = logging.getLogger(__name__)

GREY = 0.5  # what the inpainting UNet sees in place of the masked pixels

OnStep = Callable[[int, int], None]
ShouldStop = Callable[[], bool]
Say = Callable[[str], None]


# The autoencoder's two ways ------------------------------------------------------------------------------------------


def pixels_per_latent(vae: nn.Module) -> int:
    """Pixels along one side of a latent cell: 8 for SD1.5's AutoencoderKL, 16 for the mini's AutoencoderDC."""
    blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def encode(vae: nn.Module, image: Tensor) -> Tensor:
    """Picture float[B, H, W, 3] -> scaled latents float[B, C, h, w], fp32; of a distribution its mode, as the host."""
    encoded = vae.encode(to_model(image.float()).to(device=vae.device, dtype=vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    return latents.float() * vae.config["scaling_factor"]


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents float[B, C, h, w] -> picture float[B, H, W, 3] in 0..1, fp32."""
    unscaled = latents / vae.config["scaling_factor"]
    return from_model(vae.decode(unscaled.to(device=vae.device, dtype=vae.dtype)).sample.float())


# Text ----------------------------------------------------------------------------------------------------------------


def encode_text(text_encoder: nn.Module, tokenizer: Any, text: str, say: Say = log.warning) -> Tensor:
    """Text -> float[1, 77, Dt]: CLIP's last states after the final layer norm, padded and without a mask, as SD1.5."""
    text_model = getattr(text_encoder, "text_model", text_encoder)  # of a CLIPModel, and of CLIPTextModel before 5.0
    length = text_model.config.max_position_embeddings
    input_ids = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    if len(tokenizer(text, truncation=False, verbose=False).input_ids) > length:
        say(f"the text is longer than CLIP's {length} tokens; what follows after them is cut off")
    return text_model(input_ids.to(text_encoder.device)).last_hidden_state


# Masks ---------------------------------------------------------------------------------------------------------------


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


# Sampling ------------------------------------------------------------------------------------------------------------

Denoise = Callable[[Tensor, Tensor], Tensor]  # (sample, sigma) -> the clean picture that the model foresees


def held_to_mask(denoise: Denoise, mask: Tensor, latents: Tensor, noise: Tensor) -> Denoise:
    """`denoise` that finds and foresees `latents` wherever the mask is 0: the host's noise mask.

    mask: float[B, 1, h, w] in 0..1, 1 = may change;  latents, noise: float[B, C, h, w]
    """

    def held(sample: Tensor, sigma: Tensor) -> Tensor:
        known = latents + noise * sigma
        return denoise(sample * mask + known * (1.0 - mask), sigma) * mask + latents * (1.0 - mask)

    return held


def euler(
    denoise: Denoise,
    sample: Tensor,
    sigmas: Tensor,
    on_step: OnStep | None = None,
    should_stop: ShouldStop | None = None,
) -> Tensor:
    """Euler steps along falling sigmas float[n + 1]; denoise(sample, sigma) is the clean picture the model foresees."""
    steps = len(sigmas) - 1
    for index, (sigma, following) in enumerate(pairwise(sigmas)):
        _stop_if_asked(should_stop, index, steps)
        sample = sample + (sample - denoise(sample, sigma)) / sigma * (following - sigma)
        if on_step is not None:
            on_step(index + 1, steps)
    _stop_if_asked(should_stop, steps, steps)
    return sample


def _stop_if_asked(should_stop: ShouldStop | None, done: int, steps: int) -> None:
    if should_stop is not None and should_stop():
        raise Interrupted(f"painting was interrupted after {done} of {steps} steps")


# Painting ------------------------------------------------------------------------------------------------------------


class UNetPainter:
    """Frozen parts of diffusers and transformers; none of them is changed by painting.

    unet: C channels in (img2img), unet_inpaint: 2C + 1 channels in (latents, mask, masked picture); one may be None
    vae: AutoencoderKL or AutoencoderDC;  text_encoder: CLIPTextModel, or CLIPModel for its text part
    adapter: the IPAdapter whose `attached` lets a UNet see image tokens; None if there is none
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
    ) -> None:
        self.unet, self.unet_inpaint, self.vae = unet, unet_inpaint, vae
        self.text_encoder, self.tokenizer, self.adapter = text_encoder, tokenizer, adapter
        self.schedule = schedule or NoiseSchedule()
        self.factor = pixels_per_latent(vae)
        self._require_parts()

    def _require_parts(self) -> None:
        channels = self.vae.config["latent_channels"]
        if self.unet is None and self.unet_inpaint is None:
            raise Misfit("a UNetPainter needs a UNet: one for img2img, one for inpainting, or both")
        for unet, wanted in ((self.unet, channels), (self.unet_inpaint, 2 * channels + 1)):
            if unet is not None and unet.config["in_channels"] != wanted:
                raise Misfit(
                    f"with this VAE's {channels} latent channels the UNet must take {channels} channels (img2img) or "
                    f"{2 * channels + 1} (inpainting), got {unet.config['in_channels']} where {wanted} belong"
                )
            if unet is not None and self.adapter is not None:
                self.adapter.require_unet(unet)

    @property
    def token_dim(self) -> int:
        """Width of the text and image tokens that the UNets read."""
        return (self.unet or self.unet_inpaint).config["cross_attention_dim"]

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
        if settings.strength == 0 or self._is_masked_out(image, settings, say):
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
        """As `paint`, but not decoded: scaled latents float[B, C, h, w] of the picture padded to whole latent cells."""
        say = on_note or log.warning
        _require_streams(condition, self.accepts)
        mask = self._fitted_mask(image, settings, say)
        padded = pad_to_multiple(image.float(), self.factor)[0]
        unet = self._unet_for(mask, say)
        latents = encode(self.vae, padded).to(unet.device)
        spatial = None if unet is self.unet else self._inpaint_channels(padded, mask, latents, say)
        text_tokens = self._text_tokens(plan, condition, settings, len(image), say)
        sigmas = self.schedule.for_strength(settings.steps, settings.strength)
        if len(sigmas) == 0:
            return latents
        noise = cpu_noise(tuple(latents.shape), settings.seed).to(latents)
        sample = self.schedule.start(noise, latents, sigmas[0])
        with self._image_branch(unet, condition, settings, len(image)) as branch:

            def denoise(sample: Tensor, sigma: Tensor) -> Tensor:
                if branch is not None:
                    branch.gate = self.schedule.is_within(sigma, settings.start, settings.end)
                return self._denoise(unet, sample, sigma, spatial, text_tokens, settings.guidance_scale)

            if spatial is None and mask is not None:
                small = soft_latent_mask(pad_to_multiple(mask, self.factor)[0], latents.shape[2:]).to(latents)
                denoise = held_to_mask(denoise, small, latents, noise)
            return euler(denoise, sample, sigmas, on_step, should_stop)

    def _denoise(
        self, unet: nn.Module, sample: Tensor, sigma: Tensor, spatial: Tensor | None, text_tokens: Tensor, scale: float
    ) -> Tensor:
        """The picture that the model foresees at `sigma`, guided: both branches in one batch, uncond first."""
        branches = len(text_tokens) // len(sample)
        scaled = sample / (sigma**2 + 1.0) ** 0.5
        pixels = scaled if spatial is None else torch.cat([scaled, spatial], dim=1)
        pixels = repeat(pixels, "b c h w -> (g b) c h w", g=branches).to(unet.dtype)
        timestep = self.schedule.timestep(sigma).float().to(sample.device)
        noise = unet(pixels, timestep, text_tokens.to(unet.dtype)).sample.float()
        foreseen = [sample - branch * sigma for branch in noise.chunk(branches)]
        if branches == 1:
            return foreseen[0]
        uncond, cond = foreseen
        return uncond + (cond - uncond) * scale

    # What the settings and the condition ask for ---------------------------------------------------------------------

    def _is_masked_out(self, image: Tensor, settings: PaintSettings, say: Say) -> bool:
        empty = settings.mask is not None and not bool((fit_mask(settings.mask, image).round() > 0).any())
        if empty:
            said = "the mask is empty (nowhere above 0.5): there is nothing to edit and the source comes back"
            say(f"{said}; disconnect it to edit everywhere")
        return empty

    def _fitted_mask(self, image: Tensor, settings: PaintSettings, say: Say) -> Tensor | None:
        if settings.mask is None:
            return None
        theirs, ours = tuple(settings.mask.shape[-2:]), tuple(image.shape[1:3])
        if theirs != ours:
            say(f"the mask is {theirs[1]}x{theirs[0]}, the picture {ours[1]}x{ours[0]}: the mask was resized to fit")
        return fit_mask(settings.mask.to(image.device), image)

    def _unet_for(self, mask: Tensor | None, say: Say) -> nn.Module:
        wanted, other = (self.unet, self.unet_inpaint) if mask is None else (self.unet_inpaint, self.unet)
        if wanted is None and mask is None:
            say("no img2img UNet is loaded: without a mask the inpainting UNet repaints the whole picture")
        elif wanted is None:
            say("no inpainting UNet is loaded: this one paints inside the mask, but is not told where the mask ends")
        return other if wanted is None else wanted

    def _inpaint_channels(self, padded: Tensor, mask: Tensor | None, latents: Tensor, say: Say) -> Tensor:
        """float[B, 1 + C, h, w]: the mask and the latents of the picture with grey in its place."""
        mask = torch.ones_like(padded[..., 0]) if mask is None else pad_to_multiple(mask, self.factor)[0]
        small = latent_mask(mask, latents.shape[2:]).to(latents)
        if not bool(small.any()):
            say(f"the mask is finer than the {self.factor} px of a latent cell and vanishes there; make it larger")
        return torch.cat([small, encode(self.vae, grey_out(padded, mask)).to(latents)], dim=1)

    def _text_tokens(
        self, plan: Plan | Sequence[Plan], condition: Condition, settings: PaintSettings, batch: int, say: Say
    ) -> Tensor:
        """float[G*B, Lt, Dt], under guidance the negative first; a bridge's text tokens win over the plan's text."""
        positive = condition.text_tokens
        if condition.text_mask is not None and not bool(condition.text_mask.all()):
            raise Misfit("an SD-type UNet reads every text token, got some that are masked out; fill or drop them")
        if positive is None:
            plans = [plan] if isinstance(plan, Plan) else list(plan)
            positive = torch.cat([encode_text(self.text_encoder, self.tokenizer, each.text, say) for each in plans])
        positive = _for_batch("text_tokens", positive, batch)
        if not _is_guided(settings):
            return positive
        negative = encode_text(self.text_encoder, self.tokenizer, settings.negative, say).to(positive)
        check_shape("condition.text_tokens", positive, "b l d", l=negative.shape[1], d=negative.shape[2])
        return torch.cat([negative.expand(batch, -1, -1), positive])

    def _image_branch(
        self, unet: nn.Module, condition: Condition, settings: PaintSettings, batch: int
    ) -> AbstractContextManager:
        """The adapter attached to `unet` for one run, or nothing where the insight is off."""
        tokens, negative = condition.image_tokens, condition.negative_image_tokens
        if tokens is None or settings.insight_scale == 0:
            return nullcontext()
        if self.adapter is None:
            raise Misfit("image tokens came without an IP-Adapter to read them; load one, or set insight_scale to 0")
        tokens = _for_batch("image_tokens", tokens, batch)
        if _is_guided(settings):
            if negative is None:
                raise Misfit("guidance needs negative_image_tokens beside image_tokens; use a bridge that emits both")
            tokens = torch.cat([_for_batch("negative_image_tokens", negative, batch), tokens])
        return self.adapter.attached(unet, image_tokens=tokens.to(unet.device), scale=settings.insight_scale)


def _is_guided(settings: PaintSettings) -> bool:
    return not math.isclose(settings.guidance_scale, 1.0)  # the host runs no unconditional branch at 1


def _require_streams(condition: Condition, accepts: frozenset[str]) -> None:
    if homeless := sorted(condition.streams - accepts):
        raise Misfit(f"UNetPainter has no place for {', '.join(homeless)}; it accepts {', '.join(sorted(accepts))}")


def _for_batch(name: str, tokens: Tensor, batch: int) -> Tensor:
    """float[1 or B, N, D] -> float[B, N, D]."""
    if tokens.shape[0] not in (1, batch):
        raise Misfit(f"{name} must be one, or one for each of the {batch} pictures, got {tokens.shape[0]}")
    return tokens.expand(batch, -1, -1)
