"""Scene graphs of the procedural world: which thing stands in which slot of a 3x3 layout, on which background.

Axis legend for the whole folder: pictures are uint8[128, 128, 3]; a slot is a 42x42 window of such a picture.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

VERSION = 1
KINDS = ("circle", "square", "triangle", "star", "heart", "tree", "house", "car", "fish", "cat", "cup", "flower")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("grass", "sky", "beach", "snow", "night", "sunset")
PLACES = ("top left", "top middle", "top right", "middle left", "middle", "middle right", "bottom left",
          "bottom middle", "bottom right")
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # relation -> (row, column)
PICTURE_SIZE = 128
SLOT_SIZE = 42
PIXELS = {"small": 20, "medium": 28, "large": 38}  # edge of a thing's box in pixels
OFFSETS = {"small": (-4, -2, 0, 2, 4), "medium": (-4, -2, 0, 2, 4), "large": (-2, 0, 2)}  # jitter in pixels, per axis
MOST_THINGS = 5
EVALUATION_SEEDS = 2**31  # seeds below draw training scenes, seeds from here on evaluation scenes
SHARES = 8  # one scene graph in eight belongs to evaluation


@dataclass(frozen=True, order=True)
class Thing:
    """One object: a slot in 0..8 (row-major), its look, and its jitter in pixels from the slot's centre."""

    slot: int
    kind: str
    colour: str
    size: str
    offset: tuple[int, int] = (0, 0)

    @property
    def look(self) -> tuple[str, str, str]:
        return self.size, self.colour, self.kind

    def with_size(self, size: str) -> Thing:
        """Resize in place; jitter that would leave the slot is clipped."""
        reach = max(OFFSETS[size])
        clipped = tuple(max(-reach, min(reach, value)) for value in self.offset)
        return replace(self, size=size, offset=clipped)


@dataclass(frozen=True)
class Scene:
    """A background and 0 to 5 things in different slots, sorted by slot."""

    background: str
    things: tuple[Thing, ...]

    def __post_init__(self):
        object.__setattr__(self, "things", tuple(sorted(self.things)))
        slots = [thing.slot for thing in self.things]
        if len(set(slots)) != len(slots):
            raise ValueError(f"a slot holds at most one thing, got slots {slots}; move or remove one of them")

    def at(self, slot: int | None) -> Thing | None:
        return next((thing for thing in self.things if thing.slot == slot), None)

    def without(self, slot: int) -> Scene:
        return replace(self, things=tuple(thing for thing in self.things if thing.slot != slot))

    def put(self, thing: Thing) -> Scene:
        return replace(self, things=(*self.without(thing.slot).things, thing))

    @property
    def graph(self) -> tuple:
        """What the picture shows, without jitter: equal graphs are the same scene."""
        return self.background, tuple((thing.slot, *thing.look) for thing in self.things)

    @property
    def for_evaluation(self) -> bool:
        return zlib.crc32(repr(self.graph).encode()) % SHARES == 0


def neighbour(slot: int, relation: str) -> int | None:
    """The slot one step away, or None at the edge of the layout."""
    row, column = slot // 3 + STEPS[relation][0], slot % 3 + STEPS[relation][1]
    return row * 3 + column if 0 <= row < 3 and 0 <= column < 3 else None


def slot_corner(slot: int) -> tuple[int, int]:
    """Left and top pixel of a slot's window."""
    return 1 + SLOT_SIZE * (slot % 3), 1 + SLOT_SIZE * (slot // 3)


def box_of(thing: Thing) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a thing's box in pixels (right and bottom exclusive)."""
    left, top = slot_corner(thing.slot)
    margin = (SLOT_SIZE - PIXELS[thing.size]) // 2
    x, y = left + margin + thing.offset[0], top + margin + thing.offset[1]
    return x, y, x + PIXELS[thing.size], y + PIXELS[thing.size]
