"""Second stage of dim-mini's MLLM: tower and language model learn to talk about pictures and to write blueprints.

    python -m train.dim_mllm                         # 60 minutes on one core of a small CPU for 1,200 steps

The language model begins as the mini's (train.dim_tower.build). Every sample is a dialogue about one picture: what is
where, which thing a phrase means, what a wish would change, and the blueprint of a wish in its five sections
(mindedit_core.blueprint). Beside the answers, a reader that is thrown away afterwards asks the states of the user's
turn what a blueprint, or a caption without a picture, says of every place (train.turn_reader). It never sees a vague
wish: what the states hold of such a one is what reading it gave. From here on the MLLM stays frozen, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from mindedit_core.backbones.hf_vlm import IGNORED, pad
from mindedit_core.backbones.llava_chat import read_chat
from mindedit_core.backbones.mini_tokenizer import save_tokenizer
from mindedit_core.backbones.qwen_mini import END, IMAGE, START
from mindedit_core.backbones.qwen_positions import turn_positions
from mindedit_core.blueprint import format_blueprint
from mindedit_core.model_files import DIM_FOLDER, save_model
from mindedit_core.scenes import Scene
from mindedit_core.scenes.blueprint import true_sections
from mindedit_core.scenes.edits import landmarks
from train import questions
from train.config import Training, read_config
from train.data import scenes, slot_labels
from train.dim_pictures import PLACES, image_features, see_together, seen
from train.dim_tower import build, word_ids, word_loss
from train.facts import part, whole
from train.loop import Losses, Scores, fit, on_device
from train.mllm import by_length
from train.questions import Turn, wish
from train.stages import provenance, run_folder, save_beside, seeded, steps_before, warm
from train.turn_reader import TurnReader, change_labels, labels, turn_accuracy, turn_loss
from train.words import qwen_tokenizer


@dataclass(frozen=True, kw_only=True)
class Talk(Training):
    """readings: of a batch's pictures, how many also go with a blueprint and a caption that the reader asks about"""

    readings: int = 4


PRESETS = {"mini": Talk(steps=1300, learning_rate=6e-4, batch_size=16, ema=0.995, decay=0.5, weights=DIM_FOLDER)}
QUESTIONS, GROUPS = 8, 6  # a picture; of questions that are read at once
PROGRAMS = 0.1  # share of wishes of two parts
WORD_WEIGHT, LOOK_WEIGHT, TURN_WEIGHT = 0.1, 0.2, 0.3
LOOKS, HEADS, UNSAID = 1, 2, -100  # this layer's first heads learn to look at what a word means


# Dialogues -----------------------------------------------------------------------------------------------------------


def any_wish(scene: Scene, random: np.random.Generator) -> tuple[str, Scene]:
    """What a person might want of this picture, and the picture after it."""
    parts = 2 if random.random() < PROGRAMS else 1
    while (drawn := wish(scene, random, parts)) is None:
        parts = 1
    words, afters = drawn
    return words, afters[-1]


def design(scene: Scene, random: np.random.Generator) -> Turn:
    """The blueprint of a wish."""
    words, after = any_wish(scene, random)
    return f"design: {words}", format_blueprint(true_sections(words, scene, after))


SORTS = {questions.at_place: 0.25, questions.beside: 0.5, questions.locate: 0.5, questions.refer: 1,
         questions.imagine: 0.75, questions.foresee: 3, questions.describe: 0.25, design: 6}  # -> how often it is asked


def dialogue(scene: Scene, random: np.random.Generator) -> list[Turn]:
    share = np.array(list(SORTS.values()))
    return [list(SORTS)[sort](scene, random) for sort in random.choice(len(SORTS), QUESTIONS, p=share / share.sum())]


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


def encode(turn: Turn) -> tuple[list[int], list[int]]:
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


# Batches -------------------------------------------------------------------------------------------------------------


