"""The vague language of the world: every instruction a person might give about a scene, with its one right outcome.

Conventions. What an instruction does not say is kept: colour and size when a thing is replaced or moved, kind when it
is recoloured. A new thing of unsaid size is medium. "Bigger" and "smaller" mean one size step. "The odd one out"
differs in colour from all others, which share theirs (three things or more). A neighbour is one step away. Steps of a
program are read one after the other, each in the scene that the one before left.
A phrase is used only where it fits exactly one thing, so that every instruction has exactly one outcome:
`instructions(scene)` enumerates them all, and a test proves that no sentence has two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from .graph import COLOURS, KINDS, MOST_THINGS, PLACES, SIZES, STEPS, Scene, Thing, neighbour


class Edit(NamedTuple):
    """A wording, the words that fill it, and what makes the scene it leads to (made only when asked for)."""

    wording: str
    words: tuple[str, ...]
    outcome: Callable[[], Scene]

    @property
    def instruction(self) -> str:
        return self.wording.format(*self.words)


SIDES = {"left": "left of", "right": "right of", "upper": "above", "lower": "below"}
RELATIONS = {"left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
             "above": ("above", "over"), "below": ("below", "under")}
GROUND_WISHES = {"grass": ("take it to a green meadow", "let it be summer"), "sky": ("lift it up into the clouds",),
                 "beach": ("take it to the seaside", "let it be a day by the sea"),
                 "snow": ("let it be winter", "cover the ground with snow"),
                 "night": ("let night fall", "switch off the daylight"), "sunset": ("let the evening come",)}
GROUND_SWITCHES = {("grass", "snow"): "swap the season", ("sky", "night"): "swap day and night",
                   ("beach", "sunset"): "trade the coast for the evening or the evening for the coast"}


def only(things: list[Thing]) -> Thing | None:
    return things[0] if len(things) == 1 else None


def odd_one_out(scene: Scene) -> Thing | None:
    """The one thing whose colour differs from all others', which share theirs."""
    if len(scene.things) < 3:
        return None
    odd = [thing for thing in scene.things if thing.colour not in {t.colour for t in scene.things if t != thing}]
    return only(odd) if len({thing.colour for thing in scene.things}) == 2 else None


def landmarks(scene: Scene) -> dict[int, str]:
    """Things that their kind alone names: slot -> "the cat"."""
    kinds = [thing.kind for thing in scene.things]
    return {thing.slot: f"the {thing.kind}" for thing in scene.things if kinds.count(thing.kind) == 1}


def references(scene: Scene, thing: Thing) -> list[str]:
    """Every phrase that fits this thing and no other."""
    others = [other for other in scene.things if other != thing]
    phrases = [f"the thing at the {PLACES[thing.slot]}"]
    if all(other.kind != thing.kind for other in others):
        phrases.append(f"the {thing.kind}")
    elif all((other.kind, other.colour) != (thing.kind, thing.colour) for other in others):
        phrases.append(f"the {thing.colour} {thing.kind}")
    if others and all(other.colour != thing.colour for other in others):
        phrases.append(f"the {thing.colour} thing")
    if odd_one_out(scene) == thing:
        phrases.append("the odd one out")
    return phrases + by_size(thing, others) + by_landmark(scene, thing)


def by_size(thing: Thing, others: list[Thing]) -> list[str]:
    rank = SIZES.index
    if others and all(rank(other.size) > rank(thing.size) for other in others):
        return ["the smallest one"]
    if others and all(rank(other.size) < rank(thing.size) for other in others):
        return ["the biggest one"]
    return []


def by_landmark(scene: Scene, thing: Thing) -> list[str]:
    return [f"the thing {words} {name}" for slot, name in landmarks(scene).items() if slot != thing.slot
            for relation, wordings in RELATIONS.items() if neighbour(slot, relation) == thing.slot
            for words in wordings]


def named(scene: Scene) -> Iterator[tuple[Thing, str]]:
    for thing in scene.things:
        for phrase in references(scene, thing):
            yield thing, phrase


def remove(scene: Scene) -> Iterator[Edit]:
    if len(scene.things) < 2:
        return
    for thing, it in named(scene):
        for wording in ("get rid of {}", "remove {}", "make {} disappear"):
            yield Edit(wording, (it,), partial(scene.without, thing.slot))


def changed(scene: Scene, thing: Thing, **look: str) -> Callable[[], Scene]:
    """The scene with this thing's kind, colour or size changed; its jitter is clipped to its size."""
    return lambda: scene.put(replace(thing, **look).with_size(look.get("size", thing.size)))


