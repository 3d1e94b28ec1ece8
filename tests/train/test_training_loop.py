"""A run that was cut off and resumed ends with the weights of one that was not."""

import json

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from train.common import Run, Schedule, fit, moving_average

PLAN = Schedule(steps=60, learning_rate=1e-2, batch_size=4, warm_up=5, save_every=0.0)


def batch_of(step: int) -> dict:
    return {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(step))}


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))


def train(folder, stop_at: int | None = None) -> nn.Module:
    module = student()
    run = Run(folder, module, PLAN)

    def losses(batch):
        if run.step == stop_at:
            raise KeyboardInterrupt
        return {"fit": (module(batch["x"]).float() - batch["x"].sum(1, keepdim=True)).pow(2).mean()}

    if run.step == 0:
        torch.manual_seed(1)  # a resumed run brings its own state
    return fit(run, batch_of, losses)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_resumed_equals_uninterrupted(tmp_path):
    whole = train(tmp_path / "whole")
    for stop in (13, 41):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", stop)
    module = student()
    resumed = Run(tmp_path / "cut", module, PLAN)
    assert resumed.step == 41
    finished = fit(resumed, batch_of, lambda batch: {
        "fit": (module(batch["x"]).float() - batch["x"].sum(1, keepdim=True)).pow(2).mean()})
    assert same(whole, finished)
    assert not same(whole, student())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    module = student()
    run = Run(tmp_path, module, PLAN)
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(run, batch_of, lambda batch: {"bad": module(batch["x"]).sum() * float("nan")})


def test_the_log_has_a_line_every_fifty_steps(tmp_path):
    train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50] and lines[0]["samples_per_second"] > 0


def test_the_rate_warms_up_stays_and_falls_to_zero():
    plan = Schedule(steps=100, learning_rate=1.0, batch_size=1, warm_up=10, decay=0.2)
    assert plan.rate(0) == 0.1 and plan.rate(50) == 1.0 and plan.rate(90) == 0.5 and plan.rate(100) == 0.0


@pytest.mark.parametrize("steps", [60, 600])
def test_the_average_forgets_its_random_start(steps):
    """A plain average of this decay would still be 55 % (of 600) or 94 % (of 60) random start."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = AveragedModel(module, multi_avg_fn=moving_average(0.999))
    average.update_parameters(module)
    nn.init.ones_(module.weight)
    for _ in range(steps):
        average.update_parameters(module)
    assert 0.99 < average.module.weight.item() <= 1.0


def test_the_average_has_its_full_window_in_a_long_run():
    averages, kept = [torch.zeros(1)], 0.9
    moving_average(kept)(averages, [torch.ones(1)], torch.tensor(10_000))
    assert averages[0].item() == pytest.approx(1 - kept)
