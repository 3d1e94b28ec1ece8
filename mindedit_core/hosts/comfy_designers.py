"""Designers of blueprints in ComfyUI: one picture after the other, watched, interrupted, and kept on disk.

    <user folder>/mindedit/blueprints    what was designed: the same picture and wish are not designed twice
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import folder_paths
import torch
from torch import Tensor

from ..contracts import Insight, Misfit, Plan
from ..designers.cache import CachedDesigner
from ..designers.endpoint import EndpointDesigner
from ..designers.typed import Typed
from .comfy_mllm import OnToken, PlanBatch, as_host_interrupt, progress


class Words(NamedTuple):
    """How words are chosen. seed: of them above temperature 0;  on_token(piece, n): of the first picture's text"""

    seed: int
    max_new_tokens: int
    temperature: float
    on_token: OnToken | None


@dataclass(frozen=True)
class Loaded:
    """A designer whose model is put in place by `load` before it is asked."""

    designer: Any
    load: Callable[[], None]

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan:
        self.load()
        return self.designer.design(image, instruction, **options)


def kept(designer: Any, identity: str) -> CachedDesigner:
    """The designer with its plans kept on disk, across restarts."""
    return CachedDesigner(designer, Path(folder_paths.get_user_directory()) / "mindedit" / "blueprints", identity)


def design_each(designer: Any, image: Tensor, instruction: str | Sequence[str], words: Words) -> Plan | PlanBatch:
    """The plan for float[1, H, W, C] in 0..1, a PlanBatch for several pictures."""
    wishes = [instruction] * len(image) if isinstance(instruction, str) else list(instruction)
    with as_host_interrupt():
        plans = [
            designer.design(
                picture,
                wish,
                max_new_tokens=words.max_new_tokens,
                temperature=words.temperature,
                generator=torch.Generator("cpu").manual_seed(words.seed),
                on_token=progress(words.max_new_tokens, None if number else words.on_token),
                should_stop=mm.processing_interrupted,
            )
            for number, (picture, wish) in enumerate(zip(image.split(1), wishes, strict=True))
        ]
    return plans[0] if len(plans) == 1 else PlanBatch(plans)


class ManagedEndpoint:
    """What the MINDEDIT_MLLM socket carries of an endpoint: it designs, and has no states to paint from."""

    has_head = False

    def __init__(self, base_url: str, model: str, timeout: float = 60.0) -> None:
        self.designer = EndpointDesigner(base_url, model, timeout=timeout)

    @property
    def name(self) -> str:
        return self.designer.identity

    def get_ram_usage(self) -> int:
        return 0

    def with_adapter(self, adapter: Path | None, strength: float = 1.0) -> ManagedEndpoint:
        """`self`; Misfit if there is an adapter."""
        if adapter is not None:
            raise Misfit(
                "an adapter (LoRA and insight head) is put on a model that is loaded here, an endpoint's model runs "
                "elsewhere; wire MLLM Loader here, or choose the adapter 'none'"
            )
        return self

    def design(
        self,
        image: Tensor,
        instruction: str | Sequence[str],
        *,
        seed: int = 0,
        max_new_tokens: int = 2048,
        temperature: float = 0.0,
        on_token: OnToken | None = None,
    ) -> Plan | PlanBatch:
        """The blueprint for float[1, H, W, C] in 0..1, a PlanBatch for several pictures."""
        words = Words(seed, max_new_tokens, temperature, on_token)
        return design_each(kept(self.designer, self.designer.identity), image, instruction, words)

    def encode(self, image: Tensor | None, plan: Plan | PlanBatch) -> Insight:
        raise Misfit(
            "an endpoint writes blueprints and gives no states; wire the painter's own MLLM (Qwen2.5-VL-3B, from MLLM "
            "Loader) into Insight Embedding"
        )


def as_typed(image: Tensor, text: str) -> Plan | PlanBatch:
    """The user's own text as the plan of every picture, to the letter."""
    plan = Typed(text).design(image, " ".join(text.split())[:200] or text)
    return plan if len(image) == 1 else PlanBatch([plan] * len(image))
