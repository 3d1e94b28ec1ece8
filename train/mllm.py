"""Second stage of the mini's MLLM: connector and language model learn to talk about pictures, the tower frozen.

    python -m train.mllm --steps 3000                # about 45 minutes on one core of a small CPU
    expected: 90 % of references to a thing resolved exactly on unseen scenes

Every sample is a dialogue about one picture: its description and six questions (what is where, what is beside what,
which thing a phrase means). No edit is seen here: T_opt is learnt by LoRA in train.mind_edit.
"""

from __future__ import annotations

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
from train.common import Losses, Run, Schedule, arguments, fit, on_device, quick_attention, schedule_of, warm
from train.data import scenes
from train.questions import Turn, describe, dialogue, refer
from train.tiles import tiles
from train.words import tokenizer

QUESTIONS = 6


def build(tower: Path) -> LlavaOnevisionForConditionalGeneration:
    """Random weights but for the tower, which train.tower has taught."""
    model = LlavaOnevisionForConditionalGeneration(mini_config(tokenizer()))
    model.model.vision_tower.load_state_dict(torch.load(tower, weights_only=True))
    return model


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def encode(turns: list[Turn], image_tokens: int) -> tuple[list[int], list[int]]:
    """input_ids and labels of a dialogue; only answers and their end tokens are learnt."""
    rows, labels = [], []
    for number, (question, answer) in enumerate(turns):
        prompt = f"{USER}{IMAGE * image_tokens if number == 0 else ''}{question}{ASSISTANT}"
        asked, said = ids(prompt), ids(answer + END)
        rows += asked + said
        labels += [IGNORED] * len(asked) + said
    return rows, labels


def batches(schedule: Schedule, image_tokens: int):
    def batch_of(step: int) -> dict:
        batch = scenes(schedule.seed + 3, step, schedule.batch_size)
        random = np.random.default_rng([schedule.seed, step, 3])
        return asked(batch, [dialogue(scene, random, QUESTIONS) for scene in batch], image_tokens)
    return batch_of


def asked(batch: list[Scene], dialogues: list[list[Turn]], image_tokens: int) -> dict:
    """Pictures and their dialogues as tensors."""
    encoded = [encode(turns, image_tokens) for turns in dialogues]
    return {"pixel_values": tiles(batch), "input_ids": pad([row for row, _ in encoded], 0, "right"),
            "labels": pad([labels for _, labels in encoded], IGNORED, "right")}


def answer_logits(mllm: LlavaOnevision, batch: dict) -> tuple[Tensor, Tensor]:
    """Logits and labels of the answer tokens alone: float[N, V], int[N]."""
    model = mllm.model
    features = mllm.image_features(batch["pixel_values"])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    places = (batch["input_ids"] == model.config.image_token_id).unsqueeze(-1)
    embeds = embeds.masked_scatter(places, features.to(embeds))
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    wanted = batch["labels"][:, 1:]
    learnt = wanted != IGNORED
    return model.lm_head(hidden[:, :-1][learnt]), wanted[learnt]


@torch.no_grad()
def validate(mllm: LlavaOnevision, image_tokens: int) -> dict[str, float]:
    """Greedy, teacher-forced: descriptions and references of unseen scenes answered exactly, token accuracy."""
    random = np.random.default_rng(5)
    batch = scenes(2**20, 0, 96)
    turns = [[describe(scene), refer(scene, random)] for scene in batch]
    inputs = asked(batch, turns, image_tokens)
    labels = inputs["labels"]
    logits, wanted = (found.cpu() for found in answer_logits(mllm, on_device(inputs)))
    right = torch.ones_like(labels[:, 1:], dtype=torch.bool)
    right[labels[:, 1:] != IGNORED] = logits.argmax(-1) == wanted
    second = torch.tensor([len(ids(turn[0][1] + END)) for turn in turns])
    rank = (labels[:, 1:] != IGNORED).cumsum(1)
    first = rank <= second[:, None]
    return {"description": float((right | ~first).all(1).float().mean()),
            "reference": float((right | first).all(1).float().mean()), "tokens": float((logits.argmax(-1) == wanted)
                                                                                      .float().mean())}


def main() -> None:
    options = arguments(__doc__, Schedule(steps=3000, learning_rate=1e-3, batch_size=32, ema=0.998))
    schedule = schedule_of(options)
    torch.manual_seed(schedule.seed)
    model = warm(options, "mllm") or build(options.runs / "tower" / "siglip.pt")
    model.model.vision_tower.requires_grad_(False)
    quick_attention(model.model.language_model)
    mllm = LlavaOnevision(model, tokenizer(), template="mini", mllm_id="mini")
    image_tokens = 2 * 36 + 6
    run = Run(options.runs / "mllm", mllm.model, schedule)

    def losses(batch: dict) -> Losses:
        logits, wanted = answer_logits(mllm, batch)
        return {"answer": F.cross_entropy(logits.float(), wanted)}

    def averaged(model: nn.Module) -> LlavaOnevision:
        return LlavaOnevision(model, tokenizer(), template="mini", mllm_id="mini")

    model = fit(run, batches(schedule, image_tokens), losses, lambda model: validate(averaged(model), image_tokens))
    score = validate(averaged(model), image_tokens)
    save_model(options.weights / "mllm.safetensors", "mllm", model,
               {"recipe": "train.tower, train.mllm", "seed": schedule.seed, "steps": run.step, "data": "scenes v1",
                "score": score})
    save_tokenizer(tokenizer(), options.weights / "tokenizer.json")
    print(score)


if __name__ == "__main__":
    main()
