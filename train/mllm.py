"""Second stage of the mini's MLLM: tower, connector and language model learn to talk about pictures.

    python -m train.mllm --steps 8000                # about 2.5 hours on one core of a small CPU
    measured after 14,100 steps in stages, on unseen scenes: 96 % of references, 94 % of wishes, 88 % of what a wish
    changes, 97 % of descriptions exact

Every sample is a dialogue about one picture: its description and ten questions (what is where, what is beside what,
which thing a phrase means, where it lies, where a wish would change the picture, what it would leave there, all that
it changes). Image tokens are asked where they lie and what they are part of, and words are told where to look
(train.image_tokens). No target picture is seen here; how T_opt is written, with the background that it has to fit
into, and the insight are learnt by LoRA and VisionHead in train.mind_edit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from mindedit_core.backbones.hf_vlm import IGNORED, pad
from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.backbones.mini_config import mini_config
from mindedit_core.backbones.mini_tokenizer import ASSISTANT, END, IMAGE, USER, save_tokenizer
from mindedit_core.model_files import save_model
from mindedit_core.scenes import Scene
from train.common import (
    Losses,
    Run,
    Schedule,
    arguments,
    fit,
    on_device,
    run_folder,
    schedule_of,
    steps_before,
    warm,
)
from train.data import scenes
from train.image_tokens import IMAGE_TOKENS, PATCHES, by_view, look_loss, meant_slots, patch_labels, word_loss
from train.questions import Turn, describe, dialogue, foresee, imagine, locate, refer
from train.tiles import tiles
from train.words import tokenizer

QUESTIONS = 10
PLACE_WEIGHT, WORD_WEIGHT, LOOK_WEIGHT = 0.05, 0.1, 0.2
LOOKS, HEADS = 1, 2  # this layer's first heads learn to look at what a word means


class Student(nn.Module):
    """The MLLM, and the head that asks its image tokens for their place."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.place = nn.Linear(model.config.text_config.hidden_size, PATCHES)

    def place_loss(self, patches: Tensor) -> Tensor:
        """patches: float[2 B, 36, D]"""
        lies = torch.arange(PATCHES, device=patches.device).repeat(len(patches))
        return F.cross_entropy(self.place(patches).float().flatten(0, 1), lies)


def build(tower: Path) -> LlavaOnevisionForConditionalGeneration:
    """Random weights but for the tower, which train.tower has taught."""
    model = LlavaOnevisionForConditionalGeneration(mini_config(tokenizer()))
    model.model.vision_tower.load_state_dict(torch.load(tower, weights_only=True))
    return model


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def encode(turns: list[Turn]) -> tuple[list[int], list[int]]:
    """input_ids and labels of a dialogue; only answers and their end tokens are learnt."""
    rows, labels = [], []
    for number, (question, answer) in enumerate(turns):
        prompt = f"{USER}{IMAGE * IMAGE_TOKENS if number == 0 else ''}{question}{ASSISTANT}"
        asked, said = ids(prompt), ids(answer + END)
        rows += asked + said
        labels += [IGNORED] * len(asked) + said
    return rows, labels


def batches(schedule: Schedule):
    def batch_of(step: int) -> dict:
        batch = scenes(schedule.seed + 3, step, schedule.batch_size)
        random = np.random.default_rng([schedule.seed, step, 3])
        return asked(batch, [dialogue(scene, random, QUESTIONS) for scene in batch])
    return batch_of


def asked(batch: list[Scene], dialogues: list[list[Turn]]) -> dict:
    """Pictures and their dialogues as tensors."""
    encoded = [encode(turns) for turns in dialogues]
    input_ids = pad([row for row, _ in encoded], 0, "right")
    return {"pixel_values": tiles(batch), "input_ids": input_ids, "things": patch_labels(batch),
            "labels": pad([labels for _, labels in encoded], IGNORED, "right"),
            "meant": meant_slots(input_ids, batch)}


