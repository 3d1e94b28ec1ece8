"""What train.evaluate measures of a MIND-Edit: its variants are whose text and whose insight the painter is told.

full; text_only (lambda = 0); insight_only (the prompt is T_raw); neither; oracle (true T_opt, true target embedding).
Asked for by name, to find out what the insight is worth: full_true_insight, raw_true_insight (the target's embedding
instead of v_insight) and true_text (true T_opt, lambda = 0).

    t_opt_exact         T_opt says the right facts (text judge); _grey: the same model on a grey picture
    success_mask        one edit, true mask, picture judge        success_multi_step       programs of 2-4, true mask
    success_no_mask     one edit, the MASK of T_opt's regions     success_multi_step_own   programs, T_opt's regions
    success_img2img     one edit, no mask at all                  psnr, ssim, clip_i       see below
    region_iou          of T_opt's regions with the true mask

psnr, ssim: in the mask's box, not composited; clip_i: cosine of our CLIP's embeddings of what a user gets and target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mindedit_core.contracts import Insight, Plan
from mindedit_core.metrics import mask_box, psnr, ssim
from mindedit_core.pipeline import join_conditions
from mindedit_core.regions import region_mask
from mindedit_core.scenes import Sample, judge_picture, judge_text
from mindedit_core.tensors import composite
from train.clip_target import image_embeds, target_pixels
from train.unseen import Scores, chunks, masks, pictures

VARIANTS = {  # name -> whose text, whose insight the painter is told
    "full": ("model", "model"), "text_only": ("model", "none"), "insight_only": ("raw", "model"),
    "neither": ("raw", "none"), "oracle": ("true", "true"),
}
STUDIES = {"full_true_insight": ("model", "true"), "raw_true_insight": ("raw", "true"), "true_text": ("true", "none")}
ABLATIONS = ("text_only", "insight_only", "neither")
PAIRS = {"full": ABLATIONS, "insight_only": ("neither",), "full_true_insight": ("text_only",),
         "raw_true_insight": ("neither",), "oracle": ("true_text",)}  # variant -> those that it is compared with
METRICS = {  # -> its samples, and whose mask the painter is given
    "success_mask": ("alone", "true"), "success_no_mask": ("alone", "model"), "success_img2img": ("alone", "none"),
    "success_multi_step": ("several", "true"), "success_multi_step_own": ("several", "model"),
}
MEASURED = ("success_mask", "success_multi_step")  # whose pictures are measured against the target as well


def design(system, items: Sequence[Sample], batch: int) -> tuple[list[Plan], list[Insight]]:
    """T_opt and v_insight of every sample, from one generation each."""
    plans, insights = [], []
    for part in chunks(items, batch):
        images = pictures(part)
        found = system.designer.design_each(images, [item.instruction for item in part])
        plans += found
        insights += [system.mllm.encode(image, plan) for image, plan in zip(images.split(1), found, strict=True)]
    return plans, insights


def exact_on_grey(system, items: Sequence[Sample], batch: int) -> list[float]:
    found = []
    for part in chunks(items, batch):
        plans = system.designer.design_each(torch.full_like(pictures(part), 0.5), [item.instruction for item in part])
        found += [float(judge_text(plan.text, item).ok) for plan, item in zip(plans, part, strict=True)]
    return found


def varied(variant: str, items: Sequence[Sample], plans: Sequence[Plan], insights: Sequence[Insight], clip):
    """What this variant lets the painter know: plans, insights, and lambda's factor."""
    text, insight = (VARIANTS | STUDIES)[variant]
    if insight == "true":
        embeds = image_embeds(clip, target_pixels(list(items))).split(1)
        insights = [replace(own, image_embeds=e) for own, e in zip(insights, embeds, strict=True)]
    if text != "model":
        plans = [replace(plan, text=item.optimized if text == "true" else plan.raw)
                 for plan, item in zip(plans, items, strict=True)]
    return list(plans), list(insights), 0.0 if insight == "none" else 1.0


def given_mask(items: Sequence[Sample], plans: Sequence[Plan], metric: str) -> Tensor | None:
    """float[B, 128, 128]: the true mask, or the one that the plan's regions give; None for none at all."""
    whose = METRICS[metric][1]
    if whose == "model":
        sizes = [item.mask.shape for item in items]
        return torch.stack([region_mask(plan.regions, *size) for plan, size in zip(plans, sizes, strict=True)])
    return masks(items) if whose == "true" else None


def paint(system, items, plans, insights, factor: float, mask: Tensor | None, seed: int) -> Tensor:
    """The painter's own picture, not composited: float[B, 128, 128, 3]."""
    condition = join_conditions([system.bridge(insight) for insight in insights])
    settings = system.settings_for(mask).but(seed=seed, composite=False)
    chosen = settings.but(insight_scale=factor * settings.insight_scale)
    return system.painter.paint(pictures(items), plans, condition, chosen)


