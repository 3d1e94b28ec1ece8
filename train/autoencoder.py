"""Trains the mini's autoencoder: a diffusers AutoencoderDC, 128 px -> 8x8x16 latents, shared by all minis.

    python -m train.autoencoder --steps 26000        # about 100 minutes on one core of a small CPU: 34.8 dB, unseen
    python -m train.autoencoder --warm --decoder-only          # more of the picture from the same latents

The shipped one came in two stages: 6500 steps of 16 without the decoder's last blocks (31.8 dB), then `--warm
--steps 13000 --batch-size 8 --learning-rate 1.5e-3 --ema 0.999 --decay 0.4` with them (34.8 dB).

Loss: mean squared error + 0.1 x mean absolute error. A quarter of the pictures carry grey boxes, as an inpainting
painter's masked picture does; a little noise on the latents keeps the decoder calm about a painter's small errors.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor, nn

from mindedit_core.model_files import save_model
from mindedit_core.scenes import BACKGROUNDS, Scene, render
from mindedit_core.scenes.sampling import draw_thing
from train.common import Losses, Run, Schedule, arguments, fit, run_folder, schedule_of, steps_before, warm
from train.data import pictures, scenes, to_model, training_scene

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


def batches(schedule: Schedule):
    def batch_of(step: int) -> dict:
        random = np.random.default_rng([schedule.seed, step, 1])
        drawn = random.integers(0, POOL, schedule.batch_size)
        images = grey_boxes(to_model(np.stack([picture(int(number)) for number in drawn])), random)
        noise = random.standard_normal((len(images), 16, 8, 8), np.float32)
        return {"images": images.to(memory_format=torch.channels_last), "noise": torch.from_numpy(noise)}
    return batch_of


def losses(model: AutoencoderDC):
    def compute(batch: dict) -> Losses:
        latents = model.encode(batch["images"]).latent
        latents = latents + NOISE * latents.detach().std() * batch["noise"]
        decoded = model.decode(latents).sample.float()
        return {"mse": F.mse_loss(decoded, batch["images"]), "mae": 0.1 * F.l1_loss(decoded, batch["images"]),
                "size": 1e-5 * latents.float().pow(2).mean()}
    return compute


@torch.no_grad()
def validate(model: AutoencoderDC) -> dict[str, float]:
    """PSNR in dB over unseen pictures, by mean squared error of 0..1 values."""
    images = pictures(scenes(2**20, 0, VALIDATION)).to(model.device)
    latents = model.encode(images).latent
    error = F.mse_loss(model.decode(latents).sample.clamp(-1, 1), images) / 4
    return {"psnr": -10 * math.log10(error.item()), "latent_std": latents.std().item()}


def main() -> None:
    def add(parser):
        parser.add_argument("--decoder-only", action="store_true", help="keep the latents: painters stay valid")

    options = arguments(__doc__, Schedule(steps=26000, learning_rate=1.5e-3, batch_size=8, ema=0.999, decay=0.4),
                        add)
    schedule = schedule_of(options)
    torch.manual_seed(schedule.seed)
    model = (warm(options, "autoencoder") or build()).to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(not options.decoder_only)
    before = steps_before(options, "autoencoder")
    run = Run(run_folder(options, "autoencoder"), model, schedule)
    model = fit(run, batches(schedule), losses(model), validate)
    score = validate(model)
    if not options.decoder_only:
        model.register_to_config(scaling_factor=round(1 / score["latent_std"], 5))
    save_model(options.weights / "autoencoder.safetensors", "autoencoder", model,
               {"recipe": "train.autoencoder", "seed": schedule.seed, "steps": before + run.step, "data": "scenes v1",
                "score": score})
    print(score)


if __name__ == "__main__":
    main()
