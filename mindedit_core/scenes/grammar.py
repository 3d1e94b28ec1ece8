"""The precise language of the world: what a scene, or a change, says in words; parsed back into order-free facts.

    description := fact {", " fact}
    fact        := SIZE COLOUR KIND "at" PLACE | "nothing at" PLACE | BACKGROUND "background"
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .graph import BACKGROUNDS, COLOURS, KINDS, PLACES, SIZES, Scene, Thing

Facts = dict[str, tuple[str, str, str] | str | None]  # place -> look, or None for nothing; "background" -> its name

_THING = re.compile(rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(KINDS)}) at ({'|'.join(PLACES)})")
_NOTHING = re.compile(rf"nothing at ({'|'.join(PLACES)})")
_GROUND = re.compile(rf"({'|'.join(BACKGROUNDS)}) background")


@dataclass(frozen=True)
class Verdict:
    """A judge's answer; `problems` says what was wrong, one sentence each."""

    ok: bool
    problems: tuple[str, ...] = ()

    def __str__(self):
        return "success" if self.ok else "failure: " + "; ".join(self.problems)


def say(slot: int, thing: Thing | None) -> str:
    """One fact about a slot."""
    return f"{' '.join(thing.look)} at {PLACES[slot]}" if thing else f"nothing at {PLACES[slot]}"


def caption(scene: Scene) -> str:
    """Everything a scene shows."""
    return ", ".join([*(say(thing.slot, thing) for thing in scene.things), f"{scene.background} background"])


def changed_slots(source: Scene, target: Scene) -> list[int]:
    looks = [{thing.slot: thing.look for thing in scene.things} for scene in (source, target)]
    return [slot for slot in range(9) if looks[0].get(slot) != looks[1].get(slot)]


def describe_change(source: Scene, target: Scene) -> str:
    """T_opt: what every changed slot shows afterwards, and the background as context."""
    facts = [say(slot, target.at(slot)) for slot in changed_slots(source, target)]
    return ", ".join([*facts, f"{target.background} background"])


def describe_step(source: Scene, target: Scene) -> str:
    """One step of a program: as T_opt, but the background is told only where it changes."""
    said = describe_change(source, target)
    kept = f", {target.background} background"
    return said.removesuffix(kept) if target.background == source.background else said


def parse(description: str) -> Facts:
    """Facts of a description in any order.

    >>> parse("night background, nothing at middle, small red cat at top left")
    {'background': 'night', 'middle': None, 'top left': ('small', 'red', 'cat')}

    Raises ValueError if a part is no fact or two parts speak of the same place.
    """
    facts: Facts = {}
    for part in description.strip().rstrip(".").split(","):
        name, value = _parse_fact(" ".join(part.split()))
        if name in facts:
            raise ValueError(f"each place is described once, got '{name}' twice in '{description}'")
        facts[name] = value
    return facts


def _parse_fact(part: str) -> tuple[str, tuple[str, str, str] | str | None]:
    if match := _THING.fullmatch(part):
        return match[4], (match[1], match[2], match[3])
    if match := _NOTHING.fullmatch(part):
        return match[1], None
    if match := _GROUND.fullmatch(part):
        return "background", match[1]
    raise ValueError(f"a fact reads 'SIZE COLOUR KIND at PLACE', 'nothing at PLACE' or 'NAME background', got '{part}'")


def judge_text(text: str, sample) -> Verdict:
    """Text judge: do the facts of `text` equal those of the sample's T_opt, in any order? Unparsable is wrong."""
    wanted = parse(sample.optimized)
    try:
        said = parse(text)
    except ValueError as error:
        return Verdict(False, (str(error),))
    wrong = [name for name in {**wanted, **said} if name not in wanted or said.get(name, "unsaid") != wanted[name]]
    return Verdict(not wrong, tuple(f"{name}: said {said.get(name, 'unsaid')}, wanted {wanted.get(name, 'unsaid')}"
                                    for name in wrong))
