"""A run that was killed, at any moment and however often, ends bit for bit as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from train import checkpoints

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

STEPS = 300
LONGEST_WAIT = 0.05  # seconds, some steps and saves long: the kill may fall anywhere in them
RECIPE = f'''"""FOLDER [SAVES]: trains, telling and saving every step; with SAVES, dies before the rename after them."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from train.config import Training
from train.loop import fit

if len(sys.argv) > 2:
    rename, saves = Path.replace, iter(range(int(sys.argv[2])))

    def replace(part, target):
        if next(saves, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(part, target)

    Path.replace = replace


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.2), nn.Linear(64, 1))

    def forward(self, batch):
        print("step", batch["number"], flush=True)
        return {{"fit": (self.layers(batch["x"]).float() - batch["x"].sum(1, keepdim=True)).pow(2).mean()}}


def batch_of(number):
    return {{"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(number))}}


plan = Training(steps={STEPS}, learning_rate=1e-2, batch_size=4, warm_up=5, save_every=0.0, trackers=())
fit("test", Path(sys.argv[1]), Student(), plan, batch_of)
'''


@pytest.fixture(scope="module")
def start(root, tmp_path_factory):
    """start(folder, *arguments): the recipe as a process of its own, on the CPU."""
    script = tmp_path_factory.mktemp("recipe") / "recipe.py"
    script.write_text(RECIPE)
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}

    def process(folder: Path, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(script), str(folder), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    return process


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> dict:
    """The last checkpoint of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(folder)) == 0
    return checkpoint(folder)


def checkpoint(folder: Path) -> dict:
    """All that the newest checkpoint holds: weights, averages, the optimiser's and the generators' states, progress."""
    newest = checkpoints.found(folder)[-1]
    state = {path.name: torch.load(path, weights_only=False) for path in newest.iterdir()
             if path.suffix in (".bin", ".pt", ".pkl")}
    return state | load_file(newest / checkpoints.TRAINED) | progress_of(folder)


def progress_of(folder: Path) -> dict:
    newest = checkpoints.found(folder)
    return json.loads((newest[-1] / checkpoints.PROGRESS).read_text()) if newest else {"step": 0}


def finish(child: subprocess.Popen) -> int:
    child.communicate()
    return child.returncode


def kill_after(child: subprocess.Popen, steps: int, wait: float) -> int:
    """SIGKILL `wait` seconds after the child told its steps-th step; returns the last step that it began."""
    with child:
        told = [next(line for line in child.stdout if line.startswith("step ")) for _ in range(steps)]
        time.sleep(wait)
        child.kill()
        told += [line for line in child.stdout if line.startswith("step ") and line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL, "the run ended before it was killed; give it more steps"
    return int(told[-1].split()[1])


def kill_again_and_again(start, folder: Path, kills: int, seed: int) -> list[int]:
    """Kills a run at random moments and resumes it each time, to its end; returns the steps that it was killed in."""
    moments, ends, torn = random.Random(seed), [], {}
    for _ in range(kills):
        ends.append(kill_after(start(folder), moments.randint(1, 10), moments.uniform(0, LONGEST_WAIT)))
        saved = progress_of(folder)["step"]
        assert saved in (ends[-1], ends[-1] + 1)  # a step begins only after the one before it was saved
        torn = half_written(folder, ends[-1]) | torn
    assert finish(start(folder)) == 0
    sys.stdout.write(f"\n{kills} kills in steps {ends} of {STEPS}, those in {sorted(torn.values())} while saving")
    return ends


def half_written(folder: Path, step: int) -> dict[int, int]:
    """{moment: step} if a kill left a part of a checkpoint; what an earlier one left has its own moment."""
    part = folder / checkpoints.PART
    return {part.stat().st_mtime_ns: step} if part.exists() else {}


def leaves(tree) -> list:
    """The values of nested dicts, lists and tuples, in order."""
    if isinstance(tree, np.ndarray):
        tree = tree.tolist()
    if isinstance(tree, (dict, list, tuple)):
        return list(chain.from_iterable(leaves(each) for each in (tree.values() if isinstance(tree, dict) else tree)))
    return [tree]


def same(a: dict, b: dict) -> bool:
    """Whether weights, averages, the optimiser's and the generator's states are equal bit for bit."""
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y
               for x, y in zip(leaves(a), leaves(b), strict=True))


def test_a_run_killed_three_times_equals_one_left_alone(start, whole, tmp_path):
    ends = kill_again_and_again(start, tmp_path, kills=3, seed=0)
    assert ends == sorted(ends) and ends[-1] < STEPS
    assert same(whole, checkpoint(tmp_path))


@pytest.mark.slow
def test_a_run_killed_twenty_times_equals_one_left_alone(start, whole, tmp_path):
    ends = kill_again_and_again(start, tmp_path, kills=20, seed=1)
    assert ends == sorted(ends) and ends[-1] < STEPS
    assert same(whole, checkpoint(tmp_path))


def test_a_kill_before_the_rename_leaves_the_previous_checkpoint_whole(start, whole, tmp_path):
    assert finish(start(tmp_path, "5")) == -signal.SIGKILL
    part = tmp_path / checkpoints.PART / checkpoints.PROGRESS
    assert json.loads(part.read_text())["step"] == 6  # written to its end, and yet not the checkpoint
    assert progress_of(tmp_path)["step"] == 5
    assert finish(start(tmp_path)) == 0
    assert same(whole, checkpoint(tmp_path))


def test_a_kill_before_the_first_rename_leaves_no_checkpoint_and_the_run_starts_anew(start, whole, tmp_path):
    assert finish(start(tmp_path, "0")) == -signal.SIGKILL
    assert checkpoints.found(tmp_path) == []
    assert finish(start(tmp_path)) == 0
    assert same(whole, checkpoint(tmp_path))
