"""Trains the mini's painters: SD1.5-type UNets on cached latents, text by the frozen CLIP.

    python -m train.unet --painter inpaint --steps 6000     # about 100 minutes on one core of a small CPU
    python -m train.unet --painter img2img --steps 6000     # whichever comes second starts from the first
    measured after 7600 steps: 94 % of unseen edits right with the true mask and T_opt (inpaint)

Epsilon prediction on SD1.5's noise schedule, weighted as EDM weights pictures (`losses.edm_weight`), text dropped one
time in ten.
The img2img painter learns whole scenes, parts of scenes, and T_opt; the inpainting one T_opt and whole scenes.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mindedit_core.backbones.mini_tokenizer import load_tokenizer
from mindedit_core.contracts import Condition, PaintSettings, Plan
from mindedit_core.losses import edm_weight, epsilon_loss
from mindedit_core.model_files import load_model, save_model
from mindedit_core.painters.unet import UNetPainter
from mindedit_core.scenes import OPERATIONS, judge_picture, sample
from train.common import DEVICE, Losses, Run, Schedule, arguments, fit, run_folder, schedule_of, steps_before, warm
from train.facts import part, whole
from train.latents import Cache, known, latents
from train.texts import TextStates

CHANNELS = 16
GAMMA = 5.0
VALIDATION = 64
SETTINGS = PaintSettings(steps=10, guidance_scale=3.0)  # of the pictures that validation judges
NOISE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def build(in_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, out_channels=CHANNELS, block_out_channels=(128,), layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=8,
        cross_attention_dim=192, norm_num_groups=32)


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """An inpainting UNet that starts equal to `unet`: the new input channels have zero weights."""
    wide = build(2 * CHANNELS + 1)
    state = unet.state_dict()
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, CHANNELS + 1))
    wide.load_state_dict(state)
    return wide


def narrowed(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The reverse: an img2img UNet that sees of an inpainting one's inputs the noisy latents alone."""
    narrow = build(CHANNELS)
    state = unet.state_dict()
    narrow.load_state_dict({**state, "conv_in.weight": state["conv_in.weight"][:, :CHANNELS].clone()})
    return narrow


def caption(number: int, painter: str, random: np.random.Generator) -> tuple[str, str]:
    """(text, which picture it tells of): T_opt, the whole scene, or a part of one; empty one time in ten."""
    item, choice = known(number), random.random()
    if random.random() < 0.1:
        return "", "target"
    if choice < (0.85 if painter == "inpaint" else 0.4):
        return item.optimized, "target"
    which = "source" if painter == "img2img" and random.random() < 0.5 else "target"
    scene = getattr(item, which)
    return (whole(scene) if choice < 0.9 else part(scene, random)).text, which


def batches(schedule: Schedule, cache: Cache, painter: str):
    def batch_of(step: int) -> dict:
        random = np.random.default_rng([schedule.seed, step, 6])
        rows = random.integers(0, len(cache), schedule.batch_size)
        said = [caption(int(row), painter, random) for row in rows]
        clean = torch.stack([getattr(cache, which)[row] for row, (_, which) in zip(rows, said, strict=True)])
        return {"clean": clean.float(), "text": [text for text, _ in said],
                "mask": cache.mask[rows][:, None].float(), "masked": cache.masked[rows].float(),
                "timesteps": torch.from_numpy(random.integers(0, 1000, len(rows))),
                "noise": torch.from_numpy(random.standard_normal(clean.shape, np.float32))}
    return batch_of


def weight(timesteps: Tensor) -> Tensor:
    return edm_weight(NOISE.alphas_cumprod, timesteps, GAMMA)


@contextmanager
def quick_attention(unet: nn.Module):
    """With heads this narrow torch's fused attention is the slower one on a CPU: a step takes 0.9 s against 1.6 s."""
    if DEVICE.type != "cpu":
        yield
        return
    usual = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    try:
        with sdpa_kernel(SDPBackend.MATH):  # for the processors that others put in
            yield
    finally:
        unet.set_attn_processor(usual)


