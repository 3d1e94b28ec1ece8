"""What every recipe shares: a seeded loop with warm-up and decay, bf16 autocast, EMA, a log, and exact resume.

A batch is a function of the step number alone, so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from mindedit_core.checkpoint import read_metadata
from mindedit_core.model_files import MINI_FOLDER, load_model

WEIGHTS = MINI_FOLDER
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Losses = dict[str, Tensor]  # every entry is summed into the loss and logged by its name; "_name" is only logged


@dataclass(frozen=True)
class Schedule:
    """steps: optimiser steps; the learning rate warms up, stays, and falls linearly over the last `decay` of them."""

    steps: int
    learning_rate: float
    batch_size: int
    warm_up: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    seed: int = 0
    threads: int = 1
    workers: int = 0  # processes that prepare batches; 0: the training process itself
    save_every: float = 120.0  # seconds

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step, 0..1."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / max(1, self.warm_up), max(0.0, left))


def arguments(description: str, defaults: Schedule, add: Callable | None = None) -> argparse.Namespace:
    """Command line of a recipe: every field of its schedule, and where runs and weights lie."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints and logs, not tracked")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the mini: read and written")
    parser.add_argument("--warm", action="store_true", help="start from the file in --weights, not at random")
    if add:
        add(parser)
    return parser.parse_args()


def warm(options: argparse.Namespace, name: str) -> nn.Module | None:
    """The file of an earlier stage, trainable again, if --warm asks for it; else None."""
    if not options.warm:
        return None
    return load_model(options.weights / f"{name}.safetensors").requires_grad_(True).train()


def steps_before(options: argparse.Namespace, name: str) -> int:
    """Optimiser steps of the stages before this one, by the file that --warm starts from; ask before it is replaced."""
    return read_metadata(options.weights / f"{name}.safetensors")["steps"] if options.warm else 0


def run_folder(options: argparse.Namespace, name: str) -> Path:
    """Where this stage keeps its checkpoints: a cut-off stage is resumed, a finished one never replaces the next."""
    return options.runs / (f"{name}-after-{steps_before(options, name)}" if options.warm else name)


def schedule_of(options: argparse.Namespace) -> Schedule:
    return Schedule(**{name: getattr(options, name) for name in Schedule.__dataclass_fields__})


def use_plain_attention(language_model: nn.Module) -> None:
    """With heads this narrow torch's fused attention is the slower one on a CPU: 1.2 s against 0.9 s a LoRA step."""
    if DEVICE.type == "cpu":
        language_model.config._attn_implementation = "eager"


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def on_device(batch: Any) -> Any:
    """A batch with its tensors on the training device; dicts and lists are followed, everything else stays."""
    if isinstance(batch, dict):
        return {name: on_device(value) for name, value in batch.items()}
    if isinstance(batch, list):
        return [on_device(value) for value in batch]
    return batch.to(DEVICE, non_blocking=True) if isinstance(batch, Tensor) else batch


class Steps(Dataset):
    """Step number -> batch, so that worker processes can prepare batches ahead and in order."""

    def __init__(self, batch_of: Callable[[int], dict], steps: int):
        self.batch_of, self.steps = batch_of, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict:
        return self.batch_of(step)


def moving_average(decay: float) -> Callable:
    """Exponential, its window at most a ninth of the run so far: the random start is soon forgotten."""

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        kept = min(decay, (1 + float(count)) / (10 + float(count)))
        for average, new in zip(averages, current, strict=True):
            average.lerp_(new.to(average), 1 - kept)
    return update


class Run:
    """One training run in a folder: `last.pt` to resume from, `log.jsonl` to read."""

    def __init__(self, folder: Path, module: nn.Module, schedule: Schedule):
        self.folder, self.module, self.schedule, self.step = folder, module.to(DEVICE), schedule, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.optimizer = torch.optim.AdamW(trainable(module), schedule.learning_rate, betas=(0.9, 0.98),
                                           weight_decay=schedule.weight_decay)
        self.average = AveragedModel(module, multi_avg_fn=moving_average(schedule.ema))
        if (folder / "last.pt").exists():
            self.resume()

    def state(self) -> dict:
        return {"step": self.step, "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(), "random": torch.get_rng_state()}

    def save(self) -> None:
        """Atomic: a killed save leaves the previous checkpoint whole."""
        part = self.folder / f"last.{os.getpid()}.part"
        torch.save(self.state(), part)
        part.replace(self.folder / "last.pt")

    def resume(self) -> None:
        state = torch.load(self.folder / "last.pt", weights_only=True, map_location="cpu")
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.step = state["step"]
        print(f"resumed {self.folder} at step {self.step}", flush=True)

    def log(self, line: dict) -> None:
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(" ".join(f"{key}={value:.4g}" for key, value in line.items()), flush=True)


def fit(run: Run, batch_of: Callable[[int], dict], losses: Callable[[dict], Losses],
        validate: Callable[[nn.Module], dict[str, float]] | None = None, every: int = 500) -> nn.Module:
    """Train to the end of the schedule and return the averaged module in eval mode.

    batch_of(step) is what that step trains on; losses(batch) returns named scalars.
    Raises FloatingPointError, naming the step, as soon as a loss is not finite.
    """
    schedule, started, seen, saved = run.schedule, time.time(), run.step, time.time()
    torch.set_num_threads(schedule.threads)
    loader = DataLoader(Steps(batch_of, schedule.steps), None, sampler=range(run.step, schedule.steps),
                        num_workers=schedule.workers, generator=torch.Generator())
    for batch in loader:
        named = train_step(run, losses, on_device(batch))
        run.step += 1
        if run.step % 50 == 0:
            rate = (run.step - seen) * schedule.batch_size / (time.time() - started)
            run.log({"step": run.step, **numbers(named), "samples_per_second": rate})
            started, seen = time.time(), run.step
        if validate and run.step % every == 0:
            run.log({"step": run.step, **validate(run.average.module.eval())})
            started, seen = time.time(), run.step
        if time.time() - saved > schedule.save_every or run.step == schedule.steps:
            run.save()
            saved = time.time()
    return run.average.module.eval()


def numbers(named: Losses) -> dict[str, float]:
    return {name: value.item() for name, value in named.items()}


def train_step(run: Run, losses: Callable[[dict], Losses], batch: dict) -> Losses:
    """One optimiser step; returns the losses."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.schedule.learning_rate * run.schedule.rate(run.step)
    run.module.train()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        named = losses(batch)
    loss = sum(value for name, value in named.items() if not name.startswith("_"))
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss of step {run.step} in {run.folder} is {loss.item()}; lower the learning rate")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainable(run.module), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.average.update_parameters(run.module)
    return {name: value.detach() for name, value in named.items()}
