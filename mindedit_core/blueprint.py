r"""The blueprint of Draw-In-Mind (arXiv 2509.01986): what a designer writes for the painter, in five sections.

    1. Edit Instruction: remove the lemons

    2. Global Layout Perception: ...

The headings and their numbers are those of the texts that the published weights were trained on; the prompts are ours.
The painter obeys the whole text, which takes the place of the user's wish.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

SECTIONS = (
    "Edit Instruction",
    "Global Layout Perception",
    "Local Object Perception",
    "Edit Area Localization",
    "Edited Image Imagination",
)
INSTRUCTION, IMAGINATION = SECTIONS[0], SECTIONS[-1]
BULLET = re.compile(r"(?:[-*+•●▪◦]|\d{1,2}[.)])\s")  # how an entry of a list begins

PROMPTS = {
    "dim": """\
You plan an edit for a painter who reads nothing but your plan and follows it to the letter. Look at the picture and \
at the wish at the end, think the edit through, and write the plan under these five numbered headings, with these very \
words, in this order:

1. Edit Instruction: the wish as one clear sentence, with "it" or "the other one" replaced by what is meant here
2. Global Layout Perception: the scene as it is now: what there is, and where in the frame each thing stands
3. Local Object Perception: a line for each thing and for the backdrop, with its colour, form, material and condition
4. Edit Area Localization: what the edit touches, and where it is; all else stays as it is
5. Edited Image Imagination: the finished picture as if it lay before you, above all the parts that are different

Behind each colon, in place of the hint, write what you see or foresee, in plain text without bold type or code \
blocks. Write these five sections and not a word more: no greeting, no remarks, no questions.

The wish for this picture: {instruction}""",
    "mini": "design: {instruction}",
}


def blueprint_prompt(instruction: str, template: str = "dim") -> str:
    """The user turn that follows the picture. instruction: one that has passed `prompts.check_instruction`

    >>> blueprint_prompt("let it squat", "mini")
    'design: let it squat'
    >>> blueprint_prompt("let it squat", "full")
    Traceback (most recent call last):
    ValueError: unknown blueprint prompt 'full'; have dim, mini
    """
    if template not in PROMPTS:
        raise ValueError(f"unknown blueprint prompt {template!r}; have {', '.join(sorted(PROMPTS))}")
    return PROMPTS[template].replace("{instruction}", " ".join(instruction.split()))


def format_blueprint(sections: Mapping[str, str]) -> str:
    r"""Numbered sections with an empty line between them, as the published weights know them; missing ones left out.

    A section that is a list stands below its heading.

    >>> format_blueprint({"Edit Instruction": "remove it", "Edited Image Imagination": "an empty table"})
    '1. Edit Instruction: remove it\n\n5. Edited Image Imagination: an empty table'
    >>> format_blueprint({"Local Object Perception": "- cup: red\n- table: oak"})
    '3. Local Object Perception:\n   - cup: red\n   - table: oak'
    """
    numbered = [(number, name) for number, name in enumerate(SECTIONS, 1) if sections.get(name)]
    return "\n\n".join(f"{number}. {name}:{_laid_out(sections[name])}" for number, name in numbered)


def _laid_out(text: str) -> str:
    return "\n" + textwrap.indent(text, "   ") if BULLET.match(text) else " " + text
