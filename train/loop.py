"""The one training loop: accelerate's devices, precision and processes; an average of the weights; exact resume.

A student is a module whose `forward(batch)` returns named losses. Micro-batch number i is `batch_of(i)`: a function of
its number alone, so that a resumed run sees what an uninterrupted one would have seen, and two processes see what one
would see that accumulates twice as many. Start a recipe with python, or unchanged with `accelerate launch`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, broadcast_object_list, set_seed
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from train import checkpoints
from train.config import CONFIG, Training, plain, require_same, save_config
from train.optimizers import optimizers

Losses = dict[str, Tensor]  # every entry is summed into the loss and logged by its name; "_name" is only logged
Scores = dict[str, Any]  # numbers, and pictures float[H, W, 3] in 0..1


def device() -> torch.device:
    """Where this process trains."""
    return PartialState().device


def on_device(batch: Any) -> Any:
    """A batch with its tensors on the training device; dicts, lists and named tuples are followed, all else stays."""
    if isinstance(batch, dict):
        return {name: on_device(value) for name, value in batch.items()}
    if hasattr(batch, "_fields"):
        return type(batch)(*map(on_device, batch))
    if isinstance(batch, list):
        return [on_device(value) for value in batch]
    return batch.to(device(), non_blocking=True) if isinstance(batch, Tensor) else batch


class Batches(Dataset):
    """Number of a micro-batch -> the batch, so that worker processes can prepare batches ahead and in order."""

    def __init__(self, batch_of: Callable[[int], dict]):
        self.batch_of = batch_of

    def __getitem__(self, number: int) -> dict:
        return {"number": number, **self.batch_of(number)}


class Run:
    """One training run in a folder: checkpoints to resume from, config.json, log.jsonl and pictures to look at."""

    def __init__(self, recipe: str, folder: Path, student: nn.Module, config: Training):
        self.config, self.folder, self.student = config, folder, student
        torch.set_num_threads(config.threads)
        self.accelerator = accelerator = make_accelerator(config, folder)
        set_seed(config.seed, device_specific=True)
        if accelerator.is_main_process:
            require_same(config, folder / CONFIG)
            save_config(config, recipe, folder / CONFIG)
        checkpoints.leave_out_frozen(accelerator, student)
        student.to(accelerator.device)
        self.model, *self.optimizers = accelerator.prepare(student, *optimizers(student, config))
        self.average = EMAModel(self.parameters, decay=config.ema)
        self.average.to(accelerator.device)
        self.scores: Scores | None = None  # of the last validation
        self.step = checkpoints.load(accelerator, self.average, folder)
        if self.step:
            accelerator.print(f"resumed {folder} at step {self.step}", flush=True)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def save(self) -> None:
        checkpoints.save(self.accelerator, self.average, self.folder, self.step, self.config.keep)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The student with its averaged weights, in eval mode."""
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        self.student.eval()
        try:
            yield self.student
        finally:
            self.average.restore(self.parameters)
            self.student.train()


def make_accelerator(config: Training, folder: Path) -> Accelerator:
    """Devices and processes come from the launch; precision and accumulation from the config, which is saved."""
    accumulation = GradientAccumulationPlugin(num_steps=config.accumulate, sync_with_dataloader=False)
    directories = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder))
    return Accelerator(mixed_precision=config.precision, gradient_accumulation_plugin=accumulation,
                       log_with=list(config.trackers) or None, project_config=directories)


# The loop ------------------------------------------------------------------------------------------------------------


def fit(recipe: str, folder: Path, student: nn.Module, config: Training, batch_of: Callable[[int], dict],
        validate: Callable[[], Scores] | None = None) -> Run:
    """Train to the end of the schedule; the student is left with its averaged weights, in eval mode.

    The run that comes back has their scores.
    batch_of(number): what goes through the model at once; "names" in it say which samples these are
    validate(): scores of the student as it then is
    Raises FloatingPointError, naming step, losses and samples, as soon as a loss is not finite.
    """
    run = Run(recipe, folder, student, config)
    with Log(run) as logged:
        saved = time.time()
        for batches in steps(run, batch_of):
            logged.losses(train_step(run, batches))
            if validate and (run.step % config.validate_every == 0 or run.step == config.steps):
                with run.averaged():
                    run.scores = validate()
                logged.scores(run.scores)
            if run.step == config.steps or time_to_save(run, saved):
                run.save()
                saved = time.time()
    run.average.copy_to(run.parameters)
    run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False).eval()
    if validate and run.scores is None:  # the run was finished already
        run.scores = validate()
    return run


