"""The optimiser prompt of MIND-Edit and the parser of its answer.

T_raw goes in, T_opt comes out: a comma-separated description of the wanted result (arXiv 2505.19149, Figures 1 and 2).
The wording is our own. The contract is the paper's, one line after `optimized instruction:`, and ours beyond it:
`step:` lines that may come before, one for each part of a wish of several parts, and `region:` lines that may follow,
a box in thousandths of the picture (x0 y0 x1 y1) or the word `background`, with `keep:` boxes of what stays before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .contracts import MAX_COORDINATE, Region

CLIP_TOKENS = 77  # what CLIP's text model reads, start and end token included
MAX_INSTRUCTION = 2000  # characters; a wish is a sentence or two
ANSWER_PREFIX = "optimized instruction:"
REGION_PREFIX = "region:"
KEEP_PREFIX = "keep:"
STEP_PREFIX = "step:"

TEMPLATES = {
    "mind_edit": """\
You prepare picture edits for an image generator such as Stable Diffusion. People describe an edit loosely; you \
look at their picture, work out which part of it they mean, and describe that part as it looks after the edit.

Rules for the description:
- Describe the finished result as a caption would. Give no orders: not "make the cup red" but "red cup".
- Take from the picture what the wish leaves unsaid: which object, its colour, material, size, pose, place, the light.
- Resolve words such as "it", "the other one" or "the thing on the left" into what they mean in this picture.
- Mention only what changes and what it must blend with. Where something is removed, describe what is seen instead.
- Short phrases with commas between them, on one line, 45 words at most. No explanations.

Answer in exactly this form:
optimized instruction: <the description>
region: <x0 y0 x1 y1>

The numbers of a region are the left, top, right and bottom edge of a part that changes, in thousandths of the \
picture's width and height. Write one such line for each changed part, or `region: background` when everything \
around the objects changes, and then a line `keep: <x0 y0 x1 y1>` for each object that stays. Leave the lines out when \
you cannot tell.
When the wish has several parts, first write a line `step: <what this part changes>` for each of them, in their order.

An example. The wish "let it have a rest" for a picture of a horse galloping on a beach gives:
optimized instruction: brown horse lying on wet sand, legs folded, head raised, calm sea behind, soft evening light
region: 240 380 760 900

