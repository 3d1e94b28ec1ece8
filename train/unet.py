"""Trains the mini's painters: SD1.5-type UNets on cached latents, text by the frozen CLIP.

    python -m train.unet                             # inpaint: about 4 hours on one core of a small CPU
    python -m train.unet --config img2img            # whichever comes second starts from the first
    measured after 12,406 steps (inpaint) by train.evaluate's variant oracle, with the true mask: 96 % of unseen edits
    right, and 85 % of wishes of 2 to 4 edits

Epsilon prediction on SD1.5's noise schedule, weighted as EDM weights pictures (`losses.edm_weight`), text dropped one
time in ten.
The img2img painter learns whole scenes, parts of scenes, and T_opt; the inpainting one T_opt and whole scenes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mindedit_core.backbones.mini_tokenizer import load_tokenizer
from mindedit_core.contracts import Condition, PaintSettings, Plan
from mindedit_core.losses import edm_weight, epsilon_loss
from mindedit_core.model_files import load_model, save_model
from mindedit_core.painters.unet import UNetPainter
from mindedit_core.scenes import OPERATIONS, Sample, judge_picture, sample
from train.config import Training, read_config
from train.encoding import Cache as Kept
from train.facts import part, whole
from train.latents import Cache, known, latents
from train.loop import Losses, Scores, device, fit
from train.stages import frozen, provenance, run_folder, save_beside, seeded, steps_before, warm
from train.texts import TextStates


@dataclass(frozen=True, kw_only=True)
class Painter(Training):
    """painter: which UNet;  count: cached samples that it learns from."""

    painter: Literal["inpaint", "img2img"] = "inpaint"
    count: int = 40000


INPAINT = Painter(steps=6000, learning_rate=1e-3, batch_size=64)
PRESETS = {"inpaint": INPAINT, "img2img": replace(INPAINT, painter="img2img")}
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


def batches(config: Painter, cache: Cache):
    def batch_of(number: int) -> dict:
        random = np.random.default_rng([config.seed, number, 6])
        rows = random.integers(0, len(cache), config.batch_size)
        said = [caption(int(row), config.painter, random) for row in rows]
        clean = torch.stack([getattr(cache, which)[row] for row, (_, which) in zip(rows, said, strict=True)])
        return {"clean": clean.float(), "text": [text for text, _ in said], "names": [f"sample {row}" for row in rows],
                "mask": cache.mask[rows][:, None].float(), "masked": cache.masked[rows].float(),
                "timesteps": torch.from_numpy(random.integers(0, 1000, len(rows))),
                "noise": torch.from_numpy(random.standard_normal(clean.shape, np.float32))}
    return batch_of


def weight(timesteps: Tensor) -> Tensor:
    return edm_weight(NOISE.alphas_cumprod, timesteps, GAMMA)


@contextmanager
def quick_attention(unet: nn.Module):
    """With heads this narrow torch's fused attention is the slower one on a CPU: a step takes 0.9 s against 1.6 s."""
    if device().type != "cpu":
        yield
        return
    usual = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    try:
        with sdpa_kernel(SDPBackend.MATH):  # for the processors that others put in
            yield
    finally:
        unet.set_attn_processor(usual)


class Student(nn.Module):
    """A UNet and its loss; texts: what it hears, ready-made."""

    def __init__(self, unet: nn.Module, texts: TextStates, painter: str):
        super().__init__()
        self.unet, self.texts, self.painter = unet, texts, painter

    def forward(self, batch: dict) -> Losses:
        states = self.texts(batch["text"])
        inputs = NOISE.add_noise(batch["clean"], batch["noise"], batch["timesteps"])
        if self.painter == "inpaint":
            inputs = torch.cat([inputs, batch["mask"], batch["masked"]], 1)
        with quick_attention(self.unet):
            predicted = self.unet(inputs, batch["timesteps"], states).sample
        return {"noise": epsilon_loss(predicted, batch["noise"], weight(batch["timesteps"]))}


