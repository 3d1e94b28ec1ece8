"""First stage of dim-mini's MLLM: its vision tower learns to see, one token a slot.

    python -m train.dim_tower                        # about 20 minutes on one core of a small CPU

A published Qwen2.5-VL has seen billions of captioned pictures; ours reads the scene graph through heads that are thrown
away afterwards, every token must lie nearest to the words for what it shows, and it must be what the eyes of the mini's
LLaVA-OneVision say of its slot: the language model that train.dim_mllm goes on from is that one's, and knows them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.backbones.mini_tokenizer import END as MINI_END
from mindedit_core.backbones.qwen_mini import END, qwen_mini_config
from mindedit_core.checkpoint import load_tensors
from mindedit_core.model_files import MINI_FOLDER, load_model
from mindedit_core.scenes import COLOURS, KINDS, SIZES
from train.config import Training, read_config
from train.data import scenes, slot_labels
from train.dim_pictures import image_features, see_together, seen
from train.image_tokens import by_view
from train.loop import Losses, Scores, fit, on_device
from train.slots import SlotReader, reading_accuracy, reading_losses
from train.stages import seeded
from train.tiles import tiles
from train.words import qwen_tokenizer, tokenizer

PRESETS = {"mini": Training(steps=2000, learning_rate=1.5e-3, batch_size=64, ema=0.998)}
WORDS = {"kind": (*KINDS, "nothing"), "colour": COLOURS, "size": SIZES}
WORD_WEIGHT, MINI_WEIGHT = 0.3, 2.0


def build() -> nn.Module:
    """A Qwen2.5-VL whose language model is the mini's, as Qwen2.5-VL's own began as Qwen2.5; its tower is random.

    Rows of the vocabulary are taken over word by word, the end of a turn as well; what is new (Qwen's other special
    tokens) starts at random.
    """
    model = Qwen2_5_VLForConditionalGeneration(qwen_mini_config(qwen_tokenizer()))
    mini = load_tensors(MINI_FOLDER / "mllm.safetensors", "model.language_model.")
    embedding = model.get_input_embeddings().weight.detach()
    old, new = mini.pop("embed_tokens.weight"), qwen_tokenizer().get_vocab()
    for word, place in tokenizer().get_vocab().items():
        if (word := END if word == MINI_END else word) in new:
            embedding[new[word]] = old[place].float()
    lacking = model.model.language_model.load_state_dict({key: x.float() for key, x in mini.items()}, strict=False)
    assert lacking.missing_keys == ["embed_tokens.weight"] and not lacking.unexpected_keys, lacking
    return model


def word_ids(words: tuple[str, ...]) -> list[int]:
    """The one token of each word inside a sentence."""
    return [qwen_tokenizer()(f"a {word}", add_special_tokens=False)["input_ids"][-1] for word in words]


def word_loss(tokens: Tensor, embedding: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Every token must lie nearest to the words of what its slot shows: kind (or "nothing"), colour, size.

    tokens: float[B, 9, D];  embedding: float[V, D], the model's own;  labels: of `slot_labels`
    """
    logits = {name: tokens.float() @ embedding[word_ids(words)].float().T for name, words in WORDS.items()}
    return sum(reading_losses(logits, {name: labels[name] for name in WORDS}).values())


class MiniEyes(nn.Module):
    """What the mini's LLaVA-OneVision sees of each slot: its image tokens, averaged over patches and both views."""

    def __init__(self):
        super().__init__()
        model = load_model(MINI_FOLDER / "mllm.safetensors").requires_grad_(False)
        self.model, self.mllm = model, LlavaOnevision(model, tokenizer(), template="mini", mllm_id="mini")

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """float[B, 3, 126, 126] of `tiles` -> float[B, 9, D]"""
        patches = by_view(self.mllm.image_features(pixel_values))
        return reduce(patches, "(v b) (h i w j) d -> b (h w) d", "mean", v=2, h=3, i=2, w=3, j=2)


class Tower(nn.Module):
    """Qwen's vision tower and the heads that teach it."""

    def __init__(self):
        super().__init__()
        model = build()
        self.mini = MiniEyes()
        self.visual = see_together(model.model.visual)
        width = model.config.text_config.hidden_size
        self.reader, self.place = SlotReader(width), nn.Linear(width, 9)
        self.register_buffer("words", model.get_input_embeddings().weight.detach().clone(), persistent=False)

    def forward(self, batch: dict) -> Losses:
        tokens, labels = image_features(self.visual, batch["pictures"]), batch["labels"]
        known = self.mini(batch["tiles"])
        places = torch.arange(9, device=tokens.device).expand(len(tokens), -1)
        return {**reading_losses(self.reader(tokens, tokens.mean(1)), labels),
                "mini": MINI_WEIGHT * F.mse_loss(tokens.float(), known.float()) / known.var(),
                "word": WORD_WEIGHT * word_loss(tokens, self.words, labels),
                "place": 0.1 * F.cross_entropy(self.place(tokens).float().flatten(0, 1), places.flatten())}


def batches(config: Training, model_config):
    def batch_of(number: int) -> dict:
        batch = scenes(config.seed + 1, number, config.batch_size)
        return {"pictures": seen(batch, model_config), "tiles": tiles(batch), "labels": slot_labels(batch)}
    return batch_of


@torch.no_grad()
def validate(tower: Tower, model_config) -> Scores:
    batch = scenes(2**20, 0, 256)
    tokens = image_features(tower.visual, on_device(seen(batch, model_config)))
    labels = on_device(slot_labels(batch))
    return reading_accuracy(tower.reader(tokens, tokens.mean(1)), labels)


def main() -> None:
    config = read_config(PRESETS, __doc__)
    if config.warm:
        raise SystemExit("train.dim_tower ships no file of its own to go on from; train.dim_mllm trains the tower on")
    seeded(config)
    tower, folder = Tower(), config.runs / "dim_tower"
    model_config = qwen_mini_config(qwen_tokenizer())
    run = fit("train.dim_tower", folder, tower, config, batches(config, model_config),
              lambda: validate(tower, model_config))
    if run.accelerator.is_main_process:
        torch.save(tower.visual.state_dict(), folder / "visual.pt")


if __name__ == "__main__":
    main()
