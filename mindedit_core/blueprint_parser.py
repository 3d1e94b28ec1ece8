"""The blueprint in a designer's answer: told by its headings in any dress, without thoughts, markup and small talk.

Nothing raises: of an answer without a form, what can be used is used, and a note says so.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .blueprint import BULLET, INSTRUCTION, SECTIONS, format_blueprint

MAX_BLUEPRINT = 8000  # characters, five times what GPT-4o writes for a photograph; models that loop write more


@dataclass(frozen=True)
class ParsedBlueprint:
    """What a designer's answer says. text: what the painter obeys;  note: what the user has to be told, "" if nothing

    sections: those that are there, in order;  found: whether there was any; without one, text is the answer as it is,
    or the raw instruction if the answer says nothing
    """

    text: str
    sections: dict[str, str] = field(default_factory=dict)
    note: str = ""
    found: bool = True


def parse_blueprint(answer: str, raw: str) -> ParsedBlueprint:
    r"""The blueprint in a designer's answer, in its published form; of an answer without one, what can be used of it.

    raw: the user's wish on one line, which stands in for a first section that is missing

    >>> answer = "Sure!\n**1. Edit Instruction:** remove the cup\n### 5) Edited image\nan *empty* table"
    >>> parsed = parse_blueprint(answer, "remove it")
    >>> parsed.text
    '1. Edit Instruction: remove the cup\n\n5. Edited Image Imagination: an empty table'
    >>> parsed.note
    "the designer's answer lacks 2. Global Layout Perception, 3. Local Object Perception, 4. Edit Area Localization"
    >>> parse_blueprint("<think>2. Global Layout: draft</think>an empty table", "remove it").text
    'an empty table'
    >>> parse_blueprint("<think>I see a cup.", "remove it").text
    'remove it'
    """
    sections = read_sections(answer)
    if not sections:
        return _formless(answer, raw)
    note = _missing(sections)
    sections = {INSTRUCTION: sections.get(INSTRUCTION, raw), **sections}
    sections, cut = _shortened(sections)
    return ParsedBlueprint(format_blueprint(sections), sections, "; ".join(filter(None, (note, cut))))


def read_sections(answer: str) -> dict[str, str]:
    r"""The sections that an answer has, in order, without markup; {} if it has none.

    Of a section that is there twice the last whole one is taken: drafts come first, and the last may be cut off.

    >>> read_sections("Step 2 - Global layout perception\n  a cup on a table\n1. EDIT INSTRUCTION: remove it")
    {'Edit Instruction': 'remove it', 'Global Layout Perception': 'a cup on a table'}
    >>> read_sections("an empty table")
    {}
    """
    blocks = _blocks(spoken_part(answer))
    found: dict[str, str] = {}
    for place, (name, lines) in enumerate(blocks, 1):
        text = _plain(lines if place < len(blocks) else _without_farewell(lines))
        whole = place < len(blocks) or _ENDED.search(text)
        if text and not _PLACEHOLDER.fullmatch(text) and (whole or name not in found):
            found[name] = text
    return {name: found[name] for name in SECTIONS if name in found}


def spoken_part(answer: str) -> str:
    """An answer without thoughts, code fences, quote marks, special tokens and what no tokenizer takes.

    >>> spoken_part("<think>a cup?</think><answer>a red cup</answer>")
    'a red cup'
    """
    text = answer.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate becomes a question mark
    text = _CONTROL.sub("", "\n".join(text.splitlines()).expandtabs(4))
    text = _without_thoughts(text)
    if answers := [said for said in re.findall(r"(?is)<answer>(.*?)(?:</answer>|\Z)", text) if said.strip()]:
        text = answers[-1]
    for markup in (_TAG, _FENCE, _QUOTE):
        text = markup.sub("", text)
    return textwrap.dedent(text).strip("\n").rstrip()


def _without_thoughts(text: str) -> str:
    """A thought may lack its end, where the answer was cut off, or its beginning, where the chat template wrote it."""
    kept, thinking = "", False
    for piece in _THOUGHT.split(text):
        if piece.startswith("<") and _THOUGHT.fullmatch(piece):
            kept = kept if thinking or piece[1] != "/" else ""
            thinking = piece[1] != "/"
        elif not thinking:
            kept += piece
    return kept


# Headings ------------------------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_THOUGHT = re.compile(r"(</?think(?:ing)?>)", re.IGNORECASE)
_TAG = re.compile(r"(?i)</?answer>|<\|[^|<>\n]{1,40}\|>")
_FENCE = re.compile(r"(?m)^[ ]*(?:```|~~~)[\w-]*[ ]*(?:\n|\Z)|```")
_QUOTE = re.compile(r"(?m)^ {0,3}>[ ]?")

_NUMBER = r"[(\[]?(?P<number>\d{1,2}|[①-⑨]|[ivx]{1,4}(?=[.)]))[\s.,:)\]*_`\ufe0f\u20e3–—-]*"
_HEADING = re.compile(
    r"(?P<before>[\s#*_`~+•●▪◦-]*)(?:(?:step|section|part)\b[\s*_]*)?"
    rf"(?:{_NUMBER})?(?P<name>[a-z]+(?:(?:[ ]+|[_-])[a-z]+){{0,5}})"
    r"(?P<after>[\s*_`~#\"']*(?:\([^()]*\)[\s*_`~]*)?)"
    r"(?P<mark>[:：]|[–—]|-(?=\s)|$)[*_]*[ ]*(?P<rest>.*)",
    re.IGNORECASE,
)
_VARIED = {"Edit": "edit(?:ing)?", "Edited": "edit(?:ed)?", "Localization": "locali[sz]ation"}
_NAMES = tuple(r"[\s_-]+".join(_VARIED.get(word, word) + "s?" for word in name.split()) for name in SECTIONS)
_RUN_ON = tuple(re.compile(rf"[\s#*_]*(?:step\s*)?{_NUMBER}{name}[\s*_]+(?P<rest>\S.*)", re.I) for name in _NAMES)
_TEXT = r"(?<=[^\s#*_>~+•●▪◦:-])(?<!step)(?<!section)(?<!part)"
_INSIDE = re.compile(rf"(?i){_TEXT}[ ]+(?=[*_#(]*\d[.):]*[\s*_]*(?:{'|'.join(_NAMES)})[*_ ]*[:：])")
_FILLERS = {"the", "a", "an", "of", "and", "for", "in", "to", "my", "your"}


class _Heading(NamedTuple):
    """name: of SECTIONS;  rest: what follows on the line;  whole: whether all words of the heading are there"""

    name: str
    rest: str
    whole: bool


def _blocks(text: str) -> list[tuple[str, list[str]]]:
    """Each heading's section with the lines up to the next; what stands before the first is left out."""
    blocks: list[tuple[str, list[str]]] = []
    sure: set[str] = set()  # had their whole heading: words such as "Edited image:" are text from then on
    for line in _INSIDE.sub("\n", text).split("\n"):
        heading = _heading(line)
        if heading and (heading.whole or heading.name not in {*sure, blocks[-1][0] if blocks else ""}):
            blocks.append((heading.name, [heading.rest]))
            sure |= {heading.name} if heading.whole else set()
        elif blocks:
            blocks[-1][1].append(line)
    return blocks


