"""The paper's two claims (arXiv 2505.19149, ablations), tested on the mini: both strategies, and joint training.

    python -m train.mind_edit --set variant=independent --set out=runs/ablation/mind_edit.safetensors
    python -m train.ablate --json build/ablation.json            # about an hour on one core of a small CPU

Table (a), one jointly trained MLLM: neither / insight only / text only / full. Table (b): text and insight of two MLLMs
trained independently / the text of the joint one with the independent insight / the reverse / joint. The painter, its
seeds and the samples are the same in every column; each column is compared with `full` sample by sample: 95 % bootstrap
interval of the difference, and p by sign flips.

Samples, all unseen and with the true mask: single edits; programs of 2 to 4 steps; and vague wishes, which say neither
thing nor outcome but by other things ("paint the odd one out like the cat").
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindedit_core.contracts import Insight, Plan
from mindedit_core.metrics import bootstrap_interval, paired_interval, paired_p_value
from mindedit_core.scenes import EVALUATION_SEEDS, OPERATIONS, Sample, sample
from mindedit_core.systems import System, load_system
from train.evaluate import commit
from train.evaluate_mind_edit import design, judged, paint, texts_right
from train.unseen import Scores, chunks, masks, pictures, programs, singles

TABLES = {  # column -> whose text, whose insight
    "a": {"neither": ("raw", None), "insight only": ("raw", "joint"), "text only": ("joint", None),
          "full": ("joint", "joint")},
    "b": {"independent": ("text", "insight"), "joint text": ("joint", "insight"), "joint insight": ("text", "joint"),
          "joint": ("joint", "joint")},
}
VAGUE = ("odd one out", "smallest", "biggest", "thing to the", "thing left", "thing right", "thing above",
         "thing below", "thing over", "thing under", " like ", "colour of", "as big as", "neighbour", "copy of",
         "season", "swap day")
METRICS = ("t_opt_exact", "success", "psnr", "ssim", "clip_i")
Known = dict[str, tuple[list[Plan], list[Insight]]]  # whose -> plans and insights of all samples


def is_vague(instruction: str) -> bool:
    return any(words in instruction for words in VAGUE)


def vague(seed: int, n: int) -> list[Sample]:
    """n unseen single edits whose wish names things only by other things, the operations in turn."""
    first = EVALUATION_SEEDS + seed * 10**6 + 700_000
    drawn = (sample(first + number, operation=OPERATIONS[number % 7]) for number in count())
    return list(islice((item for item in drawn if is_vague(item.instruction)), n))


SAMPLES: dict[str, Callable[[int, int], list[Sample]]] = {"single": singles, "multi-step": programs, "vague": vague}


def known(system: System, items: Sequence[Sample], adapters: Mapping[str, Path], batch: int) -> Known:
    """What each MLLM writes and foresees of every sample; one model in memory, its adapters one after the other."""
    found: Known = {}
    for name in ("joint", "text"):
        system.mllm.attach(adapters[name])
        found[name] = design(system, items, batch)
    system.mllm.attach(adapters["insight"])
    foreseen = [system.mllm.encode(image, plan)
                for part in chunks(range(len(items)), batch)
                for image, plan in zip(pictures([items[row] for row in part]).split(1),
                                       [found["text"][0][row] for row in part], strict=True)]
    found["insight"] = ([], foreseen)
    found["raw"] = ([replace(plan, text=plan.raw) for plan in found["joint"][0]], [])
    return found


def column(system: System, items: Sequence[Sample], told: Known, text: str, insight: str | None, options) -> Scores:
    """One column's scores, a value a sample."""
    scores: Scores = {name: [] for name in METRICS}
    scores["t_opt_exact"] = texts_right(items, told[text][0])
    for number, rows in enumerate(chunks(range(len(items)), options.batch)):
        part, mask = [items[row] for row in rows], masks([items[row] for row in rows])
        plans = [told[text][0][row] for row in rows]
        insights = [told[insight or "joint"][1][row] for row in rows]
        painted = paint(system, part, plans, insights, 0.0 if insight is None else 1.0, mask,
                        options.seed * 1000 + number)
        found = judged(part, painted, "success_mask", mask, system.painter.text_encoder)
        for name in METRICS[1:]:
            scores[name] += found["success_mask" if name == "success" else name]
    return scores


def columns(system: System, items: Sequence[Sample], told: Known, options) -> dict[str, Scores]:
    """All columns of both tables; the last one is the same in both and painted once."""
    wanted = {name: pair for table in TABLES.values() for name, pair in table.items() if name != "joint"}
    return {name: column(system, items, told, *pair, options) for name, pair in wanted.items()}


def compared(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Column -> metric -> mean with its interval, and the difference to `full` with interval and p."""
    table: dict[str, dict[str, Any]] = {}
    for name, metrics in scores.items():
        for metric, values in metrics.items():
            own, best = torch.tensor(values), torch.tensor(scores["full"][metric])
            table.setdefault(name, {})[metric] = asdict(bootstrap_interval(own)) | {
                "full_minus": asdict(paired_interval(best, own)), "p": paired_p_value(best, own)}
    return table


def show(report: Mapping[str, Any]) -> None:
    for name, table in TABLES.items():
        for sort, found in report["samples"].items():
            print(f"\n({name}) {sort}, n = {report['n']}")
            for column in table:
                cells = found["full" if column == "joint" else column]
                print(f"  {column:14}", "  ".join(cell(metric, cells[metric]) for metric in METRICS))


def cell(metric: str, found: Mapping[str, Any]) -> str:
    digits = 2 if metric == "psnr" else 3
    gap = found["full_minus"]
    said = f"{metric} {found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return f"{said} ({gap['value']:+.{digits}f}, p {found['p']:.4f})" if gap["value"] else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="mini")
    parser.add_argument("--joint", type=Path, help="adapter file; default: the system's own")
    parser.add_argument("--text", type=Path, default=Path("runs/ablation/mind_edit-text.safetensors"))
    parser.add_argument("--insight", type=Path, default=Path("runs/ablation/mind_edit-insight.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=500, help="samples of each sort")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--samples", nargs="+", default=list(SAMPLES), choices=SAMPLES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = ablate(load_system(options.system), options)
    show(report)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def ablate(system: System, options: argparse.Namespace) -> dict[str, Any]:
    adapters = {"joint": options.joint or system.mllm.adapter, "text": options.text, "insight": options.insight}
    found = {}
    for sort in options.samples:
        items = SAMPLES[sort](options.seed, options.n)
        scores = columns(system, items, known(system, items, adapters, options.batch), options)
        found[sort] = compared(scores)
        print(sort, {name: round(float(np.mean(each["success"])), 3) for name, each in scores.items()}, flush=True)
    return {"system": options.system, "seed": options.seed, "n": options.n, "commit": commit(), "samples": found}


if __name__ == "__main__":
    main()
