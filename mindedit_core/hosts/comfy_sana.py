"""SANA as the host's own MODEL: diffusers' transformer boxed, the host's flow sampling with Draw-In-Mind's timesteps.

    MODEL      a BaseModel of the host; any sampler, guider, LoRA patch and its memory management work on it
    attached   the projector and the null tokens that make its conditioning of MLLM states (`painter_of`)

An edit SANA (2C channels) sees `concat_latent_image` of its conditioning, or else the latent that is sampled from.
B latents, C channels, h w latent size, L text tokens, Dt their width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.conds
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ..contracts import Condition, Insight, Misfit
from ..dim.files import DimParts
from ..painters.flow import TRAIN_STEPS, is_first
from .comfy_dc_ae import DcAeLatents, DcAeVAE
from .comfy_managed import Box, manage, stored_dtype, to_intermediate

PAINTER = "mindedit_painter"  # name of the attachment of a MODEL
MASK = "text_mask"  # of a conditioning: which of its tokens count
STATES = "mindedit_states"  # of a conditioning: made of an MLLM's states
TABLE = "scale_shift_table"
OF_STATES = "positive and negative of IP-Adapter Bridge into the sampler, with this MODEL at its model input"
OF_TEXT = "CLIP Text Encode into the sampler, with the clip of the Painter Loader that this MODEL is from"
READS_STATES = (
    "this painter has no text encoder: it reads the language model's states; use Instruction Optimizer, Insight "
    "Embedding (or Text Insight) and IP-Adapter Bridge in place of CLIP Text Encode"
)


# The transformer -----------------------------------------------------------------------------------------------------


class _CastTable:
    """Mixin of a module with a table of its own beside its children: the table is cast where it is used."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.__dict__[TABLE] = self._parameters[TABLE].to(hidden_states)  # found before the parameter of that name
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            del self.__dict__[TABLE]


def cast_tables(module: nn.Module) -> nn.Module:
    """Change the class of every part that owns a table, in place; returns the module."""
    for part in module.modules():
        if TABLE in part._parameters and not isinstance(part, _CastTable):
            part.__class__ = type(type(part).__name__, (_CastTable, type(part)), {})
    return module