def _heading(line: str) -> _Heading | None:
    """The heading that a line begins with, in any dress; None for a line of text."""
    match = _HEADING.match(line)
    if match and (found := _which(match)):
        return _Heading(found[0], match["rest"], found[1])
    for name, run_on in zip(SECTIONS, _RUN_ON, strict=True):
        if match := run_on.match(line):
            return _Heading(name, match["rest"], True)
    return None


def _which(match: re.Match) -> tuple[str, bool] | None:
    """Whose heading this is, and whether with all of its words."""
    words = {_stem(word) for word in re.split(r"[\s_-]+", match["name"])} - _FILLERS
    hits = {name: len(words & _STEMS[name]) for name in SECTIONS}
    best = [name for name in SECTIONS if hits[name] == max(hits.values())]
    said = _NUMBERED.get(int(match["number"]) if (match["number"] or "").isdecimal() else 0)
    name = best[0] if len(best) == 1 else said
    if name not in best or not _speaks_for(match, words, name, said == name):
        return None
    return name, hits[name] == len(_STEMS[name])


def _speaks_for(match: re.Match, words: set[str], name: str, right: bool) -> bool:
    """Whether this is a heading: the fewer of its words are there, the more must speak for it. right: its number does

    An entry of a list within a section is none ("- Edited image: ..."), unless it has all the words or the number.
    """
    known, foreign = len(words & _STEMS[name]), len(words - _STEMS[name])
    marked = "#" in match["before"] or any(mark in match["before"] + match["after"] for mark in ("**", "__"))
    numbered, colon = match["number"] is not None, match["mark"] in (":", "：")
    free = not re.match(r"\s{2}|\s*[-+•●▪◦*]\s", match["before"])
    if foreign and not (foreign == 1 and known > 1 and (marked or (numbered and colon))):
        return False
    if known < 2:
        return right and free and not foreign and _LAST[name] in words
    return known == len(_STEMS[name]) or right or (free and (numbered or colon or marked))


def _stem(word: str) -> str:
    """A word in one of the forms it may take.

    >>> [_stem(word) for word in ("Edited", "Objects", "Localisation")]
    ['edit', 'object', 'localization']
    """
    word = re.sub(r"^edit(?:ed|ing)$", "edit", word.lower().removesuffix("s"))
    return word.replace("isation", "ization")


_STEMS = {name: {_stem(word) for word in name.split()} for name in SECTIONS}
_LAST = {name: _stem(name.split()[-1]) for name in SECTIONS}
_NUMBERED = dict(enumerate(SECTIONS, 1))


# Texts ---------------------------------------------------------------------------------------------------------------

