"""What train.evaluate measures of a Draw-In-Mind: its variants are who designs, and no mask is given.

    full             the system's own MLLM designs           no_designer     the painter's MLLM reads the wish as it is
    true_blueprint   what a designer without fault writes: the upper bound

    blueprint_exact     the last section says the right facts (text judge)
    success_no_mask     one edit, picture judge             success_multi_step       programs of 2 to 4
    psnr, ssim          of the whole picture against the target;  kept: mean absolute difference outside the edit's
                        true mask, in 0..255, and kept_codec: what the autoencoder alone changes there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mindedit_core.blueprint import IMAGINATION, format_blueprint
from mindedit_core.contracts import Plan
from mindedit_core.metrics import psnr, ssim
from mindedit_core.painters.latents import decode, encode
from mindedit_core.pipeline import join_conditions
from mindedit_core.scenes import Sample, judge_picture, judge_text
from mindedit_core.scenes.blueprint import true_sections
from train.unseen import Scores, chunks, pictures

VARIANTS = ("full", "no_designer", "true_blueprint")
PAIRS = {"full": ("no_designer",), "true_blueprint": ("full",)}  # variant -> those that it is compared with
METRICS = {"success_no_mask": "alone", "success_multi_step": "several"}  # -> its samples


def designed(system, items: Sequence[Sample], pictures: Tensor) -> list[Plan]:
    return [system.designer.design(picture, item.instruction) for picture, item in
            zip(pictures.split(1), items, strict=True)]


def varied(variant: str, items: Sequence[Sample], plans: Sequence[Plan]) -> list[Plan]:
    """The plans of this variant."""
    if variant == "full":
        return list(plans)
    if variant == "no_designer":
        return [Plan(item.instruction, item.instruction) for item in items]
    truths = [true_sections(item.instruction, item.source, item.target) for item in items]
    return [replace(Plan(item.instruction, format_blueprint(truth)), sections=truth) for item, truth in
            zip(items, truths, strict=True)]


def exact(items: Sequence[Sample], plans: Sequence[Plan]) -> list[float]:
    """1 where the imagined result says what the picture should show, and nothing else."""
    said = [(plan.sections or {}).get(IMAGINATION, "") for plan in plans]
    return [float(judge_text(text, item).ok) for text, item in zip(said, items, strict=True)]


@torch.no_grad()
def paint(system, items: Sequence[Sample], plans: Sequence[Plan], pictures: Tensor, seed: int) -> Tensor:
    """float[B, 128, 128, 3]"""
    insights = [system.mllm.encode(picture, plan) for picture, plan in zip(pictures.split(1), plans, strict=True)]
    condition = join_conditions([system.bridge(insight) for insight in insights])
    return system.painter.paint(pictures, plans, condition, system.settings_for(None).but(seed=seed))


@torch.no_grad()
def judged(system, items: Sequence[Sample], painted: Tensor, pictures: Tensor, metric: str) -> Scores:
    images = (painted * 255).round().to(torch.uint8).numpy()
    right = [float(judge_picture(image, item.target).ok) for image, item in zip(images, items, strict=True)]
    target = torch.from_numpy(np.stack([item.target_image for item in items])).float() / 255
    scores = {"psnr": psnr(painted, target).tolist(), "ssim": ssim(painted, target).tolist()}
    outside = ~torch.from_numpy(np.stack([item.mask for item in items]))
    codec = decode(system.painter.vae, encode(system.painter.vae, pictures))
    scores |= {"kept": differing(painted, pictures, outside), "kept_codec": differing(codec, pictures, outside)}
    end = metric.removeprefix("success_no_mask").removeprefix("success")
    return {metric: right, **{f"{name}{end}": values for name, values in scores.items()}}


def differing(painted: Tensor, source: Tensor, where: Tensor) -> list[float]:
    """Mean absolute difference in 0..255 where the edit had no business; 0 if it had business everywhere."""
    gap = (painted - source).abs().mean(-1) * 255
    return [float(row[inside].mean()) if inside.any() else 0.0 for row, inside in zip(gap, where, strict=True)]


def evaluate(system, samples: dict[str, list[Sample]], options) -> dict[str, Scores]:
    """Per variant and metric one value a sample. samples: "alone" and "several" """
    found: dict[str, Scores] = {variant: {} for variant in options.variants}
    for metric in options.metrics:
        for number, part in enumerate(chunks(samples[METRICS[metric]], options.batch)):
            seen = pictures(part)
            plans = designed(system, part, seen) if "full" in options.variants else []
            for variant in options.variants:
                told = varied(variant, part, plans)
                painted = paint(system, part, told, seen, options.seed * 1000 + number)
                scores = judged(system, part, painted, seen, metric)
                if variant == "full":
                    end = metric.removeprefix("success_no_mask").removeprefix("success")
                    scores[f"blueprint_exact{end}"] = exact(part, told)
                for name, values in scores.items():
                    found[variant].setdefault(name, []).extend(values)
        for variant in options.variants:
            print(variant, metric, f"{np.mean(found[variant][metric]):.3f}", flush=True)
    return found