def read(mllm: LlavaOnevision, features: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Last states float[B, L, D], and how much each token looks at the image tokens, float[B, L, 78].

    features: float[B, 78, D]
    """
    model = mllm.model
    embeds = model.get_input_embeddings()(input_ids)
    places = input_ids == model.config.image_token_id
    embeds = embeds.masked_scatter(places.unsqueeze(-1), features.to(embeds))
    out = model.model.language_model(inputs_embeds=embeds, use_cache=False, output_attentions=True)
    first = int(places[0].int().argmax())  # the same in every row: a dialogue begins with its picture
    looks = out.attentions[LOOKS][:, :HEADS, :, first:first + IMAGE_TOKENS].mean(1)
    return out.last_hidden_state, looks


def answer_logits(mllm: LlavaOnevision, hidden_states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the answer tokens alone: float[N, V], int[N]."""
    learnt = labels[:, 1:] != IGNORED
    return mllm.model.lm_head(hidden_states[:, :-1][learnt]), labels[:, 1:][learnt]


def losses(mllm: LlavaOnevision, student: Student):
    def compute(batch: dict) -> Losses:
        features = mllm.image_features(batch["pixel_values"])
        hidden_states, looks = read(mllm, features, batch["input_ids"])
        logits, wanted = answer_logits(mllm, hidden_states, batch["labels"])
        patches, words = by_view(features), mllm.model.get_input_embeddings().weight
        return {"answer": F.cross_entropy(logits.float(), wanted),
                "place": PLACE_WEIGHT * student.place_loss(patches),
                "word": WORD_WEIGHT * word_loss(patches, words, batch["things"]),
                "look": LOOK_WEIGHT * look_loss(looks, batch["meant"])}
    return compute


@torch.no_grad()
def exact(mllm: LlavaOnevision, batch: list[Scene], asks: Callable) -> tuple[float, float]:
    """Shares of questions of this sort, and of descriptions, answered exactly (greedy, teacher-forced)."""
    random = np.random.default_rng(5)
    turns = [[asks(scene, random), describe(scene)] for scene in batch]
    inputs = on_device(asked(batch, turns))
    labels = inputs["labels"][:, 1:]
    hidden_states, _ = read(mllm, mllm.image_features(inputs["pixel_values"]), inputs["input_ids"])
    logits, wanted = answer_logits(mllm, hidden_states, inputs["labels"])
    right = torch.ones_like(labels, dtype=torch.bool)
    right[labels != IGNORED] = logits.argmax(-1) == wanted
    lengths = torch.tensor([len(ids(turn[0][1] + END)) for turn in turns], device=labels.device)
    first = (labels != IGNORED).cumsum(1) <= lengths[:, None]
    return (right | ~first).all(1).float().mean().item(), (right | first).all(1).float().mean().item()


def validate(mllm: LlavaOnevision) -> dict[str, float]:
    """On unseen scenes: references resolved from the picture, things located, wishes imagined, scenes described."""
    batch = scenes(2**20, 0, 192)
    reference, description = exact(mllm, batch, refer)
    return {"reference": reference, "place": exact(mllm, batch, locate)[0], "wish": exact(mllm, batch, imagine)[0],
            "change": exact(mllm, batch, foresee)[0], "description": description}


def main() -> None:
    options = arguments(__doc__, Schedule(steps=8000, learning_rate=1e-3, batch_size=16, ema=0.998))
    schedule = schedule_of(options)
    torch.manual_seed(schedule.seed)
    model = warm(options, "mllm") or build(options.runs / "tower" / "siglip.pt")
    model.model.language_model.config._attn_implementation = "eager"  # the one that shows where it looks
    student = Student(model)

    def wrapped(student: Student) -> LlavaOnevision:
        return LlavaOnevision(student.model, tokenizer(), template="mini", mllm_id="mini")

    before = steps_before(options, "mllm")
    run = Run(run_folder(options, "mllm"), student, schedule)
    student = fit(run, batches(schedule), losses(wrapped(student), student),
                  lambda average: validate(wrapped(average)))
    score = validate(wrapped(student))
    save_model(options.weights / "mllm.safetensors", "mllm", student.model,
               {"recipe": "train.tower, train.mllm", "seed": schedule.seed, "steps": before + run.step,
                "data": "scenes v1", "score": score})
    save_tokenizer(tokenizer(), options.weights / "tokenizer.json")
    print(score)


if __name__ == "__main__":
    main()
