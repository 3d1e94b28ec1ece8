"""Qwen2.5-VL in ComfyUI: one copy of its weights, under the host's management, designs and is read by the painter.

B pictures, L tokens, D MLLM width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ..contracts import Insight, Misfit, Plan
from ..designers.typed import Typed
from ..prompts import check_instruction
from ..tensors import image_key
from .comfy_designers import Loaded, Words, design_each, kept
from .comfy_managed import Box, manage, to_intermediate
from .comfy_mllm import MLLM, OnToken, PlanBatch, as_host_interrupt, joined

NO_ADAPTERS = (
    "a MIND-Edit adapter (LoRA and VisionHead) belongs to a LLaVA-OneVision, this is a Qwen2.5-VL, which Draw-In-Mind "
    "uses as it is; choose the adapter 'none'"
)
GIVES = (
    "a Qwen2.5-VL: {} states of width {}, which a SANA of Draw-In-Mind reads as they are, and no CLIP embedding, which "
    "an IP-Adapter would need"
)


class ManagedQwen:
    """What the MINDEDIT_MLLM socket carries of a Qwen2.5-VL.

    core: the Qwen25VL;  patcher: the host's around its weights
    template: of the prompts that ask for a blueprint;  dtype: of what is computed
    """

    has_head = False
    head_patcher = None

    def __init__(self, core: Any, dtype: torch.dtype = torch.float32, template: str = "dim") -> None:
        self.core, self.dtype, self.template = core, dtype, template
        box = Box(dtype, **{MLLM: core.model})
        self.patcher = manage(box, mm.text_encoder_device(), mm.text_encoder_offload_device())
        core.device, core.dtype, core.states_device = mm.text_encoder_device(), dtype, mm.intermediate_device()

    @property
    def name(self) -> str:
        return self.core.mllm_id

    def get_ram_usage(self) -> int:
        return self.patcher.model_size()

    def with_adapter(self, adapter: Path | None, strength: float = 1.0) -> ManagedQwen:
        """`self`; Misfit if there is an adapter."""
        if adapter is not None:
            raise Misfit(NO_ADAPTERS)
        return self

    def design(
        self,
        image: Tensor,
        instruction: str | Sequence[str],
        *,
        seed: int = 0,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        on_token: OnToken | None = None,
        share_prefix: bool = True,
    ) -> Plan | PlanBatch:
        """The blueprint for float[1, H, W, C] in 0..1, a PlanBatch for several pictures, one after the other.

        share_prefix: the picture is read once for the blueprint and for the painter's states, which the plan carries
        """
        from ..designers.blueprint import BlueprintDesigner

        longest = [instruction] if isinstance(instruction, str) else instruction
        memory = reading_memory(self.core, longest, max_new_tokens)
        designer = BlueprintDesigner(self.core, self.template, share_prefix)
        loaded = Loaded(designer, lambda: mm.load_models_gpu([self.patcher], memory_required=memory))
        words = Words(seed, max_new_tokens, temperature, on_token)
        return design_each(kept(loaded, designer.identity), image, instruction, words)

    def encode(self, image: Tensor | None, plan: Plan | PlanBatch) -> Insight:
        """The states of every picture's turn, on the host's intermediate device; image None: of the text alone.

        A plan made by this MLLM from the same picture carries them: then nothing runs.
        """
        count = 1 if image is None else len(image)
        plans = plan if isinstance(plan, PlanBatch) else [plan] * count
        if len(plans) != count:
            raise ValueError(f"the plan is for {len(plans)} pictures, the image has {count}; wire the same picture")
        pictures = [None] if image is None else image.split(1)
        found = joined([self._encode(picture, each) for picture, each in zip(pictures, plans, strict=True)])
        return replace(found, note=GIVES.format(*found.hidden.shape[1:]))

    def _encode(self, picture: Tensor | None, plan: Plan) -> Insight:
        states, key = plan.states, "" if picture is None else image_key(picture)
        if states is None or not states.belongs_to(key, self.core.mllm_id) or states.turn != plan.text:
            mm.load_models_gpu([self.patcher], memory_required=reading_memory(self.core, [plan.text], 0))
        with as_host_interrupt():
            insight = self.core.encode(picture, plan)
        return replace(insight, hidden=to_intermediate(insight.hidden), mask=to_intermediate(insight.mask))


def text_insight(mllm: Any, text: str) -> tuple[Insight, Plan]:
    """The states of a turn without a picture, and the plan that says its text. Raises Misfit for another MLLM."""
    if not isinstance(mllm, ManagedQwen):
        raise Misfit(
            f"a text alone is read by a Qwen2.5-VL, this is a {type(mllm).__name__}; load the MLLM that the painter "
            "was trained with"
        )
    plan = Typed(text).design(None, check_instruction(text))
    return mllm.encode(None, plan), plan


def reading_memory(core: Any, texts: Sequence[str], new_tokens: int) -> int:
    """Bytes beside the weights for one picture, the longest of `texts` and an answer: cache, tower, prefill, logits."""
    text, vision = core.config.text_config, core.config.vision_config
    seen = core.grid()[0] * core.grid()[1]
    tokens = seen + 512 + max(map(len, texts)) + new_tokens  # the prompt's own words; a character is at most a token
    head_dim = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * tokens
    prefill = tokens * (3 * text.intermediate_size + 8 * text.hidden_size)
    patches = seen * vision.spatial_merge_size**2
    tower = patches * (3 * vision.intermediate_size + 8 * vision.hidden_size)
    return (cache + max(prefill, tower) + 2 * text.vocab_size) * max(core.dtype.itemsize, 2)