The wish for this picture: {instruction}""",
    "mini": "rewrite: {instruction}",
}
# What `training_prompt` adds to a template where T_opt is written as training data and the result is known.
AFTER = """\
This edit has been made already: the second picture shows the same scene after it. Describe the changed part as it \
looks there, but only what follows from the wish: leave out what differs by chance, such as noise or sharpness, and \
never mention that there are two pictures. Regions are about the first picture."""
CAPTIONS = {"source_caption": "A caption of the picture before the edit", "target_caption": "A caption of the result"}


@dataclass(frozen=True)
class Parsed:
    """What an answer says. text: what the painter obeys; note: what the user has to be told, "" if nothing.

    found: whether the answer had a T_opt; without one, text is the raw instruction
    """

    text: str
    regions: tuple[Region, ...] = ()
    note: str = ""
    steps: tuple[str, ...] = ()
    found: bool = field(default=True, repr=False)


def optimizer_prompt(instruction: str, template: str = "mind_edit") -> str:
    """The user turn that follows the picture.

    >>> optimizer_prompt("remove the odd one", "mini")
    'rewrite: remove the odd one'
    >>> optimizer_prompt("remove the odd one", "minimal")
    Traceback (most recent call last):
    ValueError: unknown prompt template 'minimal'; have mind_edit, mini
    """
    if template not in TEMPLATES:
        raise ValueError(f"unknown prompt template {template!r}; have {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[template].replace("{instruction}", check_instruction(instruction))


def training_prompt(
    instruction: str, template: str = "mind_edit", after: bool = False, **captions: str | None
) -> str:
    """The user turn that asks a strong MLLM for the T_opt of a training example.

    after: the target follows the source as a second picture;  captions: source_caption, target_caption, None: not told
    MIND-Edit had its T_opt written by GPT-4o and prints neither that prompt nor what it saw (arXiv 2505.19149, section
    3); Figure 2 shows the beginning and the end of the optimiser's own prompt, whose part `TEMPLATES` plays.

    >>> print(training_prompt("remove it", "mini", source_caption="a cat", target_caption=None))
    rewrite: remove it
    <BLANKLINE>
    A caption of the picture before the edit: a cat
    """
    if unknown := sorted(set(captions) - set(CAPTIONS)):
        raise ValueError(f"unknown caption {', '.join(unknown)}; have {', '.join(CAPTIONS)}")
    known = [f"{CAPTIONS[name]}: {captions[name]}" for name in CAPTIONS if captions.get(name)]
    return "\n\n".join([optimizer_prompt(instruction, template), *([AFTER] if after else []), *known])


def check_instruction(instruction: str) -> str:
    r"""The instruction on one line.

    >>> check_instruction("  remove\n the cat ")
    'remove the cat'
    >>> check_instruction("   ")
    Traceback (most recent call last):
    ValueError: the instruction is empty; say what to change, e.g. "remove the cup on the table"
    """
    line = " ".join(instruction.split())
    if not line:
        raise ValueError('the instruction is empty; say what to change, e.g. "remove the cup on the table"')
    if len(line) > MAX_INSTRUCTION:
        raise ValueError(
            f"the instruction has {len(line)} characters, at most {MAX_INSTRUCTION} are read; "
            "shorten it, or edit in several steps"
        )
    return line


def format_answer(text: str, regions: Iterable[Region] = (), steps: Iterable[str] = ()) -> str:
    r"""The answer that `parse_optimized` reads; the training target.

    >>> format_answer("small red cat", (Region("box", (120, 40, 300, 260)), Region("background")))
    'optimized instruction: small red cat\nregion: 120 40 300 260\nregion: background'
    >>> format_answer("night sky", (Region("background"), Region("keep", (1, 2, 3, 4))), ("red cat", "night sky"))
    'step: red cat\nstep: night sky\noptimized instruction: night sky\nregion: background\nkeep: 1 2 3 4'
    """
    before = [f"{STEP_PREFIX} {step}" for step in steps]
    return "\n".join([*before, f"{ANSWER_PREFIX} {text}", *map(_written, regions)])


def parse_optimized(answer: str, raw: str, count_tokens: Callable[[str], int] | None = None) -> Parsed:
    r"""T_opt and the regions in an MLLM's answer; the raw instruction, with a note, if there is no T_opt in it.

    count_tokens: length of a text for the painter's text encoder, start and end token included; None: an estimate.

    >>> parsed = parse_optimized("optimized instruction : Dog squatting, head forward\nregion: 100 200 500 900", "sit")
    >>> parsed.text, parsed.regions
    ('Dog squatting, head forward', (Region(kind='box', box=(100.0, 200.0, 500.0, 900.0)),))
    >>> parse_optimized("Sure!\n```\n**Optimized Instruction:** \"a red cup\"\n```", "make it red").text
    'a red cup'
    >>> parse_optimized("I see a dog.", "let it squat").text
    'let it squat'
    >>> parse_optimized("I see a dog.", "let it squat").note[:66]
    "the MLLM's answer has no line 'optimized instruction: ...', so the"
    """
    text = _described(answer)
    if not text:
        return Parsed(raw, (), _malformed(answer), found=False)
    regions, region_note = _regions(answer)
    text, trim_note = trim_to_clip(text, count_tokens or estimate_clip_tokens)
    return Parsed(text, regions, "; ".join(filter(None, (trim_note, region_note))), _steps(answer))


def trim_to_clip(text: str, count_tokens: Callable[[str], int], limit: int = CLIP_TOKENS) -> tuple[str, str]:
    """The longest run of whole phrases that fits in `limit` tokens, and a note if something was left out.

    >>> trim_to_clip("red cat, green grass, blue sky", lambda text: len(text.split()) + 2, limit=6)
    ('red cat, green grass', 'the description was cut to the 6 tokens its text encoder reads; left out: blue sky')
    """
    if count_tokens(text) <= limit:
        return text, ""
    kept = _longest(re.split(r"(?<=,)", text), count_tokens, limit) or _longest(
        re.split(r"(?<=\s)", text), count_tokens, limit
    )
    lost = text[len(kept) :].strip(" ,")
    kept = kept.rstrip(" ,")
    return kept, f"the description was cut to the {limit} tokens its text encoder reads; left out: {_short(lost)}"


def estimate_clip_tokens(text: str) -> int:
    """About how many tokens CLIP makes of `text`, start and end token included: a word is 1 token, a long one more.

    >>> estimate_clip_tokens("a red cat, 12 balloons")
    9
    """
    words = re.findall(r"[^\W\d_]+|\d|[^\w\s]+|_", text)
    return 2 + sum(1 + (len(word) - 1) // 10 for word in words)


def token_counter(tokenizer: Callable[..., Any]) -> Callable[[str], int]:
    """Counts as the painter's own text encoder does, start and end token included, without cutting anything."""
    return lambda text: len(tokenizer(text, truncation=False, verbose=False).input_ids)


