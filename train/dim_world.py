"""The mini's Draw-In-Mind learns from the procedural world: cached latents, cached states, pictures that are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mindedit_core.contracts import Condition, PaintSettings, Plan
from mindedit_core.dim.files import DimParts
from mindedit_core.model_files import load_model
from mindedit_core.painters.sana import SanaPainter
from mindedit_core.scenes import OPERATIONS, Sample, judge_picture, sample
from mindedit_core.scenes.blueprint import true_blueprint
from train.dim_pictures import see_together
from train.dim_states import States, Turn, cached, padded, turn_states
from train.latents import Cache, known, latents
from train.loop import Scores, device
from train.unet import grid

VALIDATION = 64
SETTINGS = PaintSettings(steps=10, guidance_scale=2.0)  # of the pictures that validation judges


class World(NamedTuple):
    """mllm: frozen;  latents: of pictures before and after;  sorts: (which latents, states of their texts)"""

    mllm: nn.Module
    autoencoder: nn.Module
    latents: Cache
    sorts: list[tuple[str, States]]


def open_world(config) -> World:
    """What config.stage learns from; text-to-image learns the pictures before an edit as well."""
    mllm = load_model(config.weights / "mllm.safetensors").to(device())
    mllm.model.language_model.config._attn_implementation = "eager"
    see_together(mllm.model.visual)
    autoencoder = load_model(config.autoencoder).to(device())
    kept = latents(config.runs, config.autoencoder.parent, config.count)
    return World(mllm, autoencoder, kept, states_of(config, mllm))


def turn_of(stage: str, item: Sample) -> Turn:
    """What the MLLM reads of a sample in this stage."""
    if stage == "t2i":
        return Turn(None, item.target_caption)
    return Turn(item.source, item.instruction if stage == "edit1" else true_blueprint(item))


def states_of(config, mllm: nn.Module) -> list[tuple[str, States]]:
    folder = config.runs / "states"
    main = cached(folder, config.stage, mllm, config.count, lambda number: turn_of(config.stage, known(number)))
    if config.stage != "t2i":
        return [("target", main)]
    captions = cached(folder, "t2i-source", mllm, config.count, lambda number: Turn(None, known(number).source_caption))
    return [("target", main), ("source", captions)]


def batches(config, world: World) -> Callable[[int], dict]:
    def batch_of(number: int) -> dict:
        random = np.random.default_rng([config.seed, number, 11])
        rows = random.integers(0, len(world.latents), config.batch_size)
        drawn = [world.sorts[choice] for choice in random.integers(0, len(world.sorts), len(rows))]
        states, mask = padded([kept[int(row)] for row, (_, kept) in zip(rows, drawn, strict=True)])
        clean = [getattr(world.latents, which)[row] for row, (which, _) in zip(rows, drawn, strict=True)]
        return {"clean": torch.stack(clean).float(), "source": world.latents.source[rows].float(), "states": states,
                "mask": mask, "names": [f"sample {row}" for row in rows],
                **chances(random, (len(rows), *clean[0].shape), config.drop)}
    return batch_of


def chances(random: np.random.Generator, shape: tuple[int, ...], drop: float) -> dict[str, torch.Tensor]:
    """Noise, noise levels, and whose text is dropped."""
    return {"noise": torch.from_numpy(random.standard_normal(shape, np.float32)),
            "level": torch.from_numpy(random.standard_normal(shape[0], np.float32)),
            "dropped": torch.from_numpy(random.random(shape[0]) < drop)}


@torch.no_grad()
def validate(parts: DimParts, stage: str, world: World) -> Scores:
    """Share of unseen scenes (text-to-image), or of unseen single edits, that the picture judge accepts.

    Told the stage's own text: for edit2 the true blueprint.
    """
    items = [sample(2**30 + number, operation=OPERATIONS[number % 7]) for number in range(VALIDATION)]
    states, mask = padded(turn_states(world.mllm, [turn_of(stage, item) for item in items]))
    condition = Condition(parts.projector(states.to(device())), mask)
    artist = SanaPainter(parts.transformer, world.autoencoder, parts.null_tokens, parts.schedule)
    source = torch.from_numpy(np.stack([item.source_image for item in items])).float() / 255
    painted = artist.paint(source.to(device()), Plan("", ""), condition, SETTINGS)
    painted = (painted * 255).round().to(torch.uint8).cpu()
    right = [judge_picture(image.numpy(), item.target).ok for image, item in zip(painted, items, strict=True)]
    error = F.mse_loss(painted.float(), torch.from_numpy(np.stack([item.target_image for item in items])).float())
    return {"success": sum(right) / len(right), "rmse": error.sqrt().item(), "painted": grid(items[:8], painted[:8])}