def losses(unet: nn.Module, texts: TextStates, painter: str):
    def compute(batch: dict) -> Losses:
        states = texts(batch["text"])
        inputs = NOISE.add_noise(batch["clean"], batch["noise"], batch["timesteps"])
        if painter == "inpaint":
            inputs = torch.cat([inputs, batch["mask"], batch["masked"]], 1)
        with quick_attention(unet):
            predicted = unet(inputs, batch["timesteps"], states).sample
        return {"noise": epsilon_loss(predicted, batch["noise"], weight(batch["timesteps"]))}
    return compute


@torch.no_grad()
def validate(unet: nn.Module, painter: str, clip: nn.Module, autoencoder: nn.Module, words) -> dict[str, float]:
    """Share of unseen single edits that the picture judge accepts, given the true T_opt (and the true mask)."""
    unets = (unet, None) if painter == "img2img" else (None, unet)
    artist = UNetPainter(*unets, autoencoder, clip, words)
    right = 0
    for first in range(0, VALIDATION, 16):
        items = [sample(2**30 + number, operation=OPERATIONS[number % 7])
                 for number in range(first, min(first + 16, VALIDATION))]
        plans = [Plan(item.instruction, item.optimized, "truth") for item in items]
        mask = torch.from_numpy(np.stack([item.mask for item in items])).float() if painter == "inpaint" else None
        strength = 1.0 if painter == "inpaint" else 0.85
        settings = SETTINGS.but(strength=strength, mask=mask)
        source = torch.from_numpy(np.stack([item.source_image for item in items])).float() / 255
        images = (artist.paint(source, plans, Condition(), settings) * 255).round().to(torch.uint8).numpy()
        right += sum(judge_picture(image, item.target).ok for image, item in zip(images, items, strict=True))
    return {"success": right / VALIDATION}


def start(options) -> UNet2DConditionModel:
    """From the other painter if that is trained already, as SD-inpainting came from SD; else from random weights."""
    grown = options.painter == "inpaint"
    other: Path = options.weights / ("unet.safetensors" if grown else "unet_inpaint.safetensors")
    if not other.exists():
        return build(2 * CHANNELS + 1 if grown else CHANNELS)
    return (widened if grown else narrowed)(load_model(other))


def main() -> None:
    def add(parser):
        parser.add_argument("--painter", choices=("img2img", "inpaint"), required=True)
        parser.add_argument("--count", type=int, default=20000, help="cached samples")

    options = arguments(__doc__, Schedule(steps=6000, learning_rate=1e-3, batch_size=64, ema=0.999), add)
    schedule = schedule_of(options)
    torch.manual_seed(schedule.seed)
    torch.set_num_threads(schedule.threads)
    clip = load_model(options.weights / "clip.safetensors").to(DEVICE)
    cache = latents(options.runs, options.weights, options.count)
    name = "unet" if options.painter == "img2img" else "unet_inpaint"
    unet = warm(options, name) or start(options).requires_grad_(True).train()
    before = steps_before(options, name)
    run = Run(run_folder(options, name), unet, schedule)
    truth = (clip, load_model(options.weights / "autoencoder.safetensors").to(DEVICE),
             load_tokenizer(options.weights / "tokenizer.json"))
    texts = TextStates(clip, ["", *(known(number).optimized for number in range(options.count))])
    unet = fit(run, batches(schedule, cache, options.painter), losses(unet, texts, options.painter),
               lambda average: validate(average, options.painter, *truth))
    save_model(options.weights / f"{name}.safetensors", name, unet,
               {"recipe": f"train.unet --painter {options.painter}", "seed": schedule.seed, "steps": before + run.step,
                "data": f"scenes v1, {options.count} samples", "score": validate(unet, options.painter, *truth)})


if __name__ == "__main__":
    main()