def _longest(pieces: list[str], count_tokens: Callable[[str], int], limit: int) -> str:
    """The longest start of `pieces` that fits; the count grows with the text, so it is found by bisection."""
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        fits = count_tokens("".join(pieces[:middle]).rstrip(" ,")) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return "".join(pieces[:low])


# The answer ----------------------------------------------------------------------------------------------------------

_MARKUP = " \t*_`\"'“”‘’"
_OPTIMIZED = re.compile(r"optimi[sz]ed[ \t_-]*instructions?[ \t*_`\"']*[:：]", re.IGNORECASE)
_LINE = r"^[ \t>*_`-]*{}[ \t*_`\d]*[:：](.*)$"
_REGION = re.compile(_LINE.format("(region|keep)s?"), re.IGNORECASE | re.MULTILINE)
_STEP = re.compile(_LINE.format("step"), re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _described(answer: str) -> str:
    """The first non-empty description after a marker: on its own line, or on the next one; "" if there is none."""
    for match in _OPTIMIZED.finditer(answer):
        lines = answer[match.end() :].splitlines() or [""]
        text = _plain(lines[0]) or next((_plain(line) for line in lines[1:] if _plain(line)), "")
        if text and not _REGION.match(text) and not _OPTIMIZED.match(text):
            return text
    return ""


def _plain(line: str) -> str:
    """A line without Markdown, quotes and doubled spaces; "" for a code fence and for an echoed placeholder."""
    line = " ".join(line.split()).strip(_MARKUP)
    if line.startswith("<") and line.endswith(">"):
        return ""
    return line


def _regions(answer: str) -> tuple[tuple[Region, ...], str]:
    found, unread = [], []
    for match in _REGION.finditer(answer):
        region = _region(match.group(1).lower(), match.group(2))
        (found if region else unread).append(region or match.group(2).strip())
    return tuple(found), f"a region line could not be read: {_short(unread[0])}" if unread else ""


def _region(word: str, text: str) -> Region | None:
    """A box in any order of its corners, clipped to the picture; None if it is neither a box nor the background."""
    if word == "region" and _plain(text).lower().rstrip(".") == "background":
        return Region("background")
    numbers = [min(max(float(number), 0.0), MAX_COORDINATE) for number in _NUMBER.findall(text)]
    if len(numbers) != 4:
        return None
    (x0, x1), (y0, y1) = sorted(numbers[0::2]), sorted(numbers[1::2])
    kind = "keep" if word == "keep" else "box"
    return Region(kind, (x0, y0, x1, y1)) if x0 < x1 and y0 < y1 else None


def _steps(answer: str) -> tuple[str, ...]:
    return tuple(filter(None, (_plain(match.group(1)) for match in _STEP.finditer(answer))))


def _written(region: Region) -> str:
    prefix = KEEP_PREFIX if region.kind == "keep" else REGION_PREFIX
    numbers = region.kind if region.box is None else " ".join(f"{round(edge)}" for edge in region.box)
    return f"{prefix} {numbers}"


def _malformed(answer: str) -> str:
    return (
        f"the MLLM's answer has no line '{ANSWER_PREFIX} ...', so the instruction is used as it was written; "
        f"the answer began: {_short(answer)}"
    )


def _short(text: str, length: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
