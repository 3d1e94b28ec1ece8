"""Encode once: the frozen MLLM's states of every turn that dim-mini's painter reads, cached under a hash.

Rows of unequal length lie one behind the other, float16[sum of lengths, D]: 40,000 blueprints take 1.7 GB on disk, of
which what is read is mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mindedit_core.backbones.hf_vlm import pad
from mindedit_core.backbones.hf_weights import fingerprint
from mindedit_core.scenes import Scene
from train.dim_mllm import look, read
from train.dim_pictures import image_features, seen
from train.dim_talk import filled, ids, text_turn
from train.loop import device, on_device

CHUNK = 64


class Turn(NamedTuple):
    """What the user's turn holds: a picture, or None; and a text."""

    picture: Scene | None
    text: str


class States:
    """states[number] -> float[L, D] of a turn; `batch` pads several. Rows are float16 on disk, mapped."""

    def __init__(self, path: Path):
        self.ends = np.load(path / "ends.npy")
        self.rows = np.load(path / "rows.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Tensor:
        first = self.ends[number - 1] if number else 0
        return torch.from_numpy(np.array(self.rows[first:self.ends[number]]))

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """float[B, L, D] filled up with zeros, and bool[B, L] where there are none."""
        return padded([self[int(number)] for number in numbers])


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence([row.float() for row in rows], batch_first=True), mask


@torch.no_grad()
def turn_states(model: nn.Module, turns: Sequence[Turn]) -> list[Tensor]:
    """float[L, D] of each turn, all of them with a picture or all without; the numbers of `Qwen25VL.turn`."""
    if turns[0].picture is None:
        rows = [text_turn(turn.text) for turn in turns]
        inputs = on_device(pad([row for row, _ in rows], 0, "right"))
        states = model.model.language_model(input_ids=inputs, use_cache=False).last_hidden_state
        return [found[first:len(row)] for found, (row, first) in zip(states, rows, strict=True)]
    pictures = on_device(seen([turn.picture for turn in turns], model.config))
    looked = look(model, image_features(model.model.visual, pictures))
    rows = [ids(turn.text) for turn in turns]
    told = {"owner": torch.arange(len(rows)), "input_ids": pad(rows, 0, "right"), "mask": filled(rows)}
    states = read(model, looked, on_device(told)).states
    return [torch.cat([before, found[:len(row)]]) for before, found, row in
            zip(looked.states, states, rows, strict=True)]


def cached(folder: Path, name: str, model: nn.Module, count: int, turn: Callable[[int], Turn]) -> States:
    """The states of turns 0..count, made if they are not there; an interrupted making goes on where it stopped."""
    key = hashlib.sha256(f"v1 {name} {count} {fingerprint(model)}".encode()).hexdigest()[:16]
    path = folder / f"states-{name}-{key}"
    if not (path / "ends.npy").exists():
        make(path, model, count, turn)
    return States(path)


def make(path: Path, model: nn.Module, count: int, turn: Callable[[int], Turn]) -> None:
    """Chunks become files of their own as they are done; at last they are joined."""
    path.mkdir(parents=True, exist_ok=True)
    parts = [path / f"{first:08d}.pt" for first in range(0, count, CHUNK * 16)]
    for number, part in enumerate(parts):
        if not part.exists():
            torch.save(encoded(model, range(number * CHUNK * 16, min(count, (number + 1) * CHUNK * 16)), turn), part)
    rows = [row for part in parts for row in torch.load(part, weights_only=True)]
    ends = np.cumsum([len(row) for row in rows])
    whole = np.lib.format.open_memmap(path / "rows.npy", "w+", np.float16, (int(ends[-1]), rows[0].shape[1]))
    for row, end in zip(rows, ends, strict=True):
        whole[end - len(row):end] = row.numpy()
    whole.flush()
    np.save(path / "ends.npy", ends)
    for part in parts:
        part.unlink()


def encoded(model: nn.Module, numbers: range, turn: Callable[[int], Turn]) -> list[Tensor]:
    found = []
    for first in range(numbers.start, numbers.stop, CHUNK):
        turns = [turn(number) for number in range(first, min(first + CHUNK, numbers.stop))]
        with torch.autocast(device().type, torch.bfloat16):
            found += [row.half().cpu().clone() for row in turn_states(model, turns)]
    return found