class SanaBox(Box):
    """What the host calls a diffusion model: velocity from noisy latents, timestep and text."""

    def __init__(self, transformer: nn.Module, compute: torch.dtype) -> None:
        super().__init__(compute, transformer=cast_tables(transformer))
        self.dtype = stored_dtype(transformer)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: Mapping = {}, **kwargs: Any
    ) -> Tensor:
        """x: float[B, C or 2C, h, w];  timesteps: float[B] in 0..1000;  context: float[B, L, Dt]"""
        around = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._velocity, self, around)
        return executor.execute(x, timesteps, context, transformer_options, **kwargs)

    def _velocity(
        self, x: Tensor, timesteps: Tensor, context: Tensor, _options: Any, text_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        if text_mask is not None:  # the host repeats short contexts, which changes no attention
            text_mask = text_mask.to(x).repeat(1, context.shape[1] // text_mask.shape[1])
        told = timesteps.floor().clamp(0, TRAIN_STEPS - 1)  # in whole thousandths, as published
        return self.transformer(
            x, encoder_hidden_states=context, timestep=told, encoder_attention_mask=text_mask
        ).sample


# MODEL ---------------------------------------------------------------------------------------------------------------


class SanaConfig(comfy.supported_models_base.BASE):
    """What the host asks of an architecture."""

    unet_config: dict = {}
    unet_extra_config: dict = {}
    memory_usage_factor = 6.0  # Mix-FFN's two and a half widths, twice

    def inpaint_model(self) -> bool:
        return False


class SanaSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """The host's flow sampling, which starts from noise alone where Draw-In-Mind's schedule begins."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        if is_first(sigma.max()):
            return noise
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)


class SanaModel(comfy.model_base.BaseModel):
    """The host's BaseModel around a SanaBox. text_from: where its conditioning is to come from, for the user"""

    def __init__(self, config: SanaConfig, box: SanaBox, text_from: str) -> None:
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=mm.unet_offload_device())
        self.diffusion_model, self.text_from = box, text_from
        self.model_sampling = SanaSampling(config)
        reads_source = config.unet_config["in_channels"] > config.unet_config["out_channels"]
        self.concat_keys = ("concat_image",) if reads_source else ()

    @property
    def reads_source(self) -> bool:
        """True if it edits: it sees the source's latents beside the noisy ones."""
        return bool(self.concat_keys)

    @property
    def token_dim(self) -> int:
        """Width of the text tokens that it reads."""
        return self.diffusion_model.transformer.config["caption_channels"]

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """What the host gives to the transformer; Misfit, before it runs, for another model's text."""
        require_width(kwargs.get("cross_attn"), self.token_dim, self.text_from)
        conds = super().extra_conds(**kwargs)
        if (mask := kwargs.get(MASK)) is not None:
            conds[MASK] = comfy.conds.CONDRegular(mask)
        return conds


def require_width(tokens: Tensor | None, width: int, text_from: str) -> None:
    """Raise Misfit unless conditioning float[B, L, Dt] has the width that a MODEL reads. text_from: what to wire"""
    found = None if tokens is None else tokens.shape[-1]
    if found != width:
        raise Misfit(f"this MODEL reads text of width {width}, its conditioning has {found}; wire {text_from}")


class Painter(NamedTuple):
    """What a SANA MODEL carries beside its weights.

    projector: a ModelPatcher around an MLPProjector;  null_tokens: float[Lmax, Dt] on the intermediate device; both
        None of a plain SANA, which reads a text encoder's states
    base: pixels of the square that it was trained on;  factor: pixels a latent cell;  shift: of its schedule
    """

    projector: Any | None
    null_tokens: Tensor | None
    base: int
    factor: int
    shift: float

    def condition(self, insight: Insight) -> Condition:
        """Text tokens float[B, L, Dt] of the MLLM's states. Raises Misfit for those of another MLLM."""
        if self.projector is None:
            raise Misfit(f"this SANA reads a text encoder's states, not an MLLM's; wire {OF_TEXT}")
        mm.load_models_gpu([self.projector])
        projector = self.projector.model.projector
        found = projector.condition(insight.hidden.to(self.projector.load_device), insight.mask)
        return Condition(text_tokens=to_intermediate(found.text_tokens), text_mask=to_intermediate(found.text_mask))


def sana_model(parts: DimParts, vae: DcAeVAE, compute: torch.dtype) -> Any:
    """A MODEL of the host for these parts, kept in the dtype that they have and computed in `compute`.

    Raises Misfit for an autoencoder whose latents it does not paint.
    """
    said, schedule = parts.transformer.config, parts.schedule
    _require_autoencoder(said["out_channels"], vae.latent_channels)
    unet_config = {"disable_unet_model_creation": True, "in_channels": said["in_channels"]}
    config = SanaConfig(unet_config | {"out_channels": said["out_channels"]})
    config.latent_format, config.sampling_settings = DcAeLatents(vae), {"shift": schedule.shift}
    config.set_inference_dtype(stored_dtype(parts.transformer), compute)
    text_from = OF_TEXT if parts.projector is None else OF_STATES
    model = SanaModel(config, SanaBox(parts.transformer, compute), text_from)
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    base, projector, null_tokens = said["sample_size"] * vae.upscale_ratio, None, to_intermediate(parts.null_tokens)
    if parts.projector is not None:
        box = Box(compute, projector=parts.projector)
        projector = manage(box, mm.get_torch_device(), mm.unet_offload_device())
    patcher.set_attachments(PAINTER, Painter(projector, null_tokens, base, vae.upscale_ratio, schedule.shift))
    return patcher


def _require_autoencoder(painted: int, made: int) -> None:
    if made != painted:
        raise Misfit(
            f"this SANA paints latents of {painted} channels, the autoencoder makes {made}; choose the one that it was "
            "trained with as vae (of published SANAs: mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers)"
        )


def painter_of(model: Any) -> Painter | None:
    """What a MODEL of `sana_model`, or a clone of one, carries; None for any other MODEL."""
    return getattr(model, "attachments", {}).get(PAINTER)


class NoTextEncoder:
    """In the place of a CLIP: says why there is none, and what to do, to whoever asks it for tokens."""

    def __init__(self, why: str = READS_STATES) -> None:
        self.why = why

    def tokenize(self, *_: Any, **__: Any) -> Any:
        raise Misfit(self.why)

    encode_from_tokens = encode_from_tokens_scheduled = encode = tokenize


# CONDITIONING --------------------------------------------------------------------------------------------------------


def conditioning(painter: Painter, insight: Insight) -> tuple[list, list]:
    """(positive, negative) of the host: projected states, and as many null tokens under the same mask."""
    found = painter.condition(insight)
    tokens, mask = found.text_tokens, found.text_mask
    null = painter.null_tokens[: tokens.shape[1]].to(tokens).expand_as(tokens)
    extras = {"pooled_output": None, STATES: True} | ({} if mask is None or bool(mask.all()) else {MASK: mask})
    return [[tokens, extras]], [[null, dict(extras)]]