def recolour(scene: Scene) -> Iterator[Edit]:
    for thing, it in named(scene):
        for colour in COLOURS:
            if colour != thing.colour:
                yield Edit("paint {} {}", (it, colour), changed(scene, thing, colour=colour))
        for slot, name in landmarks(scene).items():
            model = scene.at(slot)
            if model.colour != thing.colour:
                for wording in ("give {} the colour of {}", "paint {} like {}"):
                    yield Edit(wording, (it, name), changed(scene, thing, colour=model.colour))
    if odd := odd_one_out(scene):
        shared = next(thing.colour for thing in scene.things if thing != odd)
        yield Edit("make the odd one out match the others", (), changed(scene, odd, colour=shared))


def resize(scene: Scene) -> Iterator[Edit]:
    for thing, it in named(scene):
        rank = SIZES.index(thing.size)
        if rank < 2:
            yield Edit("make {} bigger", (it,), changed(scene, thing, size=SIZES[rank + 1]))
            yield Edit("blow {} up to full size", (it,), changed(scene, thing, size="large"))
        if rank > 0:
            yield Edit("make {} smaller", (it,), changed(scene, thing, size=SIZES[rank - 1]))
            yield Edit("shrink {} all the way", (it,), changed(scene, thing, size="small"))
        for slot, name in landmarks(scene).items():
            if scene.at(slot).size != thing.size:
                yield Edit("make {} as big as {}", (it, name), changed(scene, thing, size=scene.at(slot).size))


def replace_kind(scene: Scene) -> Iterator[Edit]:
    for thing, it in named(scene):
        for kind in KINDS:
            if kind != thing.kind:
                yield Edit("turn {} into a {}", (it, kind), changed(scene, thing, kind=kind))
                yield Edit("swap {} for a {}", (it, kind), changed(scene, thing, kind=kind))
        for side, relation in SIDES.items():
            model = scene.at(neighbour(thing.slot, relation))
            if model and model.kind != thing.kind:
                words = (it, side)
                yield Edit("turn {} into what its {} neighbour is", words, changed(scene, thing, kind=model.kind))


def moved(scene: Scene, thing: Thing, slot: int) -> Callable[[], Scene]:
    return lambda: scene.without(thing.slot).put(replace(thing, slot=slot))


def free(scene: Scene, slot: int | None) -> bool:
    return slot is not None and scene.at(slot) is None


def move(scene: Scene) -> Iterator[Edit]:
    for thing, it in named(scene):
        for slot, place in enumerate(PLACES):
            if free(scene, slot):
                yield Edit("move {} to the {}", (it, place), moved(scene, thing, slot))
        for direction, relation in zip(("left", "right", "up", "down"), STEPS, strict=True):
            if free(scene, slot := neighbour(thing.slot, relation)):
                yield Edit("move {} one step {}", (it, direction), moved(scene, thing, slot))
        for mark, name in landmarks(scene).items():
            for relation, wordings in RELATIONS.items() if mark != thing.slot else ():
                if free(scene, slot := neighbour(mark, relation)):
                    for words in wordings:
                        yield Edit("put {} {} {}", (it, words, name), moved(scene, thing, slot))


def add(scene: Scene) -> Iterator[Edit]:
    if len(scene.things) >= MOST_THINGS:
        return
    for thing, it in named(scene):
        for relation, (plain, long) in RELATIONS.items():
            if not free(scene, slot := neighbour(thing.slot, relation)):
                continue
            yield Edit("add a copy of {} {} it", (it, long), partial(scene.put, replace(thing, slot=slot)))
            for colour in COLOURS:
                for kind in KINDS:
                    new = partial(Thing, slot, kind, colour, "medium")
                    yield Edit("add a {} {} {} {}", (colour, kind, plain, it), lambda new=new: scene.put(new()))


def background(scene: Scene) -> Iterator[Edit]:
    for name, wishes in GROUND_WISHES.items():
        if name != scene.background:
            for words in wishes:
                yield Edit(words, (), partial(replace, scene, background=name))
    for pair, words in GROUND_SWITCHES.items():
        if scene.background in pair:
            other = pair[1 - pair.index(scene.background)]
            yield Edit(words, (), partial(replace, scene, background=other))


OPERATIONS = {"add": add, "remove": remove, "replace": replace_kind, "recolour": recolour, "resize": resize,
              "move": move, "background": background}


def instructions(scene: Scene) -> Iterator[tuple[str, Edit]]:
    """Every (operation, edit) that the world can say about a scene."""
    for name, operation in OPERATIONS.items():
        for edit in operation(scene):
            yield name, edit