_RULE = re.compile(r"\s*(?:[-*_=]\s*){3,}")
_HASHES = re.compile(r"^(\s*)#{1,6}\s+")
_ITALIC = re.compile(
    r"(?<![\w*])\*(?=[^\s*])([^*\n]+)(?<=[^\s*])\*(?![\w*])|(?<!\w)_(?=[^\s_])([^_\n]+)(?<=[^\s_])_(?!\w)"
)
_UNDERLINED = re.compile(r"(?<!\w)__(?=[^\s_])([^_\n]+)(?<=[^\s_])__(?!\w)")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]{,60}\]|<[^<>\n]{,60}>|\{[^{}\n]{,60}\}|\.{3}|…")
_ENDED = re.compile(r"[.!?。！？][\"'”’)\]]*\Z")
_SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)\]]*(?=\s)|\n")
_FAREWELL = re.compile(
    r"\W*(?:(?:please )?let me know|feel free|i hope|hope (?:this|that)|if you(?:'d| would| need| want| have)|"
    r"would you|is there anything|this (?:blueprint|plan|response|answer) |"
    r"end of (?:the )?(?:blueprint|plan|response|answer))",
    re.IGNORECASE,
)
_DECLINED = re.compile(
    r"(?:i['’]m|i am) (?:very |so )?(?:sorry|afraid|unable|not able)|sorry\b|i can(?:no|['’])t\b|as an ai\b",
    re.IGNORECASE,
)
LONGEST_REFUSAL = 600  # characters; what is longer has looked at the picture


def _plain(lines: Sequence[str]) -> str:
    """A section's lines as text: no Markdown but its lists, which begin at the margin."""
    first, *more = ["" if _RULE.fullmatch(line) else _bare(line) for line in lines]
    rest = "\n".join(more)
    if not first.strip() or BULLET.match(first):
        rest = textwrap.dedent(rest)
    return re.sub(r"\n{3,}", "\n\n", f"{first.strip()}\n{rest}").strip()


def _bare(line: str) -> str:
    line = _UNDERLINED.sub(r"\1", _HASHES.sub(r"\1", line).replace("**", ""))
    return _ITALIC.sub(lambda match: match[1] or match[2], line).rstrip()


def _without_farewell(lines: list[str]) -> list[str]:
    """The answer's last lines up to where it turns to the user again."""
    ends = (place for place, line in enumerate(lines) if place and _FAREWELL.match(line))
    return lines[: next(ends, len(lines))]


def _missing(sections: Mapping[str, str]) -> str:
    """What the user has to be told of sections that are not there."""
    lost = [f"{number}. {name}" for number, name in _NUMBERED.items() if name not in sections]
    if not lost:
        return ""
    instead = "; the wish stands there as it was written" if INSTRUCTION not in sections else ""
    return f"the designer's answer lacks {', '.join(lost)}{instead}"


def _shortened(sections: dict[str, str]) -> tuple[dict[str, str], str]:
    """Sections that fit into MAX_BLUEPRINT: the longest ones give way first, so that none is lost."""
    length, limit, kept = len(format_blueprint(sections)), MAX_BLUEPRINT, sections
    while len(format_blueprint(kept)) > MAX_BLUEPRINT:
        kept = {name: _first_sentences(text, limit) for name, text in sections.items()}
        limit = limit * 9 // 10
    return kept, _cut_note(length) if kept is not sections else ""


def _first_sentences(text: str, limit: int) -> str:
    """At most `limit` characters, up to the end of a sentence or a line; of a word, where there is none."""
    if len(text) <= limit:
        return text
    head = text[: max(limit, 1)]
    end = max((match.end() for match in _SENTENCE_END.finditer(head)), default=0)
    if end < limit // 2:
        end = max(end, head.rfind(" "))
    return head[: end or None].rstrip()


def _formless(answer: str, raw: str) -> ParsedBlueprint:
    """What becomes of an answer without a single section."""
    text = spoken_part(answer).strip()
    if not re.search(r"\w", text):
        why = "holds nothing but thoughts" if re.search(r"\w", answer) else "is empty"
        return ParsedBlueprint(raw, note=f"the designer's answer {why}, {_AS_WRITTEN}", found=False)
    if len(text) <= LONGEST_REFUSAL and _DECLINED.match(text):
        return ParsedBlueprint(raw, note=f"the designer declines, {_AS_WRITTEN}; it said: {_short(text)}", found=False)
    note = f"the designer's answer is not in the form of a blueprint and is used as it is; it began: {_short(text)}"
    kept = _first_sentences(text, MAX_BLUEPRINT)
    return ParsedBlueprint(kept, note=note if kept == text else f"{note}; {_cut_note(len(text))}", found=False)


_AS_WRITTEN = "so the wish is used as it was written"


def _cut_note(length: int) -> str:
    return f"the designer's answer has {length} characters and was cut to {MAX_BLUEPRINT}, at the end of a sentence"


def _short(text: str, length: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