def batches(config: Talk, model_config):
    def batch_of(number: int) -> dict:
        batch = scenes(config.seed + 3, number, config.batch_size)
        random = np.random.default_rng([config.seed, number, 9])
        asked = asked_of(batch, [dialogue(scene, random) for scene in batch])
        few = batch[:config.readings]
        return {"pictures": seen(batch, model_config), "things": slot_labels(batch), "groups": asked,
                "told": told(few, [any_wish(scene, random) for scene in few]),
                "captions": captions([captions_of(scene, random) for scene in few])}
    return batch_of


def asked_of(batch: list[Scene], dialogues: list[list[Turn]]) -> list[dict]:
    """The questions about all pictures, in groups of like length."""
    turns = [(owner, *encode(turn)) for owner, said in enumerate(dialogues) for turn in said]
    return [group(batch, alike) for alike in by_length(turns, GROUPS)]


def group(batch: list[Scene], turns: list[tuple[int, list[int], list[int]]]) -> dict[str, Tensor]:
    """owner: int[N], whose picture;  input_ids, labels, meant: int[N, L]"""
    input_ids = pad([row for _, row, _ in turns], 0, "right")
    owners = [owner for owner, _, _ in turns]
    return {"owner": torch.tensor(owners), "input_ids": input_ids,
            "meant": meant_slots(input_ids, [batch[owner] for owner in owners]),
            "labels": pad([row for _, _, row in turns], IGNORED, "right")}


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


# The model -----------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What every text about a picture comes after: keys and values of each layer, float[B, H, P, d], and the last
    states float[B, 11, D] of the user's turn so far, the picture between its start and end token.
    """

    cache: list[tuple[Tensor, Tensor]]
    states: Tensor


class Student(nn.Module):
    """The MLLM, and the reader that asks the states of a user's turn."""

    def __init__(self, model: nn.Module):
        super().__init__()
        model.model.language_model.config._attn_implementation = "eager"  # the one that shows where it looks
        see_together(model.model.visual)
        self.model, self.reader = model, TurnReader(model.config.text_config.hidden_size)

    def forward(self, batch: dict) -> Losses:
        features = image_features(self.model.model.visual, batch["pictures"])
        seen = look(self.model, features)
        pairs, looks = zip(*(answers(self.model, seen, turns) for turns in batch["groups"]), strict=True)
        logits, wanted = (torch.cat(part) for part in zip(*pairs, strict=True))
        words = self.model.get_input_embeddings().weight
        return {"answer": F.cross_entropy(logits.float(), wanted),
                "word": WORD_WEIGHT * word_loss(features, words, batch["things"]),
                "look": LOOK_WEIGHT * torch.stack(looks).mean(),
                "told": TURN_WEIGHT * turn_loss(self.read_told(seen, batch["told"]), batch["told"]["labels"]),
                "caption": TURN_WEIGHT * turn_loss(self.read_caption(batch["captions"]), batch["captions"]["labels"])}

    def read_told(self, seen: Look, turns: dict) -> dict[str, Tensor]:
        states, _ = read(self.model, seen, turns)
        mask = F.pad(turns["mask"], (seen.states.shape[1], 0), value=True)
        return self.reader(torch.cat([seen.states[turns["owner"]], states], 1).float(), mask)

    def read_caption(self, turns: dict) -> dict[str, Tensor]:
        states = self.model.model.language_model(input_ids=turns["input_ids"], use_cache=False).last_hidden_state
        return self.reader(states.float(), turns["mask"])


def look(model: nn.Module, features: Tensor) -> Look:
    """features: float[B, 9, D]"""
    embedding = model.get_input_embeddings().weight
    before, between = (embedding[row].expand(len(features), -1, -1) for row in (frame().before, frame().between))
    cache = DynamicCache()
    side = int(PLACES**0.5)
    places = turn_positions(len(frame().before), (side, side), len(frame().between)).to(features.device)
    out = model.model.language_model(
        inputs_embeds=torch.cat([before, features.to(before), between], 1), past_key_values=cache, use_cache=True,
        position_ids=places[:, None].expand(-1, len(features), -1))
    kept = PLACES + 1 + len(frame().between)
    return Look([(layer.keys, layer.values) for layer in cache.layers], out.last_hidden_state[:, -kept:])


