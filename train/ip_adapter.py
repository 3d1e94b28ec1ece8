"""Trains the mini's base IP-Adapter on both frozen UNets: image tokens from the CLIP embedding of the target.

    python -m train.ip_adapter --steps 1500          # about 15 minutes on one core of a small CPU

As in IP-Adapter's own recipe: K and V start from the UNet's, text and picture are dropped at times. One adapter serves
both painters, as SD1.5's serves SD1.5 and its inpainting sibling.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.checkpoint import save_checkpoint
from mindedit_core.losses import epsilon_loss
from mindedit_core.model_files import load_model
from train.common import DEVICE, Losses, Run, Schedule, arguments, fit, on_device, run_folder, schedule_of, steps_before
from train.latents import Cache, drawn, encode_chunk, known, latents
from train.mind_edit import CLIP_SPACE, image_embeds, target_pixels
from train.texts import TextStates
from train.unet import NOISE, quick_attention, weight


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


def batches(schedule: Schedule, cache: Cache, embeds: Tensor):
    def batch_of(step: int) -> dict:
        random = np.random.default_rng([schedule.seed, step, 7])
        rows = random.integers(0, len(embeds), schedule.batch_size)
        clean = cache.target[rows].float()
        kept = torch.from_numpy(random.random(len(rows)) > 0.08)[:, None]
        return {"clean": clean, "text": [prompt(int(row), random) for row in rows],
                "mask": cache.mask[rows][:, None].float(), "masked": cache.masked[rows].float(),
                "embeds": embeds[rows] * kept, "inpaint": step % 2 == 0,
                "timesteps": torch.from_numpy(random.integers(0, 1000, len(rows))),
                "noise": torch.from_numpy(random.standard_normal(clean.shape, np.float32))}
    return batch_of


def losses(adapter: IPAdapter, unet: nn.Module, unet_inpaint: nn.Module, texts: TextStates):
    def compute(batch: dict) -> Losses:
        states = texts(batch["text"])
        inputs = NOISE.add_noise(batch["clean"], batch["noise"], batch["timesteps"])
        painter = unet_inpaint if batch["inpaint"] else unet
        if batch["inpaint"]:
            inputs = torch.cat([inputs, batch["mask"], batch["masked"]], 1)
        image_tokens = adapter.project(batch["embeds"])
        with quick_attention(painter), adapter.attached(painter, image_tokens=image_tokens, scale=1.0):
            predicted = painter(inputs, batch["timesteps"], states).sample
        return {"noise": epsilon_loss(predicted, batch["noise"], weight(batch["timesteps"]))}
    return compute


@torch.no_grad()
def validate(adapter: IPAdapter, parts: tuple, clip: nn.Module, autoencoder: nn.Module) -> dict[str, float]:
    """Loss on 50 unseen targets without text: with their own embedding, with another's, and with none."""
    cache = Cache(**encode_chunk(autoencoder, 2**30, 50))
    own = embeddings(clip, 50, first=2**30)
    random = np.random.default_rng(0)
    inputs = {"clean": cache.target.float(), "text": [""] * 50, "inpaint": False,
              "timesteps": torch.linspace(100, 980, 50).long(),
              "noise": torch.from_numpy(random.standard_normal(cache.target.shape, np.float32))}
    told = {"own": own, "another": own.roll(1, 0), "none": torch.zeros_like(own)}
    return {name: losses(adapter, *parts)(on_device({**inputs, "embeds": embeds}))["noise"].item()
            for name, embeds in told.items()}


def start(options, unet: nn.Module) -> IPAdapter:
    if options.warm:
        return IPAdapter.from_file(options.weights / "ip_adapter.safetensors").train()
    return IPAdapter.for_unet(unet, embed_dim=CLIP_SPACE["dim"], tokens=4, clip_space=CLIP_SPACE["name"])


def main() -> None:
    def add(parser):
        parser.add_argument("--count", type=int, default=20000, help="cached samples")
        parser.add_argument("--used", type=int, default=20000, help="of them, so many are embedded and trained on")

    options = arguments(__doc__, Schedule(steps=1500, learning_rate=1e-3, batch_size=64, ema=0.998), add)
    schedule = schedule_of(options)
    torch.manual_seed(schedule.seed)
    torch.set_num_threads(schedule.threads)
    clip, unet, unet_inpaint, autoencoder = (load_model(options.weights / f"{name}.safetensors").to(DEVICE)
                                             for name in ("clip", "unet", "unet_inpaint", "autoencoder"))
    cache = latents(options.runs, options.weights, options.count)
    adapter = start(options, unet)
    before = steps_before(options, "ip_adapter")
    run = Run(run_folder(options, "ip_adapter"), adapter, schedule)
    used = range(min(options.used, len(cache)))
    stream = batches(schedule, cache, embeddings(clip, len(used)))
    said = (text for number in used for text in (known(number).optimized, known(number).instruction))
    painters = (unet, unet_inpaint, TextStates(clip, ["", *said]))
    adapter = fit(run, stream, losses(adapter, *painters))
    save_checkpoint(options.weights / "ip_adapter.safetensors", adapter.state_dict(), dtype=torch.float16, metadata={
        "component": "ip_adapter", "class": "IPAdapter", "config": {"clip_space": CLIP_SPACE},
        "recipe": "train.ip_adapter", "seed": schedule.seed, "steps": before + run.step, "data": "scenes v1",
        "score": validate(adapter, painters, clip, autoencoder)})


if __name__ == "__main__":
    main()
