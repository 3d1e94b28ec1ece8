"""Encode once: CLIP's states of the texts that a painter hears over and over."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from train.facts import tokens
from train.loop import device, on_device

CHUNK = 64


class TextStates:
    """states(texts) -> float[B, 77, D] on the training device; those of `often` are kept, 30 kB each."""

    def __init__(self, clip: nn.Module, often: Iterable[str]):
        self.clip = clip
        unique = sorted(set(often))
        self.row = {text: number for number, text in enumerate(unique)}
        found = [self.encode(unique[first:first + CHUNK]).half() for first in range(0, len(unique), CHUNK)]
        self.kept = torch.cat(found) if found else None

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            return self.clip.text_model(**on_device(tokens(texts))).last_hidden_state.float()

    def __call__(self, texts: list[str]) -> Tensor:
        new = sorted({text for text in texts if text not in self.row})
        fresh = dict(zip(new, self.encode(new), strict=True)) if new else {}
        return torch.stack([fresh[text] if text in fresh else self.kept[self.row[text]].float() for text in texts])
