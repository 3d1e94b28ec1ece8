"""Scores a system on unseen scenes of the world, with 95 % bootstrap intervals.

    python -m train.evaluate --system mini --seed 0 --n 500 --json build/evaluation.json
    python -m train.evaluate --system dim-mini --seed 0 --n 500 --json build/evaluation_dim.json

The model gets the rendered source, T_raw, and the mask where said; nothing else. Variants share weights and seeds;
what they are, and what is measured, say train.evaluate_mind_edit and train.evaluate_dim.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mindedit_core import load_system
from mindedit_core.bridges.mlp import MLPProjector
from mindedit_core.metrics import bootstrap_interval, paired_interval
from mindedit_core.scenes import OPERATIONS, Sample
from train import evaluate_dim, evaluate_mind_edit
from train.unseen import Scores, programs, singles


def estimates(scores: Scores) -> dict[str, dict]:
    return {metric: asdict(bootstrap_interval(torch.tensor(values))) for metric, values in scores.items()}


def by_operation(scores: Scores, items: Sequence[Sample]) -> dict[str, dict]:
    """The same for each operation, of metrics measured on single edits."""
    return {name: estimates(rows_of({"": scores}, items, name)[""]) for name in OPERATIONS}


def differences(found: dict[str, Scores], variant: str, pairs: dict[str, Sequence[str]]) -> dict[str, dict]:
    """`variant` minus those it is compared with, on the same samples; `ahead` only where the interval excludes 0."""
    table: dict[str, dict] = {}
    for other in (name for name in pairs[variant] if name in found and variant in found):
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
    for operation, others in report.get("full_minus_by_operation", {}).items():
        for other, metrics in others.items():
            if "success_no_mask" in metrics:
                print(f"full - {other:13} {operation:24} {interval(metrics['success_no_mask'])}")
    for variant in (key.removesuffix("_minus") for key in report if key.endswith("_minus")):
        for other, metrics in report[f"{variant}_minus"].items():
            for metric, gap in metrics.items():
                verdict = "ahead" if gap["ahead"] else "not ahead"
                print(f"{variant} - {other:13} {metric:24} {interval(gap)}  {verdict}")


def kind_of(system) -> Any:
    """The module that knows a system's variants and metrics."""
    return evaluate_dim if isinstance(system.bridge, MLPProjector) else evaluate_mind_edit


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
        tables["full_minus_by_operation"] = {name: differences(rows_of(found, items, name), "full", kind.PAIRS)
                                             for name in OPERATIONS}
    return tables


def rows_of(found: dict[str, Scores], items: Sequence[Sample], operation: str) -> dict[str, Scores]:
    """Every variant's scores of the single edits of one operation."""
    rows = [row for row, item in enumerate(items) if item.operation == operation]
    return {variant: {metric: [values[row] for row in rows] for metric, values in scores.items()
                      if "multi" not in metric} for variant, scores in found.items()}


if __name__ == "__main__":
    main()