@torch.no_grad()
def validate(unet: nn.Module, painter: str, clip: nn.Module, autoencoder: nn.Module, words) -> Scores:
    """Share of unseen edits that the picture judge accepts, given the true T_opt (and the true mask); and some of them.

    Single edits, and programs of several.
    """
    unets = (unet, None) if painter == "img2img" else (None, unet)
    artist = UNetPainter(*unets, autoencoder, clip, words)
    singles = [sample(2**30 + number, operation=OPERATIONS[number % 7]) for number in range(VALIDATION)]
    programs = [sample(2**30 + number, steps=2 + number % 3) for number in range(VALIDATION // 2)]
    right, grid = judged(artist, singles)
    return {"success": right, "success_program": judged(artist, programs)[0], "painted": grid}


def judged(artist: UNetPainter, items: list[Sample]) -> tuple[float, Tensor]:
    """Share of right pictures, and a grid of the first eight: source, painted, target."""
    painted = torch.cat([paint(artist, items[first:first + 16]) for first in range(0, len(items), 16)])
    right = [judge_picture(image.numpy(), item.target).ok for image, item in zip(painted, items, strict=True)]
    return sum(right) / len(items), grid(items[:8], painted[:8])


def paint(artist: UNetPainter, items: list[Sample]) -> Tensor:
    """uint8[B, 128, 128, 3], told the truth."""
    masked = artist.unet is None
    plans = [Plan(item.instruction, item.optimized, "truth") for item in items]
    mask = torch.from_numpy(np.stack([item.mask for item in items])).float() if masked else None
    source = torch.from_numpy(np.stack([item.source_image for item in items])).float() / 255
    settings = SETTINGS.but(strength=1.0 if masked else 0.85, mask=mask)
    return (artist.paint(source, plans, Condition(), settings) * 255).round().to(torch.uint8)


def grid(items: list[Sample], painted: Tensor) -> Tensor:
    """float[3 * 128, 8 * 128, 3]: sources above, targets below."""
    rows = [np.stack([item.source_image for item in items]), painted.numpy(),
            np.stack([item.target_image for item in items])]
    return rearrange(torch.from_numpy(np.stack(rows)).float() / 255, "r n h w c -> (r h) (n w) c")


def start(config: Painter) -> UNet2DConditionModel:
    """From the other painter if that is trained already, as SD-inpainting came from SD; else from random weights."""
    grown = config.painter == "inpaint"
    other: Path = config.weights / ("unet.safetensors" if grown else "unet_inpaint.safetensors")
    if not other.exists():
        return build(2 * CHANNELS + 1 if grown else CHANNELS)
    return (widened if grown else narrowed)(load_model(other))


def main() -> None:
    config = read_config(PRESETS, __doc__)
    seeded(config)
    torch.set_num_threads(config.threads)
    clip, autoencoder = frozen(config, "clip"), frozen(config, "autoencoder")
    cache = latents(config.runs, config.weights, config.count)
    name = "unet" if config.painter == "img2img" else "unet_inpaint"
    file = config.weights / f"{name}.safetensors"
    unet = warm(config, file) or start(config).requires_grad_(True).train()
    before = steps_before(config, file)
    said = (known(number).optimized for number in range(config.count))
    texts = TextStates(clip, ["", *said], Kept(config.runs / "encoded"))
    truth = (clip, autoencoder, load_tokenizer(config.weights / "tokenizer.json"))
    run = fit("train.unet", run_folder(config, file), Student(unet, texts, config.painter), config,
              batches(config, cache), lambda: validate(unet, config.painter, *truth))
    if run.accelerator.is_main_process:
        save_model(file, name, unet,
                   provenance(config, f"train.unet --config {config.painter}", before + run.step, run.scores,
                              f"scenes v1, {config.count} samples"))
        save_beside(config, "train.unet", file)


if __name__ == "__main__":
    main()
