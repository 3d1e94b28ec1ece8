"""Where an edit happens, as region lines of T_opt tell it: boxes in thousandths of the picture, or the background."""

from __future__ import annotations

from collections.abc import Iterable

from ..contracts import MAX_COORDINATE, Region
from .grammar import changed_slots
from .graph import PICTURE_SIZE, Scene, Thing, box_of

Pixels = tuple[float, float, float, float]
CORE = 0.7  # of a thing's box, per side: what surely is thing, and no corner of the old background


def edit_regions(source: Scene, target: Scene) -> tuple[Region, ...]:
    """Per changed slot the box around what was and what comes (a move has two), "background" where that changes.

    A changed background is told with what stays in front of it: the cores of things that no box covers.
    """
    changed = changed_slots(source, target)
    boxes = [in_thousandths("box", around(source.at(slot), target.at(slot))) for slot in changed]
    if source.background == target.background:
        return tuple(boxes)
    kept = [in_thousandths("keep", core(thing)) for thing in source.things if thing.slot not in changed]
    return (*boxes, Region("background"), *kept)


def around(*things: Thing | None) -> Pixels:
    """The box around all of these; None is left out."""
    edges = list(zip(*(box_of(thing) for thing in things if thing), strict=True))
    return min(edges[0]), min(edges[1]), max(edges[2]), max(edges[3])


def core(thing: Thing) -> Pixels:
    x0, y0, x1, y1 = box_of(thing)
    inset = (1 - CORE) / 2 * (x1 - x0)
    return x0 + inset, y0 + inset, x1 - inset, y1 - inset


def in_thousandths(kind: str, box: Iterable[float]) -> Region:
    return Region(kind, tuple(float(round(MAX_COORDINATE * edge / PICTURE_SIZE)) for edge in box))
