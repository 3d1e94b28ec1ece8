"""Trains the mini's base IP-Adapter on both frozen UNets: image tokens from the CLIP embedding of the target.

    python -m train.ip_adapter                       # about 15 minutes on one core of a small CPU

As in IP-Adapter's own recipe: K and V start from the UNet's, text and picture are dropped at times. One adapter serves
both painters, as SD1.5's serves SD1.5 and its inpainting sibling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.checkpoint import save_checkpoint
from mindedit_core.losses import epsilon_loss
from train.clip_target import MINI_SPACE, image_embeds, target_pixels
from train.config import Training, read_config
from train.latents import Cache, drawn, encode_chunk, known, latents
from train.loop import Losses, Scores, fit, on_device
from train.stages import frozen, provenance, run_folder, save_beside, seeded, steps_before
from train.texts import TextStates
from train.unet import NOISE, quick_attention, weight


@dataclass(frozen=True, kw_only=True)
class BaseAdapter(Training):
    """count: cached samples;  used: of them, so many are embedded and trained on."""

    count: int = 40000
    used: int = 40000


PRESETS = {"mini": BaseAdapter(steps=1500, learning_rate=1e-3, batch_size=64, ema=0.998)}


def embeddings(clip: nn.Module, count: int, chunk: int = 50, first: int = 0) -> Tensor:
    """CLIP image embeddings of the targets, on the CPU: float[N, 256]."""
    found = []
    for start in range(first, first + count, chunk):
        batch = [drawn(number) for number in range(start, min(start + chunk, first + count))]
        found.append(image_embeds(clip, on_device(target_pixels(batch))).cpu())
    return torch.cat(found)


def prompt(number: int, random: np.random.Generator) -> str:
    """T_opt; at times nothing, or the vague wish, so that the picture learns to speak for itself."""
    choice = random.random()
    item = known(number)
    return item.optimized if choice < 0.6 else "" if choice < 0.8 else item.instruction


def batches(config: BaseAdapter, cache: Cache, embeds: Tensor):
    def batch_of(number: int) -> dict:
        random = np.random.default_rng([config.seed, number, 7])
        rows = random.integers(0, len(embeds), config.batch_size)
        clean = cache.target[rows].float()
        kept = torch.from_numpy(random.random(len(rows)) > 0.08)[:, None]
        return {"clean": clean, "text": [prompt(int(row), random) for row in rows],
                "mask": cache.mask[rows][:, None].float(), "masked": cache.masked[rows].float(),
                "embeds": embeds[rows] * kept, "inpaint": number % 2 == 0,
                "timesteps": torch.from_numpy(random.integers(0, 1000, len(rows))),
                "noise": torch.from_numpy(random.standard_normal(clean.shape, np.float32))}
    return batch_of


class Student(nn.Module):
    """The adapter on both frozen painters, in turns. They are no part of it: neither saved nor trained."""

    def __init__(self, adapter: IPAdapter, unet: nn.Module, unet_inpaint: nn.Module, texts: TextStates):
        super().__init__()
        self.adapter, self.painters, self.texts = adapter, (unet, unet_inpaint), texts

    def forward(self, batch: dict) -> Losses:
        states = self.texts(batch["text"])
        inputs = NOISE.add_noise(batch["clean"], batch["noise"], batch["timesteps"])
        painter = self.painters[batch["inpaint"]]
        if batch["inpaint"]:
            inputs = torch.cat([inputs, batch["mask"], batch["masked"]], 1)
        image_tokens = self.adapter.project(batch["embeds"])
        with quick_attention(painter), self.adapter.attached(painter, image_tokens=image_tokens, scale=1.0):
            predicted = painter(inputs, batch["timesteps"], states).sample
        return {"noise": epsilon_loss(predicted, batch["noise"], weight(batch["timesteps"]))}


@torch.no_grad()
def validate(student: Student, clip: nn.Module, autoencoder: nn.Module) -> Scores:
    """Loss on 50 unseen targets without text: with their own embedding, with another's, and with none."""
    cache = Cache(**encode_chunk(autoencoder, 2**30, 50))
    own = embeddings(clip, 50, first=2**30)
    random = np.random.default_rng(0)
    inputs = {"clean": cache.target.float(), "text": [""] * 50, "inpaint": False,
              "timesteps": torch.linspace(100, 980, 50).long(),
              "noise": torch.from_numpy(random.standard_normal(cache.target.shape, np.float32))}
    told = {"own": own, "another": own.roll(1, 0), "none": torch.zeros_like(own)}
    return {name: student(on_device({**inputs, "embeds": embeds}))["noise"].item() for name, embeds in told.items()}


def start(config: BaseAdapter, unet: nn.Module, clip_dim: int) -> IPAdapter:
    if config.warm:
        return IPAdapter.from_file(config.weights / "ip_adapter.safetensors").train()
    return IPAdapter.for_unet(unet, embed_dim=clip_dim, tokens=4, clip_space=MINI_SPACE)


def main() -> None:
    config = read_config(PRESETS, __doc__)
    file = config.weights / "ip_adapter.safetensors"
    seeded(config)
    torch.set_num_threads(config.threads)
    names = ("clip", "unet", "unet_inpaint", "autoencoder")
    clip, unet, unet_inpaint, autoencoder = (frozen(config, name) for name in names)
    cache, clip_dim = latents(config.runs, config.weights, config.count), clip.config.projection_dim
    used = range(min(config.used, len(cache)))
    said = (text for number in used for text in (known(number).optimized, known(number).instruction))
    student = Student(start(config, unet, clip_dim), unet, unet_inpaint, TextStates(clip, ["", *said]))
    before = steps_before(config, file)
    run = fit("train.ip_adapter", run_folder(config, file), student, config,
              batches(config, cache, embeddings(clip, len(used))), lambda: validate(student, clip, autoencoder))
    if run.accelerator.is_main_process:
        said = provenance(config, "train.ip_adapter", before + run.step, run.scores)
        metadata = {"component": "ip_adapter", "class": "IPAdapter", **said,
                    "config": {"clip_space": {"name": MINI_SPACE, "dim": clip_dim}}}
        save_checkpoint(file, student.adapter.state_dict(), metadata,
                        torch.float16)
        save_beside(config, "train.ip_adapter", file)


if __name__ == "__main__":
    main()
