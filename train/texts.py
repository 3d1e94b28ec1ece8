"""Encode once: CLIP's states of the texts that a painter hears over and over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mindedit_core.backbones.hf_weights import fingerprint
from train.encoding import Cache
from train.facts import tokens
from train.loop import device, on_device

CHUNK = 64


class TextStates:
    """states(texts) -> float[B, 77, D] on the training device; those of `often` are kept, 30 kB each.

    cache: where they are kept on disk too, under a hash of CLIP and texts
    """

    def __init__(self, clip: nn.Module, often: Iterable[str], cache: Cache | None = None):
        self.clip = clip
        unique = sorted(set(often))
        self.row = {text: number for number, text in enumerate(unique)}
        key = f"texts-{hashlib.sha256(repr((fingerprint(clip), unique)).encode()).hexdigest()[:32]}"
        kept = cache.get(key) if cache else None
        self.kept = kept["states"].to(device()) if kept else self.all_of(unique)
        if cache and not kept and unique:
            cache.put(key, {"states": self.kept.cpu()})

    def all_of(self, texts: list[str]) -> Tensor | None:
        found = [self.encode(texts[first:first + CHUNK]).half() for first in range(0, len(texts), CHUNK)]
        return torch.cat(found) if found else None

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            return self.clip.text_model(**on_device(tokens(texts))).last_hidden_state.float()

    def __call__(self, texts: list[str]) -> Tensor:
        new = sorted({text for text in texts if text not in self.row})
        fresh = dict(zip(new, self.encode(new), strict=True)) if new else {}
        return torch.stack([fresh[text] if text in fresh else self.kept[self.row[text]].float() for text in texts])