def judged(items: Sequence[Sample], painted: Tensor, metric: str, mask: Tensor | None, clip) -> Scores:
    """The judge sees the picture as a user gets it, composited where there is a mask; psnr and ssim see the raw one."""
    shown = painted if mask is None else composite(pictures(items), painted, mask)
    images = (shown * 255).round().to(torch.uint8).numpy()
    scores: Scores = {metric: [float(judge_picture(image, item.target).ok)
                               for image, item in zip(images, items, strict=True)]}
    if metric in MEASURED:
        end = metric.removeprefix("success_mask").removeprefix("success")
        measured = boxed(items, painted) | alike(items, shown, clip)
        scores |= {f"{name}{end}": values for name, values in measured.items()}
    return scores


def alike(items: Sequence[Sample], shown: Tensor, clip) -> Scores:
    """CLIP-I: cosine of the embeddings of what a user gets and of the target; nothing from a CLIP that cannot see."""
    if not hasattr(clip, "vision_model"):
        return {}
    ours = image_embeds(clip, rearrange(shown * 2 - 1, "b h w c -> b c h w"))
    return {"clip_i": F.cosine_similarity(ours, image_embeds(clip, target_pixels(list(items)))).tolist()}


def boxed(items: Sequence[Sample], painted: Tensor) -> Scores:
    """PSNR in dB and SSIM against the true target, inside the box around the mask."""
    scores: Scores = {"psnr": [], "ssim": []}
    for item, picture in zip(items, painted, strict=True):
        top, bottom, left, right = mask_box(torch.from_numpy(item.mask), least=11)
        target = torch.from_numpy(item.target_image).float() / 255
        pair = [image[None, top:bottom, left:right] for image in (picture, target)]
        scores["psnr"].append(psnr(*pair).item())
        scores["ssim"].append(ssim(*pair).item())
    return scores


def run_variant(system, variant: str, items, plans, insights, metric: str, options) -> Scores:
    scores: Scores = {}
    for number, rows in enumerate(chunks(range(len(items)), options.batch)):
        part = [items[row] for row in rows]
        clip = system.painter.text_encoder
        texts, hints, factor = varied(variant, part, [plans[r] for r in rows], [insights[r] for r in rows], clip)
        mask = given_mask(part, texts, metric)
        painted = paint(system, part, texts, hints, factor, mask, options.seed * 1000 + number)
        for name, values in judged(part, painted, metric, mask, clip).items():
            scores.setdefault(name, []).extend(values)
    return scores


def require_sight(painter, variants: Sequence[str]) -> None:
    """The target's embedding takes the picture side of the painter's CLIP."""
    told = [name for name in variants if (VARIANTS | STUDIES)[name][1] == "true"]
    if told and not hasattr(painter.text_encoder, "vision_model"):
        raise ValueError(
            f"variant {told[0]} needs a CLIP that sees the target picture, but the painter's text encoder "
            f"{type(painter.text_encoder).__name__} has no vision model; choose --variants "
            + " ".join(name for name, (_, insight) in VARIANTS.items() if insight != "true")
        )


def evaluate(system, samples: dict[str, list[Sample]], options) -> dict[str, Scores]:
    """Per variant and metric one value a sample. samples: "alone" and "several" """
    require_sight(system.painter, options.variants)
    known = {key: design(system, items, options.batch) for key, items in samples.items()}
    exact = {"t_opt_exact": texts_right(samples["alone"], known["alone"][0]),
             "t_opt_exact_multi_step": texts_right(samples["several"], known["several"][0]),
             "t_opt_exact_grey": exact_on_grey(system, samples["alone"], options.batch),
             "region_iou": overlaps(samples["alone"], known["alone"][0]),
             "region_iou_multi_step": overlaps(samples["several"], known["several"][0])}
    found: dict[str, Scores] = {}
    for variant in options.variants:
        found[variant] = dict(exact) if variant == "full" else {}
        for metric in options.metrics:
            key = METRICS[metric][0]
            found[variant] |= run_variant(system, variant, samples[key], *known[key], metric, options)
            print(variant, metric, f"{np.mean(found[variant][metric]):.3f}", flush=True)
    return found


def texts_right(items: Sequence[Sample], plans: Sequence[Plan]) -> list[float]:
    return [float(judge_text(plan.text, item).ok) for item, plan in zip(items, plans, strict=True)]


def overlaps(items: Sequence[Sample], plans: Sequence[Plan]) -> list[float]:
    """Intersection over union of the mask that T_opt's regions give with the true one."""
    found = []
    for item, plan in zip(items, plans, strict=True):
        own, true = region_mask(plan.regions, *item.mask.shape) > 0, torch.from_numpy(item.mask)
        found.append(((own & true).sum() / (own | true).sum()).item())
    return found
