"""Launched with two processes a recipe trains as one that accumulates twice as many; each process has its share."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from train import checkpoints

RECIPE = '''"""FOLDER ACCUMULATE: a little training, on every process that was launched."""

import sys
from pathlib import Path

import torch
from torch import nn

from train.config import Training
from train.loop import fit


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, batch):
        return {"fit": (self.layers(batch["x"]).float() - batch["x"].sum(1, keepdim=True)).pow(2).mean()}


def batch_of(number):
    return {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(number))}


plan = Training(steps=30, learning_rate=1e-2, batch_size=4, warm_up=5, accumulate=int(sys.argv[2]), precision="no",
                trackers=(), log_every=10)
run = fit("test", Path(sys.argv[1]), Student(), plan, batch_of)
run.accelerator.print("processes", run.accelerator.num_processes, run.accelerator.distributed_type.value)
'''


LAUNCHERS = {
    1: ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no"],
    2: ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],  # accelerate's own would want mpirun
}


def launch(root, script, folder, processes: int) -> str:
    """On the CPU. What accelerate trains with is the same however it was launched."""
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                   "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", *LAUNCHERS[processes], str(script), str(folder), str(2 // processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_train_as_one_that_accumulates(root, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    told = {count: launch(root, tmp_path / "recipe.py", tmp_path / str(count), count) for count in (1, 2)}
    assert "processes 2 MULTI_CPU" in told[2] and "processes 1 NO" in told[1]
    one, two = (load_file(checkpoints.found(tmp_path / str(count))[-1] / checkpoints.TRAINED) for count in (1, 2))
    two = {name.removeprefix("module."): tensor for name, tensor in two.items()}
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)
    shares = [path.name for path in checkpoints.found(tmp_path / "2")[-1].glob("average-*.pt")]
    assert sorted(shares) == ["average-0.pt", "average-1.pt"]


@pytest.mark.parametrize("name", ["fsdp.yaml"])
def test_the_sample_launch_configs_are_what_accelerate_reads(name, root):
    """Parsed by accelerate's own class: an unknown or missing key fails, and the plugin it makes is built."""
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(root / "train" / "launch" / name))
    assert isinstance(config, ClusterConfig) and config.distributed_type.value == "FSDP"
    assert {"fsdp_version", "fsdp_auto_wrap_policy", "fsdp_state_dict_type"} <= set(config.fsdp_config)
    assert not unknown_to_accelerate(config.fsdp_config)


def unknown_to_accelerate(settings: dict) -> list[str]:
    """Keys that `accelerate launch` would not pass on: it has a flag for each that it knows."""
    from accelerate.commands.launch import launch_command_parser

    flags = {action.dest for action in launch_command_parser()._actions}
    return [key for key in settings if key not in flags]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FSDP shards over accelerators; there is none here")
def test_fsdp_shards_the_parameters(root, tmp_path):
    script = tmp_path / "recipe.py"
    script.write_text(RECIPE.replace("run.accelerator.print", "print('sharded', all(\n    hasattr(p, 'to_local') or "
                                     "p.numel() == 0 for p in run.model.parameters()))\nrun.accelerator.print"))
    config = root / "train" / "launch" / "fsdp.yaml"
    count = max(1, min(2, torch.cuda.device_count()))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes",
               str(count), str(script), str(tmp_path / "fsdp"), "1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sharded True" in done.stdout
