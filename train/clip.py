"""Trains the mini's CLIP: its text model is the painter's, its image embeddings are the space of v_insight.

    python -m train.clip                             # about 15 minutes on one core of a small CPU
    expected: 90 % of unseen pictures find their caption among 256

Loss: CLIP's contrastive one, half of it on partial captions; and, because our data is small, readers that are thrown
away afterwards: the scene from the image embedding and from the patches, and at the end of each fact what it says.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from mindedit_core.backbones.mini_tokenizer import save_tokenizer
from mindedit_core.losses import contrastive_loss
from mindedit_core.model_files import save_model
from train.config import Training, read_config
from train.data import pictures, scenes, slot_labels
from train.facts import fact_ends, fact_labels, part, tokens, whole
from train.loop import Losses, Scores, fit, on_device
from train.slots import PARTS, SlotReader, reading_accuracy, reading_losses
from train.stages import provenance, run_folder, save_beside, seeded, steps_before, warm
from train.words import tokenizer

PRESETS = {"mini": Training(steps=1600, learning_rate=1e-3, batch_size=64, ema=0.998)}
WIDTH, EMBED = 192, 256
FACT_PARTS = {"place": 10, **PARTS}


def build() -> CLIPModel:
    words = tokenizer()
    size = {"hidden_size": WIDTH, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**size, **ids, "vocab_size": len(words), "max_position_embeddings": 77, "projection_dim": EMBED}
    vision = {**size, "image_size": 128, "patch_size": 16, "projection_dim": EMBED}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED))


class Student(nn.Module):
    """CLIP and the readers that help it learn."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip
        self.scene = SlotReader(EMBED, from_global=True)
        self.slots = SlotReader(WIDTH)
        self.register_buffer("near", near_slots(side=8), persistent=False)
        self.fact = nn.Linear(WIDTH, sum(FACT_PARTS.values()))

    def forward(self, batch: dict) -> Losses:
        image_embeds, text_embeds, states, slots = self.embed(batch["pixel_values"], batch["text"])
        scale = self.clip.logit_scale.exp().clamp(max=100)
        named = {"contrast": contrastive_loss(image_embeds, text_embeds, scale)}
        named |= {f"image_{name}": loss for name, loss in
                  reading_losses(self.scene(None, image_embeds), batch["scene"]).items()}
        named |= {f"slot_{name}": loss for name, loss in reading_losses(slots, batch["scene"]).items()}
        at_ends = self.fact(states[fact_ends(batch["text"]["input_ids"])]).split(list(FACT_PARTS.values()), -1)
        facts = reading_losses(dict(zip(FACT_PARTS, at_ends, strict=True)), batch["facts"])
        return named | {f"fact_{name}": 0.5 * loss for name, loss in facts.items()}

    def embed(self, pixel_values: Tensor, text: dict[str, Tensor]):
        vision = self.clip.vision_model(pixel_values)
        language = self.clip.text_model(**text)
        patches = self.near @ vision.last_hidden_state[:, 1:]  # float[B, 9, WIDTH]
        return (self.clip.visual_projection(vision.pooler_output), self.clip.text_projection(language.pooler_output),
                language.last_hidden_state, self.slots(patches, vision.last_hidden_state.mean(1)))


def near_slots(side: int) -> Tensor:
    """Mean over the patches around each slot's centre, softly: float[9, side * side], rows sum to 1."""
    centres = (torch.arange(side) + 0.5) / side
    slots = torch.tensor([1.0, 3.0, 5.0]) / 6
    weight = torch.exp(-0.5 * ((slots[:, None] - centres) / 0.1) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    return torch.einsum("i y, j x -> i j y x", weight, weight).reshape(9, side * side)


def batches(config: Training):
    def batch_of(number: int) -> dict:
        batch = scenes(config.seed + 2, number, config.batch_size)
        random = np.random.default_rng([config.seed, number, 2])
        said = [whole(scene) if row % 2 else part(scene, random) for row, scene in enumerate(batch)]
        text = tokens([caption.text for caption in said])
        length = int(text["attention_mask"].sum(1).max())
        return {"pixel_values": pictures(batch), "text": {key: value[:, :length] for key, value in text.items()},
                "scene": slot_labels(batch), "facts": fact_labels(batch, said)}
    return batch_of


@torch.no_grad()
def validate(student: Student) -> Scores:
    """Share of 256 unseen pictures whose own caption is the nearest, and what the embedding tells of the scene."""
    batch = scenes(2**20, 0, 256)
    text = on_device(tokens([whole(scene).text for scene in batch]))
    image_embeds, text_embeds, _, _ = student.embed(on_device(pictures(batch)), text)
    nearest = (F.normalize(image_embeds) @ F.normalize(text_embeds).T).argmax(1)
    found = (nearest.cpu() == torch.arange(256)).float().mean().item()
    return {"retrieval": found, **reading_accuracy(student.scene(None, image_embeds), on_device(slot_labels(batch))),
            "embed_std": image_embeds.std().item()}


def main() -> None:
    config = read_config(PRESETS, __doc__)
    file = config.weights / "clip.safetensors"
    seeded(config)
    student = Student(warm(config, file) or build())
    before = steps_before(config, file)
    run = fit("train.clip", run_folder(config, file), student, config, batches(config), lambda: validate(student))
    if run.accelerator.is_main_process:
        save_model(file, "clip", student.clip,
                   provenance(config, "train.clip", before + run.step, run.scores))
        save_tokenizer(tokenizer(), config.weights / "tokenizer.json")
        save_beside(config, "train.clip", file)


if __name__ == "__main__":
    main()
