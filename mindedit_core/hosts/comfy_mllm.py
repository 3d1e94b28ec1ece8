"""The MLLM in ComfyUI: loaded and offloaded by the host, its LoRA a patch of the host's, interrupted within one token.

B pictures, L tokens, D MLLM width, Dc CLIP width
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management as mm
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts import Insight, Interrupted, Plan
from ..regions import region_mask
from ..tensors import image_key
from .comfy_managed import Box, manage, to_intermediate, unmanaged

log = logging.getLogger(__name__)

MLLM = "mllm"  # name of the model in its box, so that its keys there are "mllm.{module}.weight"
OnToken = Callable[[str, int], None]


class PlanBatch(tuple):
    """Plans of a batch of pictures, one each; what a node shows of a plan is that of all of them."""

    raw = property(lambda self: self[0].raw)
    text = property(lambda self: [plan.text for plan in self])
    regions = property(lambda self: tuple(region for plan in self for region in plan.regions))
    note = property(lambda self: "; ".join(dict.fromkeys(plan.note for plan in self if plan.note)))


class ManagedMLLM:
    """What the MINDEDIT_MLLM socket carries.

    core: the LlavaOnevision;  patcher: the host's ModelPatcher around its weights, the LoRA among its patches
    head_patcher: that of the VisionHead, None without one; a plan that carries its states needs no more than this
    bare: of one `with_adapter`, the same without;  dtype: of what is computed
    """

    def __init__(
        self, core: Any, dtype: torch.dtype = torch.float32, count_tokens: Callable[[str], int] | None = None
    ) -> None:
        device = mm.text_encoder_device()
        self.core, self.dtype, self.count_tokens = core, dtype, count_tokens
        self.patcher = self._managed(**{MLLM: core.model})
        self.head_patcher = None
        self.bare = None
        if outside := unmanaged(self.patcher.model):
            log.warning("%d parameters of %s cannot be offloaded, first: %s", len(outside), self.name, outside[0])
        core.device, core.dtype, core.states_device = device, self.dtype, mm.intermediate_device()

    @property
    def name(self) -> str:
        return self.core.mllm_id

    @property
    def has_head(self) -> bool:
        return self.head_patcher is not None

    def with_adapter(self, adapter: Path | None, strength: float = 1.0) -> ManagedMLLM:
        """The same weights, under the LoRA and with the head of another adapter file; None: without any.

        Nothing of the MLLM is read or copied, and `self` stays as it is: the host patches the weights in place when
        the one or the other is used. strength: of the LoRA. Raises CheckpointError, Misfit.
        """
        bare = self.bare or self
        if adapter is None:
            return bare
        other = copy(bare)
        other.bare, other.core = bare, bare.core.sharing(adapter, strength)
        other.patcher = bare.patcher.clone()
        other.patcher.add_patches(lora_patches(other.core.adapter), strength)
        if other.core.head is not None:
            other.head_patcher = self._managed(head=other.core.head)
        return other

    def _managed(self, **parts: Any) -> Any:
        return manage(Box(self.dtype, **parts), mm.text_encoder_device(), mm.text_encoder_offload_device())

    def get_ram_usage(self) -> int:
        return sum(patcher.model_size() for patcher in (self.patcher, self.head_patcher) if patcher is not None)

    def design(
        self,
        image: Tensor,
        instruction: str | Sequence[str],
        *,
        seed: int = 0,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        on_token: OnToken | None = None,
    ) -> Plan | PlanBatch:
        """The plan for float[1, H, W, C] in 0..1, a PlanBatch for several pictures; one prefill, one generation.

        temperature: 0 is greedy; above it `seed` decides.  on_token(piece, n): text of the first picture after token n
        """
        from ..designers.self_mllm import SelfMLLM

        mm.load_models_gpu(
            [self.patcher], memory_required=reading_memory(self.core, image, instruction, max_new_tokens)
        )
        with as_host_interrupt():
            plans = SelfMLLM(self.core, self.count_tokens).design_each(
                image,
                instruction,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                generator=torch.Generator("cpu").manual_seed(seed),
                on_token=progress(max_new_tokens, on_token),
                should_stop=mm.processing_interrupted,
            )
        return plans[0] if len(plans) == 1 else PlanBatch(plans)

    def encode(self, image: Tensor, plan: Plan | PlanBatch) -> Insight:
        """The insight of every picture's plan, on the host's intermediate device.

        A plan made by this MLLM from the same picture carries the states: then only the VisionHead runs.
        """
        plans = plan if isinstance(plan, PlanBatch) else [plan] * len(image)
        if len(plans) != len(image):
            raise ValueError(
                f"the plan is for {len(plans)} pictures, the image has {len(image)}; wire the same picture"
            )
        return joined([self._encode(picture, each) for picture, each in zip(image.split(1), plans, strict=True)])

    def _encode(self, picture: Tensor, plan: Plan) -> Insight:
        models = [] if self.head_patcher is None else [self.head_patcher]
        if not self._has_read(picture, plan):
            models.append(self.patcher)
        if models:
            mm.load_models_gpu(models, memory_required=reading_memory(self.core, picture, plan.raw, len(plan.text)))
        with as_host_interrupt():
            insight = self.core.encode(picture, plan)
        embeds = to_intermediate(insight.image_embeds)
        hidden, mask = to_intermediate(insight.hidden), to_intermediate(insight.mask)
        negative = to_intermediate(insight.negative_image_embeds)
        return replace(insight, hidden=hidden, mask=mask, image_embeds=embeds, negative_image_embeds=negative)

    def _has_read(self, picture: Tensor, plan: Plan) -> bool:
        states = plan.states
        same_layer = states is not None and states.layer == self.core.layer
        return same_layer and states.belongs_to(image_key(picture), self.core.mllm_id)


def lora_patches(adapter: Any) -> dict[str, Any]:
    """The adapter's LoRA as the host's own patches, by the keys of the box."""
    from ..backbones.lora import ALPHA, DOWN, UP, weight_keys

    places = {name: f"{MLLM}.{weight}" for name, weight in weight_keys(adapter).items()}
    tensors: dict[str, Tensor] = {}
    for name, pair in zip(places, adapter.pairs.values(), strict=True):
        tensors |= {name + DOWN: pair.down, name + UP: pair.up, name + ALPHA: torch.tensor(pair.alpha)}
    return comfy.lora.load_lora(tensors, places)


# Running -------------------------------------------------------------------------------------------------------------


@contextmanager
def as_host_interrupt() -> Iterator[None]:
    """The core's Interrupted as the host's own exception, which ends the run without an error dialog."""
    try:
        yield
    except Interrupted:
        mm.throw_exception_if_processing_interrupted()
        raise


def progress(total: int, on_token: OnToken | None) -> Callable[[list[str]], None]:
    """The core's callback (all answers so far) as a progress bar and pieces of the first answer's text."""
    bar, count, shown = comfy.utils.ProgressBar(total), 0, ""

    def on_tokens(answers: list[str]) -> None:
        nonlocal count, shown
        count += 1
        bar.update_absolute(count, total)
        text = answers[0].rstrip("\ufffd")  # half of a character: the other half comes with the next token
        if on_token is not None and text.startswith(shown):
            on_token(text[len(shown) :], count)
            shown = text

    return on_tokens


def reading_memory(core: Any, image: Tensor, instruction: str | Sequence[str], new_tokens: int) -> int:
    """Bytes beside the weights for reading `image` and writing `new_tokens`: cache, vision tower, prefill, logits.

    The widest activations of a block are counted as three MLP widths and eight model widths a token.
    """
    from ..backbones.llava_images import image_tokens

    text, vision, batch = core.config.text_config, core.config.vision_config, len(image)
    longest = max(map(len, [instruction] if isinstance(instruction, str) else instruction))
    height, width = image.shape[1:3]
    seen = image_tokens(_shrunk((height, width), core.max_side), core.config)
    tokens = seen + 256 + longest + new_tokens  # the prompt's own words; a character is at most a token
    head_dim = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * tokens
    prefill = tokens * (3 * text.intermediate_size + 8 * text.hidden_size)
    patches = seen + (vision.image_size // vision.patch_size) ** 2
    tower = patches * (3 * vision.intermediate_size + 8 * vision.hidden_size)
    logits = 2 * text.vocab_size
    return batch * (cache + max(prefill, tower) + logits) * max(core.dtype.itemsize, 2)


def _shrunk(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    scale = 1.0 if max_side is None else min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


# What goes out -------------------------------------------------------------------------------------------------------


def joined(insights: Sequence[Insight]) -> Insight:
    """Insights of single pictures as one of a batch; states are padded at the end, where the mask is False."""
    if len(insights) == 1:
        return insights[0]
    length = max(insight.hidden.shape[1] for insight in insights)
    hidden = torch.cat([F.pad(each.hidden, (0, 0, 0, length - each.hidden.shape[1])) for each in insights])
    mask = torch.cat([F.pad(each.mask, (0, length - each.mask.shape[1])) for each in insights])
    embeds, negative = (
        _together([getattr(each, name) for each in insights]) for name in ("image_embeds", "negative_image_embeds")
    )
    return replace(insights[0], hidden=hidden, mask=mask, image_embeds=embeds, negative_image_embeds=negative)


def _together(tensors: Sequence[Tensor | None]) -> Tensor | None:
    return None if any(tensor is None for tensor in tensors) else torch.cat(tensors)


def region_masks(plan: Plan | PlanBatch, height: int, width: int) -> Tensor:
    """float[B, H, W]: `regions.region_mask` of every picture's plan."""
    plans = plan if isinstance(plan, PlanBatch) else [plan]
    return torch.stack([region_mask(each.regions, height, width) for each in plans])


def embeds(insight: Insight) -> tuple[Tensor, Tensor]:
    """(positive, negative) EMBEDS as IPAdapter_plus takes them: float[B, Dc], and zeros of the same shape.

    Of a head that predicts states: float[B, T, Dh] for plus and full-face adapters, and those of a zero image.
    """
    if insight.image_embeds is None:
        raise ValueError(f"there is no insight to embed: {insight.note or 'no VisionHead is loaded'}")
    negative = insight.negative_image_embeds
    return insight.image_embeds, torch.zeros_like(insight.image_embeds) if negative is None else negative
