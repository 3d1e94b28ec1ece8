"""What the states of a user's turn should tell a painter: supervision by the scene graph that ends with the training.

A published Qwen2.5-VL has read so much that its last states hold what a text says of every thing in it. Ours would hold
the next word alone: a reader asks the states, as a painter's cross-attention will, what each place is to show.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mindedit_core.scenes import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene
from mindedit_core.scenes.grammar import changed_slots

PARTS = {"kind": len(KINDS) + 2, "colour": len(COLOURS), "size": len(SIZES)}  # kinds, nothing, unsaid
NOTHING, UNSAID, IGNORED = len(KINDS), len(KINDS) + 1, -100


class TurnReader(nn.Module):
    """hidden_states float[B, L, D] and mask bool[B, L] -> logits of what is said of nine places and the background."""

    def __init__(self, width: int, heads: int = 6, layers: int = 2):
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(10, width))
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerDecoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers)
        self.parts, self.background = nn.Linear(width, sum(PARTS.values())), nn.Linear(width, len(BACKGROUNDS) + 1)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        queries = self.queries.expand(len(hidden_states), -1, -1)
        read = self.layers(queries, self.norm(hidden_states), memory_key_padding_mask=~mask)
        parts = self.parts(read[:, :9]).split(list(PARTS.values()), -1)
        return dict(zip(PARTS, parts, strict=True)) | {"background": self.background(read[:, 9])}


class ChangeReader(nn.Module):
    """hidden_states float[M, D] of one token each -> the same logits: all that a blueprint is to change."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.parts = nn.Linear(width, 9 * sum(PARTS.values()))
        self.background = nn.Linear(width, len(BACKGROUNDS) + 1)

    def forward(self, hidden_states: Tensor) -> dict[str, Tensor]:
        known = self.norm(hidden_states)
        parts = rearrange(self.parts(known), "m (s d) -> m s d", s=9).split(list(PARTS.values()), -1)
        return dict(zip(PARTS, parts, strict=True)) | {"background": self.background(known)}


def change_labels(pairs: list[tuple[Scene, Scene]]) -> dict[str, Tensor]:
    """What a blueprint says: the places that change, as they are afterwards, and the background."""
    return labels([(after, changed_slots(before, after), True) for before, after in pairs])


def labels(said: list[tuple[Scene, list[int], bool]]) -> dict[str, Tensor]:
    """For each (scene, places that are spoken of, whether the background is): int[B, 9] and background int[B]."""
    found = {name: torch.full((len(said), 9), IGNORED) for name in PARTS}
    found["kind"].fill_(UNSAID)
    for row, (scene, slots, _) in enumerate(said):
        for slot in slots:
            thing = scene.at(slot)
            found["kind"][row, slot] = KINDS.index(thing.kind) if thing else NOTHING
            if thing:
                found["colour"][row, slot] = COLOURS.index(thing.colour)
                found["size"][row, slot] = SIZES.index(thing.size)
    grounds = [BACKGROUNDS.index(scene.background) if told else len(BACKGROUNDS) for scene, _, told in said]
    return {**found, "background": torch.tensor(grounds, dtype=torch.long)}


def turn_loss(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Cross entropies of all that is said, summed; an unsaid place weighs a fifth of one that is spoken of."""
    weight = torch.ones(PARTS["kind"], device=logits["kind"].device)
    weight[UNSAID] = 0.2
    kind = F.cross_entropy(logits["kind"].float().flatten(0, 1), wanted["kind"].flatten(), weight)
    rest = [F.cross_entropy(logits[name].float().flatten(0, -2), wanted[name].flatten(), ignore_index=IGNORED,
                            reduction="sum") / (wanted[name] != IGNORED).sum().clamp(min=1)
            for name in ("colour", "size", "background")]
    return kind + sum(rest)


def turn_accuracy(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Share of turns of which everything is read right."""
    right = [((logits[name].argmax(-1) == wanted[name]) | (wanted[name] == IGNORED)).flatten(1).all(1)
             for name in PARTS]
    ground = logits["background"].argmax(-1) == wanted["background"]
    return torch.stack([*right, ground]).all(0).float().mean().item()
