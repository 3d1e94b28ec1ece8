"""The true blueprint of an edit in the world: the five sections of Draw-In-Mind in the world's precise language."""

from __future__ import annotations

from ..blueprint import SECTIONS, format_blueprint
from .grammar import changed_slots, describe_change
from .graph import PLACES, Scene
from .sampling import Sample


def true_sections(instruction: str, source: Scene, target: Scene) -> dict[str, str]:
    """Section by section; every text in them follows from the two scenes alone."""
    layout = [*(f"{thing.kind} at {PLACES[thing.slot]}" for thing in source.things), f"{source.background} background"]
    looks = [" ".join(thing.look) for thing in source.things] or ["nothing"]
    changes = (edit_area(source, target), describe_change(source, target))
    return dict(zip(SECTIONS, (instruction, ", ".join(layout), ", ".join(looks), *changes), strict=True))


def edit_area(source: Scene, target: Scene) -> str:
    """The places that change, and the background if that does."""
    places = [PLACES[slot] for slot in changed_slots(source, target)]
    return ", ".join(places + ["background"] * (source.background != target.background))


def true_blueprint(sample: Sample) -> str:
    """What a designer without fault would write for this sample."""
    return format_blueprint(true_sections(sample.instruction, sample.source, sample.target))
