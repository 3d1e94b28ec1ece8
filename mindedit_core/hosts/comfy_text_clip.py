"""A host CLIP that can write text, where an MLLM is: newer hosts give Qwen-VL and the like a `generate` of their own.

It designs and nothing else: its states belong to no insight head, so the plan carries none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..contracts import Plan
from ..prompts import optimizer_prompt, parse_optimized

WRITES = ("tokenize", "generate", "decode")  # methods of comfy.sd.CLIP since the host has TextGenerate


def can_write(clip: Any) -> bool:
    return all(callable(getattr(clip, name, None)) for name in WRITES)


def as_writer(source: Any) -> Any:
    """Whoever can `design`: a MINDEDIT_MLLM as it is, a host CLIP if it can generate text.

    Raises TypeError for anything else, saying what to use instead.
    """
    if callable(getattr(source, "design", None)):
        return source
    if can_write(source):
        return ClipWriter(source)
    raise TypeError(
        f"a {type(source).__name__} cannot write text on this ComfyUI; connect an MLLM from MLLM Loader, or a text "
        "encoder such as Qwen-VL on a ComfyUI that has the Generate Text node"
    )


class ClipWriter:
    """Designer over the host's `CLIP.tokenize`, `generate` and `decode`."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip

    def design(
        self,
        image: Tensor,
        instruction: str,
        *,
        seed: int = 0,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        on_token: Callable[[str, int], None] | None = None,
    ) -> Plan:
        """image: float[B, H, W, 3] in 0..1, of which the first picture is read. The host streams nothing."""
        tokens = self.clip.tokenize(optimizer_prompt(instruction), images=[image[:1, ..., :3]])
        sampling = {"do_sample": temperature > 0, "temperature": max(temperature, 1e-3), "seed": seed}
        answer = self.clip.decode(self.clip.generate(tokens, max_length=max_new_tokens, **sampling))
        parsed = parse_optimized(answer, instruction)
        found = {"steps": parsed.steps, "regions": parsed.regions, "note": parsed.note}
        return Plan(instruction, parsed.text, designer="clip", **found)
