"""The true blueprint of an edit in the world: the five sections of Draw-In-Mind in the world's precise language."""

from __future__ import annotations

from ..blueprint import SECTIONS, format_blueprint
from .grammar import changed_slots, describe_change, say
from .graph import PLACES, Scene
from .sampling import Sample


def true_sections(instruction: str, source: Scene, target: Scene) -> dict[str, str]:
    """Section by section; every text in them follows from the two scenes alone."""
    layout = [*(located(source, thing.slot) for thing in source.things), f"{source.background} background"]
    things = [say(thing.slot, thing) for thing in source.things] or ["nothing"]
    changes = (edit_area(source, target), describe_change(source, target))
    return dict(zip(SECTIONS, (instruction, ", ".join(layout), ", ".join(things), *changes), strict=True))


def located(scene: Scene, slot: int) -> str:
    """What is at a place, without its size and colour."""
    thing = scene.at(slot)
    return f"{thing.kind if thing else 'nothing'} at {PLACES[slot]}"


def edit_area(source: Scene, target: Scene) -> str:
    """What the edit touches, as it is before: things, then empty places, then the background if that changes."""
    slots = sorted(changed_slots(source, target), key=lambda slot: (source.at(slot) is None, slot))
    ground = [f"{source.background} background"] * (source.background != target.background)
    return ", ".join([*(located(source, slot) for slot in slots), *ground])


def true_blueprint(sample: Sample) -> str:
    """What a designer without fault would write for this sample."""
    return format_blueprint(true_sections(sample.instruction, sample.source, sample.target))
