"""Scores a system on unseen scenes of the world, with 95 % bootstrap intervals.

    python -m train.evaluate --system mini --seed 0 --n 500 --json build/evaluation.json

The model gets the rendered source, T_raw, and the mask where said; nothing else. Variants share weights and seeds:
full; text_only (lambda = 0); insight_only (the prompt is T_raw); neither; oracle (true T_opt, true target embedding).
Asked for by name, to find out what the insight is worth: full_true_insight, raw_true_insight (the target's embedding
instead of v_insight) and true_text (true T_opt, lambda = 0).

    t_opt_exact         T_opt says the right facts (text judge); _grey: the same model on a grey picture
    success_mask        one edit, true mask, picture judge        success_multi_step       programs of 2-4, true mask
    success_no_mask     one edit, the MASK of T_opt's regions     success_multi_step_own   programs, T_opt's regions
    success_img2img     one edit, no mask at all                  psnr, ssim, clip_i       see below
    region_iou          of T_opt's regions with the true mask

A Draw-In-Mind (--system dim-mini) has variants and metrics of its own: see train.evaluate_dim.
psnr, ssim: in the mask's box, not composited; clip_i: cosine of our CLIP's embeddings of what a user gets and target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mindedit_core import load_system
from mindedit_core.bridges.mlp import MLPProjector
from mindedit_core.contracts import Insight, Plan
from mindedit_core.metrics import bootstrap_interval, mask_box, paired_interval, psnr, ssim
from mindedit_core.pipeline import join_conditions
from mindedit_core.regions import region_mask
from mindedit_core.scenes import EVALUATION_SEEDS, OPERATIONS, Sample, judge_picture, judge_text, sample
from mindedit_core.tensors import composite
from train import evaluate_dim
from train.clip_target import image_embeds, target_pixels

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
Scores = dict[str, list[float]]  # metric -> one value a sample


def singles(seed: int, n: int) -> list[Sample]:
    """n unseen single edits, the seven operations in turn."""
    return [sample(EVALUATION_SEEDS + seed * 10**6 + i, operation=OPERATIONS[i % 7]) for i in range(n)]


def programs(seed: int, n: int) -> list[Sample]:
    return [sample(EVALUATION_SEEDS + seed * 10**6 + 500_000 + i, steps=2 + i % 3) for i in range(n)]


def pictures(items: Sequence[Sample]) -> Tensor:
    """float[B, 128, 128, 3] in 0..1."""
    return torch.from_numpy(np.stack([item.source_image for item in items])).float() / 255


def masks(items: Sequence[Sample]) -> Tensor:
    return torch.from_numpy(np.stack([item.mask for item in items])).float()


def chunks(items: Sequence, size: int):
    return [items[start:start + size] for start in range(0, len(items), size)]


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


def estimates(scores: Scores) -> dict[str, dict]:
    return {metric: asdict(bootstrap_interval(torch.tensor(values))) for metric, values in scores.items()}


def by_operation(scores: Scores, items: Sequence[Sample]) -> dict[str, dict]:
    """The same for each operation, of metrics measured on single edits."""
    table: dict[str, dict] = {}
    for name in OPERATIONS:
        rows = [row for row, item in enumerate(items) if item.operation == name]
        own = {metric: [values[row] for row in rows] for metric, values in scores.items() if "multi" not in metric}
        table[name] = estimates(own)
    return table


def differences(found: dict[str, Scores], variant: str = "full", pairs: dict | None = None) -> dict[str, dict]:
    """`variant` minus those it is compared with, on the same samples; `ahead` only where the interval excludes 0."""
    table: dict[str, dict] = {}
    for other in (name for name in (pairs or PAIRS)[variant] if name in found and variant in found):
        for metric in (name for name in found[other] if name in found[variant]):
            gap = paired_interval(torch.tensor(found[variant][metric]), torch.tensor(found[other][metric]))
            table.setdefault(other, {})[metric] = {**asdict(gap), "ahead": gap.low > 0}
    return table


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def interval(found: dict) -> str:
    return f"{found['value']:8.3f}  [{found['low']:.3f}, {found['high']:.3f}]"


def said(settings) -> dict:
    """The numbers of paint settings, for the report."""
    return {name: value for name, value in vars(settings).items() if isinstance(value, (int, float))}


def show(report: dict) -> None:
    for variant, metrics in report["variants"].items():
        for metric, found in metrics.items():
            print(f"{variant:13} {metric:24} {interval(found)}  n={found['n']}")
    for operation, metrics in report["operations"].items():
        print(f"{operation:13}", "  ".join(f"{metric} {found['value']:.3f}" for metric, found in metrics.items()))
    for variant in (key.removesuffix("_minus") for key in report if key.endswith("_minus")):
        for other, metrics in report[f"{variant}_minus"].items():
            for metric, gap in metrics.items():
                verdict = "ahead" if gap["ahead"] else "not ahead"
                print(f"{variant} - {other:13} {metric:24} {interval(gap)}  {verdict}")


def kind_of(system) -> Any:
    """The module that knows a system's variants and metrics: this one, or Draw-In-Mind's."""
    return evaluate_dim if isinstance(system.bridge, MLPProjector) else sys.modules[__name__]


def choices(parser: argparse.ArgumentParser, said: list[str] | None, known: Sequence[str], more: Sequence[str] = ()):
    """What was said, each of it known; all of `known` if nothing was."""
    if strange := [name for name in said or () if name not in (*known, *more)]:
        parser.error(f"this system has no {strange[0]!r}; have {', '.join((*known, *more))}")
    return said or list(known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=500, help="samples of each sort; 7 at least, one for each operation")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variants", nargs="+", help="default: all that the system has")
    parser.add_argument("--metrics", nargs="+", help="default: all that the system has")
    options = parser.parse_args()
    if options.n < len(OPERATIONS):
        parser.error(f"--n must be {len(OPERATIONS)} or more, one sample for each operation, got {options.n}")
    system = load_system(options.system)
    kind = kind_of(system)
    options.variants = choices(parser, options.variants, list(kind.VARIANTS), list(getattr(kind, "STUDIES", ())))
    options.metrics = choices(parser, options.metrics, list(kind.METRICS))
    samples = {"alone": singles(options.seed, options.n), "several": programs(options.seed, options.n)}
    found = kind.evaluate(system, samples, options)
    report = {"system": options.system, "seed": options.seed, "n": options.n, "commit": commit(),
              "settings": {"mask": said(system.settings), "img2img": said(system.settings_for(None))},
              "variants": {variant: estimates(scores) for variant, scores in found.items()},
              "operations": by_operation(found.get("full", {}), samples["alone"]),
              **tables_of(kind, found, samples["alone"])}
    show(report)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def tables_of(kind: Any, found: dict[str, Scores], items: Sequence[Sample]) -> dict[str, dict]:
    """Differences between variants; and each variant by operation, where the operations are what is compared."""
    tables = {f"{variant}_minus": differences(found, variant, kind.PAIRS) for variant in kind.PAIRS}
    if kind is evaluate_dim:
        tables["by_operation"] = {variant: by_operation(scores, items) for variant, scores in found.items()}
    return tables


if __name__ == "__main__":
    main()
