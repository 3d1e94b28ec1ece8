"""What keeping the encodings saves: MIND-Edit's training step with them on disk, beside encoding every sample anew.

    python -m train.bench.encode_once                  # the mini; --config llava-0.5b --set ... as train.mind_edit

Prints samples a second (median over steps, the two in turns on the same batches within one run) and their ratio: of the
encoding alone, and of the whole step.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from train import checkpoints
from train.clip_target import clip_target
from train.config import read_config
from train.encoding import Encoder
from train.examples import batches, source
from train.loop import device, total
from train.mind_edit import PRESETS, Student, load_mllm
from train.stages import seeded

ROUNDS = 8


def main() -> None:
    presets = {name: replace(preset, data_options=preset.data_options or ("count=200",), held_out=8)
               for name, preset in PRESETS.items()}
    config = read_config(presets, __doc__, sys.argv[1:])
    seeded(config)
    torch.set_num_threads(config.threads)
    student = Student(load_mllm(config), clip_target(config.clip, config, config.clip_space), config).to(device())
    with tempfile.TemporaryDirectory() as folder:
        taken = measure(student, source(config).rows, Path(folder))
    for what, seconds in taken.items():
        rate = {name: config.batch_size / statistics.median(values[1:]) for name, values in seconds.items()}
        print(f"{what:9} anew {rate['anew']:8.1f} samples/s   kept {rate['kept']:8.1f} samples/s   "
              f"{rate['kept'] / rate['anew']:.2f} x")


def measure(student: Student, rows, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round; the first one warms up."""
    encoders = {"anew": student.encoder, "kept": Encoder(list(student.encoder.parts.values()), folder)}
    taken: dict = {what: {name: [] for name in encoders} for what in ("encoding", "step")}
    optimizer = torch.optim.AdamW(checkpoints.trained(student).values())
    for number in range(ROUNDS + 1):
        for record in rows(number):
            encoders["kept"].fill(record, {})
        for name, encoder in encoders.items():
            student.encoder = encoder
            batch_of, started = batches(rows, encoder.find), time.perf_counter()
            batch = batch_of(number)
            for pair in zip(batch["records"], batch["found"], strict=True):
                encoder.fill(*pair)
            taken["encoding"][name].append(time.perf_counter() - started)
            taken["step"][name].append(seconds_of_step(student, optimizer, batch_of, number))
    return taken


def seconds_of_step(student: Student, optimizer: torch.optim.Optimizer, batch_of, number: int) -> float:
    started = time.perf_counter()
    with torch.autocast(device().type, torch.bfloat16):
        loss = total(student(batch_of(number)))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