def steps(run: Run, batch_of: Callable[[int], dict]) -> Iterator[list[dict]]:
    """For every step that is left, its micro-batches of this process."""
    config, processes = run.config, run.accelerator.num_processes
    numbers = [number * processes + run.accelerator.process_index
               for number in range(run.step * config.accumulate, config.steps * config.accumulate)]
    loader = iter(DataLoader(Batches(batch_of), None, sampler=numbers, num_workers=config.workers,
                             generator=torch.Generator()))
    for _ in range(run.step, config.steps):
        yield [on_device(next(loader)) for _ in range(config.accumulate)]


def time_to_save(run: Run, saved: float) -> bool:
    """Whether the main process finds that it is time; all processes answer alike."""
    due = [time.time() - saved > run.config.save_every]
    return broadcast_object_list(due)[0]


def train_step(run: Run, batches: list[dict]) -> Losses:
    """One optimiser step over its micro-batches; returns their mean losses."""
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = run.config.learning_rate * run.config.rate(run.step)
    run.student.train()
    found = [micro_step(run, batch) for batch in batches]
    run.average.step(run.parameters)
    run.step += 1
    return {name: sum(named[name] for named in found) / len(found) for name in found[0]}


def micro_step(run: Run, batch: dict) -> Losses:
    """Forward and backward over one micro-batch; the last of a step moves the weights."""
    accelerator = run.accelerator
    with accelerator.accumulate(run.model):
        named = run.model(batch)
        loss = total(named)
        if not torch.isfinite(loss):
            raise FloatingPointError(complaint(run, batch, named))
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(run.parameters, run.config.clip_norm)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {name: value.detach() for name, value in named.items()}


def total(named: Losses) -> Tensor:
    return sum(value for name, value in named.items() if not name.startswith("_"))


def complaint(run: Run, batch: dict, named: Losses) -> str:
    losses = ", ".join(f"{name} {value.item():.4g}" for name, value in named.items())
    samples = ", ".join(map(str, batch.get("names", ()))) or "its number tells which"
    return (f"the loss of step {run.step} in {run.folder} is not finite ({losses}); micro-batch {batch['number']}, "
            f"samples: {samples}. The last checkpoint is whole: look at these samples, or lower the learning rate")


# What is seen of it --------------------------------------------------------------------------------------------------


class Log:
    """Progress bar, log.jsonl, pictures as files, and the trackers; on the main process alone."""

    def __init__(self, run: Run):
        self.run, self.sums, self.count, self.bar = run, {}, 0, None

    def __enter__(self) -> Log:
        run, config = self.run, self.run.config
        each = config.batch_size * config.accumulate * run.accelerator.num_processes
        self.bar = tqdm(total=config.steps * each, initial=run.step * each, unit=" samples", dynamic_ncols=True,
                        disable=not (run.accelerator.is_main_process and sys.stderr.isatty()), desc=run.folder.name)
        self.each, self.since = each, (time.time(), run.step)
        if config.trackers:
            settings = {key: str(value) for key, value in plain(config).items()}
            run.accelerator.init_trackers("mindedit", settings)
        return self

    def __exit__(self, *_error: Any) -> None:
        self.bar.close()
        if self.run.config.trackers:
            self.run.accelerator.end_training()

    def losses(self, named: Losses) -> None:
        """Add one step's losses; their mean is written every `log_every` steps."""
        run, config = self.run, self.run.config
        self.sums = {name: self.sums.get(name, 0) + value for name, value in named.items()}
        self.count += 1
        self.bar.update(self.each)
        if run.step % config.log_every == 0:
            speed = self.speed()
            means = {name: float(value) / self.count for name, value in self.sums.items()}
            left = tqdm.format_interval((config.steps - run.step) * self.each / speed)
            self.write({**means, "samples_per_second": speed}, f"left={left}")
            self.sums, self.count = {}, 0

    def speed(self) -> float:
        """Samples a second since this was last asked, or since the last validation."""
        started, step = self.since
        self.since = time.time(), self.run.step
        return (self.run.step - step) * self.each / max(1e-9, self.since[0] - started)

    def scores(self, scores: Scores) -> None:
        """Numbers into the log, pictures into files and trackers."""
        pictures = {name: value for name, value in scores.items() if isinstance(value, Tensor)}
        self.write({name: float(value) for name, value in scores.items() if name not in pictures})
        if not self.run.accelerator.is_main_process:
            return
        for name, picture in pictures.items():
            pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            Image.fromarray(pixels).save(self.run.folder / f"{name}-{self.run.step:08d}.png")
            for tracker in self.run.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({name: pixels[None]}, step=self.run.step, **layout)
        self.since = time.time(), self.run.step

    def write(self, line: dict[str, float], more: str = "") -> None:
        run = self.run
        run.accelerator.log(line, step=run.step)
        if not run.accelerator.is_main_process:
            return
        with open(run.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": run.step, **line}) + "\n")
        told = " ".join(f"{key}={value:.4g}" for key, value in line.items())
        tqdm.write(f"step={run.step} {told} {more}".rstrip(), file=sys.stdout)
        sys.stdout.flush()
