"""Encode once: latents of the world's pictures, cached on disk under a hash of autoencoder, samples and code version.

    python -m train.latents --count 20000            # about 10 minutes on one core of a small CPU
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mindedit_core.contracts import MAX_COORDINATE, Region
from mindedit_core.model_files import MINI_FOLDER, load_model
from mindedit_core.painters.unet import latent_mask
from mindedit_core.regions import region_mask
from mindedit_core.scenes import Sample, sample
from mindedit_core.scenes.grammar import changed_slots
from mindedit_core.scenes.graph import SLOT_SIZE, slot_corner
from train.data import to_model
from train.loop import device, on_device

CHUNK = 50
PROGRAMS = 0.5  # share of samples that change several things: which look belongs to which place is learnt there
SHIFT = 30  # thousandths: how far an edge of a box that somebody else draws may be off


@dataclass(frozen=True)
class Cache:
    """Scaled latents of N samples. source, target, masked: float16[N, 16, 8, 8]; mask: uint8[N, 8, 8]."""

    source: Tensor
    target: Tensor
    masked: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.target)


def drawn(number: int) -> Sample:
    """Sample `number` of the painter's data: single edits, and programs at times."""
    few = number % 100 < round(100 * PROGRAMS)
    return sample(number, steps=2 + number % 3 if few else 1)


known = lru_cache(maxsize=None)(drawn)  # for texts; asking these for pictures would keep them all in memory


def rough_mask(item: Sample, number: int) -> np.ndarray:
    """The edit mask, or as others draw it: whole slots, an MLLM's boxes, or everything. bool[128, 128]."""
    random = np.random.default_rng([number, 4])
    choice = random.random()
    if choice < 0.05:
        return np.ones_like(item.mask)
    if choice < 0.35:
        regions = [shifted(region, random) for region in item.regions]
        return region_mask(regions, *item.mask.shape).numpy() > 0
    mask = item.mask.copy()
    if choice < 0.5:
        for slot in changed_slots(item.source, item.target):
            x, y = slot_corner(slot)
            mask[y:y + SLOT_SIZE, x:x + SLOT_SIZE] = True
    return mask


def shifted(region: Region, random: np.random.Generator) -> Region:
    """A box as an MLLM might see it, about half of its edges a little off; a background as it is."""
    if region.box is None:
        return region
    off = random.integers(-SHIFT, SHIFT + 1, 4) * (random.random(4) < 0.5)
    x0, y0, x1, y1 = np.clip(np.array(region.box) + off, 0, MAX_COORDINATE).tolist()
    return Region(region.kind, (x0, y0, x1, y1))


def encode(autoencoder: nn.Module, images: Tensor) -> Tensor:
    images = on_device(images.to(memory_format=torch.channels_last))
    with torch.no_grad(), torch.autocast(device().type, torch.bfloat16):
        latents = autoencoder.encode(images).latent
    return (latents.float() * autoencoder.config.scaling_factor).half().cpu()


def encode_chunk(autoencoder: nn.Module, first: int, count: int) -> dict[str, Tensor]:
    numbers = range(first, first + count)
    items = [drawn(number) for number in numbers]
    masks = np.stack([rough_mask(item, number) for number, item in zip(numbers, items, strict=True)])
    source, target = (to_model(np.stack([getattr(item, name) for item in items]))
                      for name in ("source_image", "target_image"))
    hidden = torch.from_numpy(masks)[:, None]
    encoded = encode(autoencoder, torch.cat([source, target, source.masked_fill(hidden, 0.0)])).chunk(3)
    small = latent_mask(hidden[:, 0].float(), (8, 8))[:, 0].to(torch.uint8)
    return {**dict(zip(("source", "target", "masked"), encoded, strict=True)), "mask": small}


def cache_path(folder: Path, autoencoder: Path, count: int) -> Path:
    key = hashlib.sha256(autoencoder.read_bytes() + f"v2 {count}".encode()).hexdigest()[:16]
    return folder / f"latents-{key}.pt"


def latents(folder: Path, weights: Path, count: int) -> Cache:
    """The cache of `count` samples, made if it is not there; an interrupted making goes on where it stopped."""
    path = cache_path(folder, weights / "autoencoder.safetensors", count)
    if not path.exists():
        make(path, load_model(weights / "autoencoder.safetensors"), count)
    return Cache(**torch.load(path, weights_only=True))


def make(path: Path, autoencoder: nn.Module, count: int) -> None:
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    done: list[dict] = torch.load(part, weights_only=True) if part.exists() else []
    autoencoder = autoencoder.to(device(), memory_format=torch.channels_last)
    for first in range(len(done) * CHUNK, count, CHUNK):
        done.append(encode_chunk(autoencoder, first, min(CHUNK, count - first)))
        if len(done) % 40 == 0:
            torch.save(done, part)
            print(f"{first + CHUNK} of {count} encoded", flush=True)
    torch.save({name: torch.cat([chunk[name] for chunk in done]) for name in done[0]}, path)
    part.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--weights", type=Path, default=MINI_FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(len(latents(options.runs, options.weights, options.count)))
