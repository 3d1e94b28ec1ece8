"""The mini's vocabulary: a tokenizer built from everything the world can say."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mindedit_core.backbones.mini_tokenizer import build_tokenizer
from mindedit_core.backbones.qwen_mini import SYSTEM, build_qwen_tokenizer
from mindedit_core.blueprint import SECTIONS
from mindedit_core.scenes import caption, instructions
from mindedit_core.scenes.sampling import THEN, draw_scene

EXTRA = ("rewrite: optimized instruction: region: background 0 1 2 3 4 5 6 7 8 9",
         "what is at describe the picture nothing there is no such thing . ?",
         "please change edit image photo picture scene object it them with and the a an of on in to from into")


def corpus() -> list[str]:
    """Sentences that hold every word of the world at least once."""
    random = np.random.default_rng(0)
    drawn = [draw_scene(random) for _ in range(120)]
    said = {edit.instruction for scene in drawn[:40] for _, edit in instructions(scene)}
    return [*EXTRA, THEN, *sorted(said), *(caption(scene) for scene in drawn)]


@lru_cache(maxsize=1)
def tokenizer():
    return build_tokenizer(corpus())


DIALOGUE = (f"system user assistant {SYSTEM} design: is this", f"1. 2. 3. 4. 5. {' : '.join(SECTIONS)}")


@lru_cache(maxsize=1)
def qwen_tokenizer():
    """The same words behind Qwen's special tokens, and those of a blueprint's headings."""
    return build_qwen_tokenizer([*corpus(), *DIALOGUE])
