"""Questions about a picture with their answers: what the mini's language model is brought up on before MIND-Edit.

Every question is asked of the picture alone; none sees another's answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from mindedit_core.contracts import Region
from mindedit_core.prompts import ANSWER_PREFIX, KEEP_PREFIX, REGION_PREFIX, STEP_PREFIX, format_answer
from mindedit_core.scenes import OPERATIONS, PLACES, Scene, Thing, caption
from mindedit_core.scenes.edits import RELATIONS, landmarks, references
from mindedit_core.scenes.grammar import changed_slots, describe_change, describe_step, say
from mindedit_core.scenes.graph import neighbour
from mindedit_core.scenes.regions import around, edit_regions, in_thousandths
from mindedit_core.scenes.sampling import draw_program

Turn = tuple[str, str]  # question, answer
FORM = f"{STEP_PREFIX} {ANSWER_PREFIX} {REGION_PREFIX} background {KEEP_PREFIX} 0 1 2 3 4 5 6 7 8 9"


def describe(scene: Scene, random: np.random.Generator) -> Turn:
    return "describe the picture", caption(scene)


def at_place(scene: Scene, random: np.random.Generator) -> Turn:
    slot = int(random.integers(9)) if random.random() < 0.3 else any_thing(scene, random).slot
    return f"what is at the {PLACES[slot]}", answer(slot, scene.at(slot))


def beside(scene: Scene, random: np.random.Generator) -> Turn:
    """What stands next to a thing that its kind names."""
    marks = landmarks(scene)
    steps = [(name, words[random.integers(2)], slot) for mark, name in marks.items()
             for relation, words in RELATIONS.items() if (slot := neighbour(mark, relation)) is not None]
    if not steps:
        return refer(scene, random)
    filled = [step for step in steps if scene.at(step[2])]
    name, words, slot = (filled or steps)[random.integers(len(filled or steps))]
    return f"what is {words} {name}", answer(slot, scene.at(slot))


def refer(scene: Scene, random: np.random.Generator) -> Turn:
    """Which thing a phrase means."""
    thing, phrase = meant(scene, random)
    return f"where is {phrase}", answer(thing.slot, thing)


def locate(scene: Scene, random: np.random.Generator) -> Turn:
    """The bare place of what a phrase means.

    `refer` answers with size and colour before the place, and from these the place can be told without the phrase.
    """
    thing, phrase = meant(scene, random)
    return f"{phrase} is at the", PLACES[thing.slot]


def meant(scene: Scene, random: np.random.Generator) -> tuple[Thing, str]:
    """A thing and a phrase for it: half the time its kind alone, and its place only where nothing else tells it."""
    marks = landmarks(scene)
    if marks and random.random() < 0.5:
        slot = list(marks)[random.integers(len(marks))]
        return scene.at(slot), marks[slot]
    thing = any_thing(scene, random)
    phrases = references(scene, thing)  # the first one says the place
    return thing, phrases[random.integers(min(1, len(phrases) - 1), len(phrases))]


def box(scene: Scene, random: np.random.Generator) -> Turn:
    """Where a thing lies, in thousandths of the picture."""
    thing, phrase = meant(scene, random)
    return f"which region is {phrase}", lines([in_thousandths("box", around(thing))])


def wish(scene: Scene, random: np.random.Generator, parts: int = 1) -> tuple[str, list[Scene]] | None:
    """What a person might want of this picture, in so many parts, and the picture after each; None: none was found."""
    operations = [str(name) for name in random.choice(list(OPERATIONS), parts, replace=False)]
    drawn = draw_program(random, scene, operations)
    return None if drawn is None or drawn[1][-1].for_evaluation else drawn


def imagine(scene: Scene, random: np.random.Generator) -> Turn:
    """Where a wish would change the picture, or what it would leave at a place: what its words mean is learnt here."""
    drawn = wish(scene, random)
    if drawn is None:
        return refer(scene, random)
    words, (after,) = drawn
    slots = changed_slots(scene, after)
    if random.random() < 0.4:
        return f"{words}, where is the change", ", ".join(PLACES[slot] for slot in slots) or "background"
    if not slots or random.random() < 0.1:
        return f"{words}, then what is the background", f"{after.background} background"
    slot = slots[random.integers(len(slots))] if random.random() < 0.85 else int(random.integers(9))
    return f"{words}, then what is at the {PLACES[slot]}", answer(slot, after.at(slot))


def foresee(scene: Scene, random: np.random.Generator) -> Turn:
    """Everything that a wish would change, as the picture would then show it: where and what in one answer."""
    drawn = wish(scene, random)
    if drawn is None:
        return refer(scene, random)
    words, (after,) = drawn
    return f"{words}, what changes", describe_step(scene, after)


def mark(scene: Scene, random: np.random.Generator) -> Turn:
    """The regions of the picture that a wish would change."""
    drawn = wish(scene, random)
    if drawn is None:
        return box(scene, random)
    words, (after,) = drawn
    return f"{words}, which region", lines(edit_regions(scene, after))


def follow(scene: Scene, random: np.random.Generator) -> Turn:
    """A wish of two to four parts, followed step by step, and everything that has changed in the end."""
    drawn = wish(scene, random, parts=int(random.integers(2, 5)))
    if drawn is None:
        return foresee(scene, random)
    words, scenes = drawn
    steps = [describe_step(*pair) for pair in pairwise([scene, *scenes])]
    told = format_answer(describe_change(scene, scenes[-1]), (), steps)
    return f"{words}, step by step", told.replace(f"{ANSWER_PREFIX} ", "")


def lines(regions: Iterable[Region]) -> str:
    return format_answer("", regions).partition("\n")[2]


def repeat(scene: Scene, random: np.random.Generator) -> Turn:
    """Words to say again, of those that T_opt and its regions are framed with.

    What a model has never said LoRA cannot teach it well: the text head is frozen by then.
    """
    said = " ".join(str(word) for word in random.choice(FORM.split(), 4))
    return f"please {said}", said


def answer(slot: int, thing: Thing | None) -> str:
    return say(slot, thing)


def any_thing(scene: Scene, random: np.random.Generator) -> Thing:
    return scene.things[random.integers(len(scene.things))]


SORTS = {at_place: 1, beside: 1, locate: 1, refer: 1, box: 1, imagine: 1, foresee: 8, mark: 2, follow: 5, repeat: 0.5,
         describe: 1}  # -> how often it is asked


def questions(scene: Scene, random: np.random.Generator, count: int) -> list[Turn]:
    """Questions of every sort, most of them about wishes."""
    share = np.array(list(SORTS.values()))
    return [list(SORTS)[sort](scene, random) for sort in random.choice(len(SORTS), count, p=share / share.sum())]
