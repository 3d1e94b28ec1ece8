"""What dim-mini's MLLM is taught: dialogues about pictures, blueprints and captions, as tokens.

B pictures, N questions, L tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mindedit_core.backbones.hf_vlm import IGNORED, pad
from mindedit_core.backbones.llava_chat import read_chat
from mindedit_core.backbones.qwen_mini import END, IMAGE, START
from mindedit_core.blueprint import INSTRUCTION, SECTIONS, format_blueprint
from mindedit_core.scenes import Scene
from mindedit_core.scenes.blueprint import true_sections
from mindedit_core.scenes.edits import landmarks
from train import questions
from train.config import Training
from train.data import scenes, slot_labels
from train.dim_pictures import seen
from train.dim_tower import word_ids
from train.facts import part, whole
from train.mllm import by_length
from train.questions import Turn, wish
from train.turn_reader import change_labels, labels
from train.words import qwen_tokenizer


@dataclass(frozen=True, kw_only=True)
class Talk(Training):
    """readings: of a batch's pictures, how many also go with a blueprint and a caption that the reader asks about

    asked: questions about every picture;  designs: share of them that ask for a blueprint
    """

    readings: int = 4
    asked: int = 8
    designs: float = 0.5


GROUPS = 6  # of questions that are read at once
PROGRAMS = 0.1  # share of wishes of two parts
UNSAID = -100


# Dialogues -----------------------------------------------------------------------------------------------------------

DESIGN = "design:"


class Design(NamedTuple):
    """A turn that asks for a blueprint. after: the scene that it leads to"""

    question: str
    answer: str
    after: Scene


def any_wish(scene: Scene, random: np.random.Generator) -> tuple[str, Scene]:
    """What a person might want of this picture, and the picture after it."""
    parts = 2 if random.random() < PROGRAMS else 1
    while (drawn := wish(scene, random, parts)) is None:
        parts = 1
    words, afters = drawn
    return words, afters[-1]


def design(scene: Scene, random: np.random.Generator) -> Design:
    """The blueprint of a wish."""
    words, after = any_wish(scene, random)
    return Design(f"{DESIGN} {words}", format_blueprint(true_sections(words, scene, after)), after)


SORTS = {questions.at_place: 1, questions.beside: 2, questions.locate: 2, questions.refer: 4, questions.imagine: 3,
         questions.foresee: 12, questions.describe: 1}  # beside blueprints -> how often it is asked


def dialogue(scene: Scene, random: np.random.Generator, config: Talk) -> list[Turn]:
    others = np.array(list(SORTS.values())) * (1 - config.designs) / sum(SORTS.values())
    sorts = random.choice(len(SORTS) + 1, config.asked, p=[*others, config.designs])
    return [[*SORTS, design][sort](scene, random) for sort in sorts]


# Tokens --------------------------------------------------------------------------------------------------------------


def ids(text: str) -> list[int]:
    return qwen_tokenizer()(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


class Frame(NamedTuple):
    """Tokens of the dialogue: before the picture, between it and the user's text, after that text."""

    before: list[int]
    between: list[int]
    after: list[int]


@lru_cache(maxsize=1)
def frame() -> Frame:
    chat = read_chat(qwen_tokenizer(), IMAGE)
    around = ids(chat.before)
    place = around.index(qwen_tokenizer().convert_tokens_to_ids(IMAGE))
    return Frame(around[:place], around[place + 1:], ids(chat.after))


def encode(turn: Turn | Design) -> tuple[list[int], list[int]]:
    """input_ids and labels of what follows the picture: only the answer and its end token are learnt."""
    asked, said = ids(turn[0]) + frame().after, ids(turn[1]) + ids(END)
    return asked + said, [IGNORED] * len(asked) + said


@cache
def word_id(word: str) -> int:
    return word_ids((word,))[0]


def meant_slots(input_ids: Tensor, batch: list[Scene]) -> Tensor:
    """Which slot a token means: where it is a kind of which the scene has one thing, else UNSAID. int[N, L]."""
    slots = torch.full_like(input_ids, UNSAID)
    for row, scene in enumerate(batch):
        for slot in landmarks(scene):
            slots[row][input_ids[row] == word_id(scene.at(slot).kind)] = slot
    return slots


def copied(turn: Turn | Design) -> list[int]:
    """For each token of a turn the one of the wish that its first section says next, by its place in the turn."""
    asked, said = ids(turn[0]), ids(turn[1])
    places = [UNSAID] * (before_answer(turn) + len(said) + 2)
    if isinstance(turn, Design):
        wish, heading = len(ids(DESIGN)), before_answer(turn) + len(ids(f"1. {INSTRUCTION}:"))
        for step in range(len(asked) - wish):
            places[heading + step] = wish + step
    return places


