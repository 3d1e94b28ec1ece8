"""Second stage of dim-mini's MLLM: tower and language model learn to talk about pictures and to write blueprints.

    python -m train.dim_mllm                         # an hour on one core of a small CPU for 1,000 steps
    python -m train.dim_mllm --set warm=true --set seed=1      # and on from the file that it gave

The language model begins as the mini's (train.dim_tower.build). Every sample is a dialogue about one picture: what is
where, which thing a phrase means, what a wish would change, and the blueprint of a wish in its five sections
(mindedit_core.blueprint). A published Qwen2.5-VL copies and recalls without being taught, ours has hours: heads are
shown which word of the wish a first section says next; a reader asks the last token before a blueprint for the whole
change, and heads of the sections that tell it are shown that token. It is behind the user's turn, whose states alone a
painter reads. Another reader asks the states of the user's turn what a blueprint, or a caption without a picture, says
of every place (train.turn_reader; both are thrown away afterwards). It never sees a vague wish: what the states hold of
such a one is what reading it gave. From here on the MLLM stays frozen, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from mindedit_core.backbones.hf_vlm import IGNORED
from mindedit_core.backbones.mini_tokenizer import save_tokenizer
from mindedit_core.backbones.qwen_positions import turn_positions
from mindedit_core.model_files import DIM_FOLDER, save_model
from mindedit_core.scenes import Scene
from train import questions
from train.config import read_config
from train.data import scenes
from train.dim_pictures import PLACES, image_features, see_together, seen
from train.dim_talk import (
    UNSAID,
    Talk,
    any_wish,
    asked_of,
    batches,
    captions,
    captions_of,
    design,
    frame,
    told,
)
from train.dim_tower import build, word_loss
from train.loop import Losses, Scores, fit, on_device
from train.stages import provenance, run_folder, save_beside, seeded, steps_before, warm
from train.turn_reader import ChangeReader, TurnReader, turn_accuracy, turn_loss
from train.words import qwen_tokenizer

PRESETS = {"mini": Talk(steps=2000, learning_rate=5e-4, batch_size=16, ema=0.995, decay=1.0, matrices="muon",
                        weights=DIM_FOLDER)}
WORD_WEIGHT, LOOK_WEIGHT, TURN_WEIGHT, CHANGE_WEIGHT = 0.1, 0.2, 0.3, 0.3
# these layers' first heads learn to look at what a word means, at what is copied, at what is recalled
LOOKS, COPIES, RECALLS, HEADS = 1, 2, 4, 2
READERS = "dim_readers.pt"  # in the folder `runs`
KNOWS = 4  # of the layers: after so many the change is known, so that later ones can recall it


# The model -----------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What every text about a picture comes after: keys and values of each layer, float[B, H, P, d], and the last
    states float[B, 11, D] of the user's turn so far, the picture between its start and end token.
    """

    cache: list[tuple[Tensor, Tensor]]
    states: Tensor


class Read(NamedTuple):
    """A group of texts, read. states: last ones, float[N, L, D];  knows: those after KNOWS layers

    looks: how much each token looks at the picture's, float[N, L, 9]
    copies, recalls: at the text's own, float[N, L, L], each of other heads
    """

    states: Tensor
    knows: Tensor
    looks: Tensor
    copies: Tensor
    recalls: Tensor


