"""MIND-Edit's designer (arXiv 2505.19149, Figure 1): the MLLM that foresees the result also writes T_opt.

The plan carries the states of that one generation, so that `mllm.encode` need not run the MLLM again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..contracts import Plan
from ..prompts import check_instruction, parse_optimized


class SelfMLLM:
    """mllm: anything with LlavaOnevision's `generate`;  count_tokens: length of a text for the painter's text encoder,
    start and end token included (None: an estimate), to which descriptions are cut.
    """

    def __init__(self, mllm: Any, count_tokens: Callable[[str], int] | None = None):
        self.mllm, self.count_tokens = mllm, count_tokens

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan:
        """The plan for one picture, float[1, H, W, 3] in 0..1; options are those of `generate`.

        A malformed answer becomes the raw instruction, and the plan's note says so.
        Raises ValueError for an empty or overlong instruction and for several pictures, Interrupted.
        """
        if len(image) != 1:
            raise ValueError(f"a plan is about one picture, got {len(image)}; use design_each and paint one by one")
        return self.design_each(image, [instruction], **options)[0]

    def design_each(self, images: Tensor, instructions: str | Sequence[str], **options: Any) -> list[Plan]:
        """A plan for every picture of float[B, H, W, 3], from one batched generation."""
        wishes = [instructions] * len(images) if isinstance(instructions, str) else instructions
        wishes = [check_instruction(wish) for wish in wishes]
        generations = self.mllm.generate(images, wishes, **options)
        return [self._plan(wish, generation) for wish, generation in zip(wishes, generations, strict=True)]

    def _plan(self, raw: str, generation: Any) -> Plan:
        parsed = parse_optimized(generation.text, raw, self.count_tokens)
        return Plan(
            raw,
            parsed.text,
            "self",
            sections={"answer": generation.text},
            steps=parsed.steps,
            regions=parsed.regions,
            states=generation.states,
            note=parsed.note,
        )
