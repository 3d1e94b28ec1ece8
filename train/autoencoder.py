"""Trains the mini's autoencoder: a diffusers AutoencoderDC, 128 px -> 8x8x16 latents, shared by all minis.

    python -m train.autoencoder                                 # about 100 minutes on one core of a small CPU: 34.8 dB
    python -m train.autoencoder --set warm=true --set decoder_only=true    # more of the picture from the same latents

The shipped one came in two stages: 6500 steps of 16 without the decoder's last blocks (31.8 dB), then 13000 of 8 from
there (`--set warm=true --set steps=13000`) with them (34.8 dB, unseen pictures).

Loss: mean squared error + 0.1 x mean absolute error. A quarter of the pictures carry grey boxes, as an inpainting
painter's masked picture does; a little noise on the latents keeps the decoder calm about a painter's small errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor, nn

from mindedit_core.model_files import save_model
from mindedit_core.scenes import BACKGROUNDS, Scene, render
from mindedit_core.scenes.sampling import draw_thing
from train.config import Training, read_config
from train.data import pictures, scenes, to_model, training_scene
from train.loop import Losses, Scores, fit
from train.stages import provenance, run_folder, save_beside, seeded, steps_before, warm


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Training):
    """decoder_only: keep the latents, so that painters stay valid."""

    decoder_only: bool = False


PRESETS = {"mini": Autoencoder(steps=26000, learning_rate=1.5e-3, batch_size=8, ema=0.999, decay=0.4)}
POOL = 16384  # pictures, 0.8 GB in memory
NOISE = 0.05  # on latents, in units of their standard deviation
VALIDATION = 64


def build() -> AutoencoderDC:
    """Space to depth at first (3 -> 12 -> 48 channels loses nothing), narrow at high resolution, wide at 8x8.

    Residual branches start at zero, so that the shortcuts carry the picture from the first step on.
    """
    empty: tuple = ((),) * 5
    model = AutoencoderDC(latent_channels=16, encoder_block_out_channels=(12, 12, 48, 64, 128),
                          decoder_block_out_channels=(16, 16, 32, 64, 128), encoder_layers_per_block=(0, 1, 1, 1, 3),
                          decoder_layers_per_block=(0, 1, 2, 3, 3), encoder_qkv_multiscales=empty,
                          decoder_qkv_multiscales=empty, decoder_conv_act_fn="silu", scaling_factor=1.0)
    for module in model.modules():
        if type(module).__name__ == "ResBlock":
            nn.init.zeros_(module.norm.weight)
    nn.init.dirac_(model.encoder.conv_in.conv.weight)
    return model


def grey_boxes(images: Tensor, random: np.random.Generator) -> Tensor:
    """Grey (0) rectangles on a quarter of the pictures."""
    for image in images[::4]:
        x0, y0 = random.integers(0, 96, 2)
        width, height = random.integers(20, 60, 2)
        image[:, y0:y0 + height, x0:x0 + width] = 0
    return images


def crowded(random: np.random.Generator) -> Scene:
    """A scene of 4 to 9 things, as hard to code as they come."""
    while True:
        slots = random.choice(9, int(random.integers(4, 10)), replace=False)
        scene = Scene(str(random.choice(BACKGROUNDS)), tuple(draw_thing(random, int(slot)) for slot in slots))
        if not scene.for_evaluation:
            return scene


@lru_cache(maxsize=POOL)
def picture(number: int) -> np.ndarray:
    """Picture `number` of the pool, drawn once: one in four is a scene of the world, the others are crowded."""
    random = np.random.default_rng([number, 1])
    return render(crowded(random) if number % 4 else training_scene(random))


def batches(config: Training):
    def batch_of(number: int) -> dict:
        random = np.random.default_rng([config.seed, number, 1])
        drawn = random.integers(0, POOL, config.batch_size)
        images = grey_boxes(to_model(np.stack([picture(int(number)) for number in drawn])), random)
        noise = random.standard_normal((len(images), 16, 8, 8), np.float32)
        return {"images": images.to(memory_format=torch.channels_last), "noise": torch.from_numpy(noise)}
    return batch_of


class Student(nn.Module):
    """The autoencoder and its loss."""

    def __init__(self, model: AutoencoderDC):
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> Losses:
        latents = self.model.encode(batch["images"]).latent
        latents = latents + NOISE * latents.detach().std() * batch["noise"]
        decoded = self.model.decode(latents).sample.float()
        return {"mse": F.mse_loss(decoded, batch["images"]), "mae": 0.1 * F.l1_loss(decoded, batch["images"]),
                "size": 1e-5 * latents.float().pow(2).mean()}


@torch.no_grad()
def validate(model: AutoencoderDC) -> Scores:
    """PSNR in dB over unseen pictures, by mean squared error of 0..1 values."""
    images = pictures(scenes(2**20, 0, VALIDATION)).to(model.device)
    latents = model.encode(images).latent
    error = F.mse_loss(model.decode(latents).sample.clamp(-1, 1), images) / 4
    return {"psnr": -10 * math.log10(error.item()), "latent_std": latents.std().item()}


def main() -> None:
    config = read_config(PRESETS, __doc__)
    file = config.weights / "autoencoder.safetensors"
    seeded(config)
    model = (warm(config, file) or build()).to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(not config.decoder_only)
    before = steps_before(config, file)
    run = fit("train.autoencoder", run_folder(config, file), Student(model), config, batches(config),
              lambda: validate(model))
    score = run.scores
    if not config.decoder_only:
        model.register_to_config(scaling_factor=round(1 / score["latent_std"], 5))
    if run.accelerator.is_main_process:
        save_model(file, "autoencoder", model,
                   provenance(config, "train.autoencoder", before + run.step, score))
        save_beside(config, "train.autoencoder", file)


if __name__ == "__main__":
    main()
