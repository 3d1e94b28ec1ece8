"""The procedural world: pictures, vague wishes, precise instructions, masks, and judges, all from a seed."""

from .draw import edit_mask, render
from .edits import OPERATIONS as _OPERATIONS
from .edits import instructions
from .grammar import Verdict, caption, judge_text, parse
from .graph import (
    BACKGROUNDS,
    COLOURS,
    EVALUATION_SEEDS,
    KINDS,
    PLACES,
    SIZES,
    VERSION,
    Scene,
    Thing,
)
from .judge import judge_picture
from .sampling import Sample, sample

OPERATIONS = tuple(_OPERATIONS)

__all__ = ["BACKGROUNDS", "COLOURS", "EVALUATION_SEEDS", "KINDS", "OPERATIONS", "PLACES", "SIZES", "VERSION", "Sample",
           "Scene", "Thing", "Verdict", "caption", "edit_mask", "instructions", "judge_picture", "judge_text", "parse",
           "render", "sample"]
