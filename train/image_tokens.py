"""What a picture's tokens should tell, and where words should look: supervision that ends with the training.

A published MLLM has met every word beside a billion pictures. The mini's has hours: without this its image tokens do
not tell kinds one by one, and "the cat" finds its cat no better than by chance after 6,000 steps.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from mindedit_core.backbones.mini_config import PATCH, TILE
from mindedit_core.scenes import COLOURS, KINDS, SIZES, Scene
from mindedit_core.scenes.edits import landmarks
from train.data import slot_labels
from train.slots import reading_losses
from train.words import tokenizer

SIDE = TILE // PATCH
PATCHES = SIDE**2  # of the base view, which comes first among the image tokens
IMAGE_TOKENS = 2 * PATCHES + SIDE  # base view and one tile, whose rows end in a newline
WORDS = {"kind": (*KINDS, "nothing"), "colour": COLOURS, "size": SIZES}
UNSAID = -100


@cache
def word_id(word: str) -> int:
    """The one token of a word inside a sentence."""
    return tokenizer()(f"a {word}", add_special_tokens=False)["input_ids"][-1]


def by_view(features: Tensor) -> Tensor:
    """Image tokens of both views, the rows' newlines left out: float[B, 78, D] -> float[2 B, 36, D]."""
    rows = rearrange(features[:, PATCHES:], "b (h w) d -> b h w d", h=SIDE)
    return torch.cat([features[:, :PATCHES], rearrange(rows[:, :, :SIDE], "b h w d -> b (h w) d")])


def patch_labels(batch: list[Scene]) -> dict[str, Tensor]:
    """`slot_labels` for every patch of the tower, two by two of which see a slot: int[B, 36]."""
    labels = slot_labels(batch)
    return {name: repeat(labels[name], "b (h w) -> b (h i w j)", h=3, i=2, j=2) for name in WORDS}


def word_loss(patches: Tensor, embedding: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Every patch must lie nearest to the words of the thing it is part of: kind (or "nothing"), colour, size.

    patches: float[2 B, 36, D] of `by_view`;  embedding: float[V, D], the model's own;  labels: int[B, 36] each
    """
    logits = {name: patches.float() @ embedding[[word_id(word) for word in words]].float().T
              for name, words in WORDS.items()}
    return sum(reading_losses(logits, {name: torch.cat([labels[name], labels[name]]) for name in WORDS}).values())


def meant_slots(input_ids: Tensor, batch: list[Scene]) -> Tensor:
    """Which slot a token means: where it is a kind of which the scene has one thing, else UNSAID. int[B, L]."""
    slots = torch.full_like(input_ids, UNSAID)
    for row, scene in enumerate(batch):
        for slot in landmarks(scene):
            slots[row][input_ids[row] == word_id(scene.at(slot).kind)] = slot
    return slots


def by_slot(attention: Tensor) -> Tensor:
    """Attention summed over the patches of both views that see a slot: float[B, L, 78] -> float[B, L, 9]."""
    patches = by_view(rearrange(attention, "b l p -> b p l"))
    return reduce(patches, "(v b) (h i w j) l -> b l (h w)", "sum", v=2, h=3, i=2, w=3, j=2)


def look_loss(attention: Tensor, slots: Tensor) -> Tensor:
    """-log of the attention that words give to what they mean (guided attention).

    attention: float[B, L, 78], of a word to the image tokens;  slots: int[B, L] of `meant_slots`
    """
    seen = by_slot(attention.float()).clamp(min=1e-6).log()
    said = (slots != UNSAID).sum().clamp(min=1)  # a batch may mean nothing
    return F.nll_loss(seen.flatten(0, 1), slots.flatten(), ignore_index=UNSAID, reduction="sum") / said
