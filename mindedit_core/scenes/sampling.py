"""Draws scenes and edits from a seed: the same seed and version give the same sample for ever."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..contracts import Region
from .draw import edit_mask, render
from .edits import OPERATIONS, Edit
from .grammar import caption, changed_slots, describe_change, describe_step
from .graph import BACKGROUNDS, COLOURS, EVALUATION_SEEDS, KINDS, OFFSETS, SIZES, VERSION, Scene, Thing
from .regions import edit_regions

THEN = ", then "


@dataclass(frozen=True)
class Sample:
    """One editing example. Pictures are drawn when first asked for."""

    source: Scene
    target: Scene
    instruction: str  # T_raw: vague, needs the picture
    optimized: str  # T_opt: precise
    operations: tuple[str, ...]
    between: tuple[Scene, ...] = ()  # of a program: what each step but the last leaves

    @property
    def operation(self) -> str:
        return self.operations[0] if len(self.operations) == 1 else "program"

    @cached_property
    def source_image(self) -> np.ndarray:
        return render(self.source)

    @cached_property
    def target_image(self) -> np.ndarray:
        return render(self.target)

    @cached_property
    def mask(self) -> np.ndarray:
        return edit_mask(self.source, self.target)

    @property
    def source_caption(self) -> str:
        return caption(self.source)

    @property
    def target_caption(self) -> str:
        return caption(self.target)

    @property
    def steps(self) -> tuple[str, ...]:
        """What each step of a program changes, in the scene that the one before left; () for a single edit."""
        scenes = (self.source, *self.between, self.target)
        return tuple(describe_step(*pair) for pair in pairwise(scenes)) if self.between else ()

    @property
    def regions(self) -> tuple[Region, ...]:
        """Where the edit happens, in thousandths of the picture; see `regions.edit_regions`."""
        return edit_regions(self.source, self.target)


def draw_thing(random: np.random.Generator, slot: int, colour: str | None = None) -> Thing:
    size = str(random.choice(SIZES))
    offset = tuple(int(value) for value in random.choice(OFFSETS[size], 2))
    return Thing(slot, str(random.choice(KINDS)), colour or str(random.choice(COLOURS)), size, offset)


def draw_scene(random: np.random.Generator) -> Scene:
    """1 to 5 things; one scene in five has one colour for all things but one, so that there is an odd one out."""
    count = int(random.integers(1, 6))
    slots = [int(slot) for slot in random.choice(9, count, replace=False)]
    colours: list[str | None] = [None] * count
    if count >= 3 and random.random() < 0.2:
        shared, odd = (str(colour) for colour in random.choice(COLOURS, 2, replace=False))
        colours = [odd, *[shared] * (count - 1)]
    things = [draw_thing(random, slot, colour) for slot, colour in zip(slots, colours, strict=True)]
    return Scene(str(random.choice(BACKGROUNDS)), tuple(things))


def draw_edit(random: np.random.Generator, scene: Scene, operation: str) -> tuple[str, Scene] | None:
    """One instruction of this operation: its wording first, so that rare wordings are heard as often as common ones."""
    by_wording: dict[str, list[Edit]] = {}
    for edit in OPERATIONS[operation](scene):
        by_wording.setdefault(edit.wording, []).append(edit)
    if not by_wording:
        return None
    edits = by_wording[sorted(by_wording)[random.integers(len(by_wording))]]
    edit = edits[random.integers(len(edits))]
    return edit.instruction, jittered(random, scene, edit.outcome())


def jittered(random: np.random.Generator, before: Scene, after: Scene) -> Scene:
    """Things that are new in their slot get jitter of their own."""
    for thing in after.things:
        if before.at(thing.slot) is None:
            offset = tuple(int(value) for value in random.choice(OFFSETS[thing.size], 2))
            after = after.put(Thing(thing.slot, thing.kind, thing.colour, thing.size, offset))
    return after


def draw_program(random: np.random.Generator, source: Scene, operations: list[str]) -> tuple[str, list[Scene]] | None:
    """Edits of these operations one after the other: the instruction, and the scene that each of them leaves."""
    words, scenes = [], [source]
    for operation in operations:
        edit = draw_edit(random, scenes[-1], operation)
        if edit is None:
            return None
        words.append(edit[0])
        scenes.append(edit[1])
    changes = len(changed_slots(source, scenes[-1])) + (source.background != scenes[-1].background)
    return (THEN.join(words), scenes[1:]) if changes >= min(len(operations), 2) else None


def sample(seed: int, *, version: int = VERSION, operation: str | None = None, steps: int = 1) -> Sample:
    """Sample number `seed` of the world.

    seed: training below 2**31, evaluation from there on; the two share no scene graph.
    operation: one of OPERATIONS; equally frequent if not given
    steps: 1, or 2 to 4 for a program of different operations
    Raises ValueError for an unknown version or operation, or another number of steps.
    """
    if version != VERSION:
        raise ValueError(f"the world has version {VERSION}, got {version}; use that one")
    if operation not in (None, *OPERATIONS) or steps not in ((1,) if operation else (1, 2, 3, 4)):
        known = ", ".join(OPERATIONS)
        raise ValueError(f"either operation is one of {known}, or steps is 1 to 4, got {operation}, {steps}")
    random = np.random.default_rng([version, seed])
    mine = seed >= EVALUATION_SEEDS
    names = [str(name) for name in random.choice(list(OPERATIONS), steps, replace=False)]
    operations = [operation] if operation else names
    while True:
        source = draw_scene(random)
        if source.for_evaluation != mine:
            continue
        for _ in range(6):
            edit = draw_program(random, source, operations)
            if edit and edit[1][-1].for_evaluation == mine:
                *between, target = edit[1]
                optimized = describe_change(source, target)
                return Sample(source, target, edit[0], optimized, tuple(operations), tuple(between))