def read(model: nn.Module, seen: Look, turns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Last states float[N, L, D] of a group, and how much each token looks at the picture's tokens, float[N, L, 9]."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(seen.cache):
        cache.update(keys[turns["owner"]], values[turns["owner"]], number)
    before = cache.get_seq_length()
    count, length = turns["input_ids"].shape
    first = before - PLACES + int(PLACES**0.5)
    places = torch.arange(first, first + length, device=turns["input_ids"].device).expand(3, count, -1)
    out = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(turns["input_ids"]), past_key_values=cache, use_cache=True,
        position_ids=places, output_attentions=True)
    end = before - len(frame().between)
    return out.last_hidden_state, out.attentions[LOOKS][:, :HEADS, :, end - PLACES:end].mean(1)


def look_loss(attention: Tensor, slots: Tensor) -> Tensor:
    """-log of the attention that words give to what they mean. attention: float[N, L, 9];  slots: int[N, L]"""
    seen = attention.float().clamp(min=1e-6).log()
    said = (slots != UNSAID).sum().clamp(min=1)
    return F.nll_loss(seen.flatten(0, 1), slots.flatten(), ignore_index=UNSAID, reduction="sum") / said


def answers(model: nn.Module, seen: Look, turns: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Logits and labels of the answers' tokens alone, float[T, V] and int[T]; and the loss of where words look."""
    hidden_states, looks = read(model, seen, turns)
    wanted = turns["labels"][:, 1:]
    learnt = wanted != IGNORED
    return (model.lm_head(hidden_states[:, :-1][learnt]), wanted[learnt]), look_loss(looks, turns["meant"])


# Scores --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def exact(model: nn.Module, seen: Look, batch: list[Scene], asks: Callable) -> float:
    """Share of questions of this sort that are answered exactly (greedy, teacher-forced)."""
    random, right = np.random.default_rng(5), 0
    for turns in on_device(asked_of(batch, [[asks(scene, random)] for scene in batch])):
        hidden_states, _ = read(model, seen, turns)
        wanted = turns["labels"][:, 1:]
        said = model.lm_head(hidden_states[:, :-1]).argmax(-1)
        right += ((said == wanted) | (wanted == IGNORED)).all(1).sum().item()
    return right / len(batch)


@torch.no_grad()
def validate(student: Student) -> Scores:
    """On unseen scenes: references, wishes foreseen, blueprints; and what can be read off the states of a turn."""
    batch, random = scenes(2**20, 0, 256), np.random.default_rng(6)
    pictures = on_device(seen(batch, student.model.config))
    looked = look(student.model, image_features(student.model.model.visual, pictures))
    sorts = (questions.refer, questions.foresee, questions.describe, design)
    scores = {asks.__name__: exact(student.model, looked, batch, asks) for asks in sorts}
    said = on_device(told(batch, [any_wish(scene, random) for scene in batch]))
    text = on_device(captions([captions_of(scene, random) for scene in batch]))
    return {**scores, "told": turn_accuracy(student.read_told(looked, said), said["labels"]),
            "caption": turn_accuracy(student.read_caption(text), text["labels"])}


def begin(tower: Path) -> nn.Module:
    """The mini's language model, and the tower that train.dim_tower has taught."""
    model = build()
    model.model.visual.load_state_dict(torch.load(tower, weights_only=True))
    return model


def main() -> None:
    config = read_config(PRESETS, __doc__)
    file = config.weights / "mllm.safetensors"
    seeded(config)
    student = Student(warm(config, file) or begin(config.runs / "dim_tower" / "visual.pt"))
    before = steps_before(config, file)
    run = fit("train.dim_mllm", config.runs / f"dim_{run_folder(config, file).name}", student, config,
              batches(config, student.model.config), lambda: validate(student))
    if run.accelerator.is_main_process:
        save_model(file, "mllm", student.model,
                   provenance(config, "train.dim_tower, train.dim_mllm", before + run.step, run.scores))
        save_tokenizer(qwen_tokenizer(), config.weights / "tokenizer.json")
        save_beside(config, "train.dim_mllm", file)


if __name__ == "__main__":
    main()