def before_answer(turn: Turn | Design) -> int:
    """The last token before an answer: it belongs to the user's turn no more, so a painter never reads its states."""
    return len(ids(turn[0])) + len(frame().after) - 1


def recalled(turn: Turn | Design) -> list[int]:
    """For each token from the heading of a blueprint's fourth section on the one of `before_answer`, else UNSAID."""
    first = before_answer(turn)
    places = [UNSAID] * (first + len(ids(turn[1])) + 2)
    if isinstance(turn, Design):
        before = turn.answer[:turn.answer.index(heading := f"4. {SECTIONS[3]}:") + len(heading)]
        told = first + len(ids(before))
        places[told:-1] = [first] * (len(places) - 1 - told)
    return places


# Batches -------------------------------------------------------------------------------------------------------------


def batches(config: Talk, model_config):
    def batch_of(number: int) -> dict:
        batch = scenes(config.seed + 3, number, config.batch_size)
        random = np.random.default_rng([config.seed, number, 9])
        asked = asked_of(batch, [dialogue(scene, random, config) for scene in batch])
        few = batch[:config.readings]
        return {"pictures": seen(batch, model_config), "things": slot_labels(batch), "groups": asked,
                "told": told(few, [any_wish(scene, random) for scene in few]),
                "captions": captions([captions_of(scene, random) for scene in few])}
    return batch_of


def asked_of(batch: list[Scene], dialogues: list[list[Turn]]) -> list[dict]:
    """The questions about all pictures, in groups of like length."""
    turns = [(owner, *encode(turn), turn) for owner, said in enumerate(dialogues) for turn in said]
    return [group(batch, alike) for alike in by_length(turns, GROUPS)]


def group(batch: list[Scene], turns: list[tuple[int, list[int], list[int], Turn | Design]]) -> dict[str, Tensor]:
    """owner: int[N], whose picture;  input_ids, labels, meant, copied, recalled: int[N, L]

    changes: of its blueprints, what is to be known at which token
    """
    owners, rows, labels, said = zip(*turns, strict=True)
    input_ids = pad(rows, 0, "right")
    designs = [row for row, turn in enumerate(said) if isinstance(turn, Design)]
    pairs = [(batch[owners[row]], said[row].after) for row in designs]
    return {"owner": torch.tensor(owners), "input_ids": input_ids,
            "meant": meant_slots(input_ids, [batch[owner] for owner in owners]),
            "copied": pad([copied(turn) for turn in said], UNSAID, "right"),
            "recalled": pad([recalled(turn) for turn in said], UNSAID, "right"),
            "labels": pad(labels, IGNORED, "right"),
            "changes": {"row": torch.tensor(designs, dtype=torch.long),
                        "token": torch.tensor([before_answer(said[row]) for row in designs], dtype=torch.long),
                        "labels": change_labels(pairs)}}


def told(batch: list[Scene], wishes: list[tuple[str, Scene]]) -> dict:
    """Blueprints as the user's text behind each picture."""
    pairs = [(scene, after) for scene, (_, after) in zip(batch, wishes, strict=True)]
    rows = [ids(format_blueprint(true_sections(words, *pair))) for (words, _), pair in zip(wishes, pairs, strict=True)]
    return {"owner": torch.arange(len(rows)), "input_ids": pad(rows, 0, "right"), "mask": filled(rows),
            "labels": change_labels(pairs)}


def captions_of(scene: Scene, random: np.random.Generator) -> tuple[str, tuple[Scene, list[int], bool]]:
    """A whole caption or a part of one, and what it speaks of."""
    said = whole(scene) if random.random() < 0.6 else part(scene, random)
    return said.text, (scene, [slot for slot in said.slots if slot >= 0], -1 in said.slots)


def captions(drawn: list[tuple[str, tuple]]) -> dict:
    """Captions as a user's turn without a picture; mask: that turn's tokens, from behind "user\\n" to the end token."""
    rows = [text_turn(text) for text, _ in drawn]
    starts, mask = [row for row, _ in rows], [[0] * first + [1] * (len(row) - first) for row, first in rows]
    return {"input_ids": pad(starts, 0, "right"), "mask": pad(mask, 0, "right").bool(),
            "labels": labels([said for _, said in drawn])}


def text_turn(text: str) -> tuple[list[int], int]:
    """Tokens of a dialogue up to the end of the user's text, and where that text begins."""
    rendered = qwen_tokenizer().apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    row = ids(rendered)
    start, end = (qwen_tokenizer().convert_tokens_to_ids(token) for token in (START, END))
    first = len(row) - row[::-1].index(start) + 2  # behind the start token, the role and a newline
    return row[:row.index(end, first)], first


def filled(rows: list[list[int]]) -> Tensor:
    return pad([[1] * len(row) for row in rows], 0, "right").bool()
