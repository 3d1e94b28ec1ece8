"""Captions as lists of facts: whole scenes or parts of them, in any order, with labels of what each fact says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mindedit_core.scenes import COLOURS, KINDS, SIZES, Scene
from mindedit_core.scenes.grammar import say
from train.words import tokenizer

LENGTH = 77  # CLIP's positions


@dataclass(frozen=True)
class Caption:
    """text, and per fact the slot it speaks of (-1: the background)."""

    text: str
    slots: tuple[int, ...]


def whole(scene: Scene) -> Caption:
    """Everything, in reading order."""
    slots = [thing.slot for thing in scene.things]
    return caption_of(scene, [*slots, -1])


def part(scene: Scene, random: np.random.Generator) -> Caption:
    """Some facts in random order, emptiness among them; the background comes last, and is left out at times."""
    count = int(random.integers(1, 5))
    weights = np.array([3.0 if scene.at(slot) else 1.0 for slot in range(9)])
    slots = random.choice(9, count, replace=False, p=weights / weights.sum()).tolist()
    return caption_of(scene, [*slots, -1] if random.random() < 0.9 else slots)


def caption_of(scene: Scene, slots: list[int]) -> Caption:
    facts = [say(slot, scene.at(slot)) if slot >= 0 else f"{scene.background} background" for slot in slots]
    return Caption(", ".join(facts), tuple(slots))


def tokens(texts: list[str]) -> dict[str, Tensor]:
    """input_ids and attention_mask, int[B, 77], as CLIP takes them."""
    return dict(tokenizer()(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt",
                            return_token_type_ids=False))


def fact_ends(input_ids: Tensor) -> Tensor:
    """Where the last token of each fact stands (before a comma or the end): bool[B, L]."""
    words = tokenizer()
    comma = words("a,", add_special_tokens=False)["input_ids"][-1]  # a comma that follows a word
    ends = (input_ids[:, 1:] == comma) | (input_ids[:, 1:] == words.eos_token_id)
    return torch.nn.functional.pad(ends, (0, 1))


def fact_labels(batch: list[Scene], captions: list[Caption]) -> dict[str, Tensor]:
    """Per fact, in order of the whole batch: place (9 = background), kind (12 = nothing), colour, size; -100 unsaid."""
    rows = [(slot, scene.at(slot) if slot >= 0 else None) for scene, said in zip(batch, captions, strict=True)
            for slot in said.slots]
    kind = [-100 if slot < 0 else len(KINDS) if thing is None else KINDS.index(thing.kind) for slot, thing in rows]
    colour = [COLOURS.index(thing.colour) if thing else -100 for _, thing in rows]
    size = [SIZES.index(thing.size) if thing else -100 for _, thing in rows]
    place = [slot if slot >= 0 else 9 for slot, _ in rows]
    return {name: torch.tensor(values) for name, values in
            {"place": place, "kind": kind, "colour": colour, "size": size}.items()}