class Student(nn.Module):
    """The MLLM, and the readers that ask the states of a user's turn, and what is known before a blueprint."""

    def __init__(self, model: nn.Module):
        super().__init__()
        model.model.language_model.config._attn_implementation = "eager"  # the one that shows where it looks
        see_together(model.model.visual)
        width = model.config.text_config.hidden_size
        self.model, self.reader, self.change_reader = model, TurnReader(width), ChangeReader(width)

    def forward(self, batch: dict) -> Losses:
        features = image_features(self.model.model.visual, batch["pictures"])
        seen = look(self.model, features)
        reads = [read(self.model, seen, turns) for turns in batch["groups"]]
        pairs = [answers(self.model, *pair) for pair in zip(reads, batch["groups"], strict=True)]
        logits, wanted = (torch.cat(part) for part in zip(*pairs, strict=True))
        words = self.model.get_input_embeddings().weight
        return {"answer": F.cross_entropy(logits.float(), wanted),
                "word": WORD_WEIGHT * word_loss(features, words, batch["things"]),
                **self.guides(reads, batch["groups"]),
                "told": TURN_WEIGHT * turn_loss(self.read_told(seen, batch["told"]), batch["told"]["labels"]),
                "caption": TURN_WEIGHT * turn_loss(self.read_caption(batch["captions"]), batch["captions"]["labels"])}

    def guides(self, reads: list[Read], groups: list[dict]) -> Losses:
        """Where words should look, what is copied and recalled from where, and what is known before a blueprint."""
        both = list(zip(reads, groups, strict=True))
        known = torch.cat([each.knows[turns["changes"]["row"], turns["changes"]["token"]] for each, turns in both])
        labels = {name: torch.cat([turns["changes"]["labels"][name] for turns in groups])
                  for name in groups[0]["changes"]["labels"]}
        change = turn_loss(self.change_reader(known.float()), labels) if len(known) else known.sum()
        looks = [look_loss(each.looks, turns["meant"]) for each, turns in both]
        copies = [look_loss(each.copies, turns["copied"]) for each, turns in both]
        recalls = [look_loss(each.recalls, turns["recalled"]) for each, turns in both]
        shown = {"look": looks, "copy": copies, "recall": recalls}
        return {name: LOOK_WEIGHT * torch.stack(losses).mean() for name, losses in shown.items()} | {
            "change": CHANGE_WEIGHT * change}

    def keep_readers(self, file: Path) -> None:
        """Write the readers, which no shipped file holds, for a stage that goes on."""
        torch.save({"reader": self.reader.state_dict(), "change_reader": self.change_reader.state_dict()}, file)

    def know_readers(self, file: Path) -> None:
        """Begin with the readers of the stage before, if they are still there: new ones would unteach the model."""
        if file.exists():
            for name, weights in torch.load(file, weights_only=True).items():
                getattr(self, name).load_state_dict(weights)

    def read_told(self, seen: Look, turns: dict) -> dict[str, Tensor]:
        states = read(self.model, seen, turns).states
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


def read(model: nn.Module, seen: Look, turns: dict[str, Tensor]) -> Read:
    """A group of texts that follow their pictures."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(seen.cache):
        cache.update(keys[turns["owner"]], values[turns["owner"]], number)
    before = cache.get_seq_length()
    count, length = turns["input_ids"].shape
    first = before - PLACES + int(PLACES**0.5)
    places = torch.arange(first, first + length, device=turns["input_ids"].device).expand(3, count, -1)
    out = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(turns["input_ids"]), past_key_values=cache, use_cache=True,
        position_ids=places, output_attentions=True, output_hidden_states=True)
    end = before - len(frame().between)
    looks, *own = (out.attentions[layer][:, :HEADS].mean(1) for layer in (LOOKS, COPIES, RECALLS))
    own = (attention[..., before:] for attention in own)
    return Read(out.last_hidden_state, out.hidden_states[KNOWS], looks[..., end - PLACES:end], *own)


def look_loss(attention: Tensor, slots: Tensor) -> Tensor:
    """-log of the attention that tokens give to where they should look. attention: float[N, L, K];  slots: int[N, L]"""
    seen = attention.float().clamp(min=1e-6).log()
    said = (slots != UNSAID).sum().clamp(min=1)
    return F.nll_loss(seen.flatten(0, 1), slots.flatten(), ignore_index=UNSAID, reduction="sum") / said


def answers(model: nn.Module, read: Read, turns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and labels of the answers' tokens alone, float[T, V] and int[T]."""
    wanted = turns["labels"][:, 1:]
    learnt = wanted != IGNORED
    return model.lm_head(read.states[:, :-1][learnt]), wanted[learnt]


# Scores --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def exact(model: nn.Module, seen: Look, batch: list[Scene], asks: Callable) -> float:
    """Share of questions of this sort that are answered exactly (greedy, teacher-forced)."""
    random, right = np.random.default_rng(5), 0
    for turns in on_device(asked_of(batch, [[asks(scene, random)] for scene in batch])):
        wanted = turns["labels"][:, 1:]
        said = model.lm_head(read(model, seen, turns).states[:, :-1]).argmax(-1)
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
    if config.warm:
        student.know_readers(config.runs / READERS)
    before = steps_before(config, file)
    run = fit("train.dim_mllm", config.runs / f"dim_{run_folder(config, file).name}", student, config,
              batches(config, student.model.config), lambda: validate(student))
    if run.accelerator.is_main_process:
        save_model(file, "mllm", student.model,
                   provenance(config, "train.dim_tower, train.dim_mllm", before + run.step, run.scores))
        save_tokenizer(qwen_tokenizer(), config.weights / "tokenizer.json")
        student.keep_readers(config.runs / READERS)
        save_beside(config, "train.dim_mllm", file)


if __name__ == "__main__":
    main()
