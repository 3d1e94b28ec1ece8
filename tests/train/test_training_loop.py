"""The loop: what it resumes, averages, accumulates, logs and refuses."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from train import checkpoints, loop
from train.config import Training
from train.loop import Run, fit
from train.optimizers import linear, optimizers

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch is older than Muon")
PLAN = Training(steps=60, learning_rate=1e-2, batch_size=4, warm_up=5, save_every=0.0, precision="no", trackers=())


@pytest.fixture(autouse=True)
def a_new_process():
    """accelerate keeps one state a process; every test is a launch of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Student(nn.Module):
    """Learns to add three numbers, under dropout; told when to be cut off, or when to fail."""

    def __init__(self, stop_at: int | None = None, bad_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.frozen = nn.Linear(100, 100).requires_grad_(False)
        self.stop_at, self.bad_at = stop_at, bad_at

    def forward(self, batch):
        if batch["number"] == self.stop_at:
            raise KeyboardInterrupt
        loss = (self.layers(batch["x"]).float() - batch["x"].sum(1, keepdim=True)).pow(2).mean()
        return {"fit": loss * float("nan") if batch["number"] == self.bad_at else loss, "_seen": loss.detach()}


def batch_of(number: int) -> dict:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
    return {"x": x, "names": [f"sample {number}-{row}" for row in range(4)]}


def train(folder, config=PLAN, validate=None, **student) -> Student:
    AcceleratorState._reset_state(reset_partial_state=True)
    pupil = Student(**student)
    fit("test", folder, pupil, config, batch_of, validate)
    return pupil


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("matrices", ["adamw", pytest.param("muon", marks=needs_muon)])
def test_resumed_equals_uninterrupted(matrices, tmp_path):
    config = replace(PLAN, matrices=matrices)
    whole = train(tmp_path / "whole", config)
    for stop in (13, 41):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", config, stop_at=stop)
    assert same(whole, train(tmp_path / "cut", config))
    assert not same(whole, Student())


class Words(nn.Module):
    """An embedding whose words are also the last layer, a linear layer, a frozen one and a norm."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.inner, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.words.weight


def test_muon_moves_the_matrices_that_are_no_words():
    model = Words()
    assert list(linear(model, checkpoints.trained(model))) == ["inner.weight"]


@needs_muon
def test_the_optimisers_share_what_is_trained():
    model = Words()
    rest, matrices = optimizers(model, replace(PLAN, matrices="muon"))
    moved = [group["params"] for optimizer in (rest, matrices) for group in optimizer.param_groups]
    assert moved[1] == [model.inner.weight]
    assert {id(x) for x in moved[0] + moved[1]} == {id(x) for x in checkpoints.trained(model).values()}
    (alone,) = optimizers(model, PLAN)
    assert len(alone.param_groups[0]["params"]) == len(checkpoints.trained(model))


def test_a_torch_without_muon_says_so(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match="matrices=muon needs torch 2.9 or newer"):
        optimizers(Words(), replace(PLAN, matrices="muon"))


def test_a_finished_run_is_not_run_again(tmp_path):
    assert same(train(tmp_path), train(tmp_path, stop_at=59))


def test_checkpoints_hold_what_is_trained_and_only_the_newest_stay(tmp_path):
    train(tmp_path, replace(PLAN, keep=2))
    found = checkpoints.found(tmp_path)
    assert [path.name for path in found] == ["checkpoint-00000059", "checkpoint-00000060"]
    assert sum(file.stat().st_size for file in found[-1].iterdir()) < 40_000  # the frozen layer alone has 40,400 bytes


def test_other_settings_do_not_go_on_with_a_run(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match="learning_rate was 0.01 and is 0.5"):
        train(tmp_path, replace(PLAN, learning_rate=0.5))


def test_two_accumulated_batches_are_one_of_twice_the_size(tmp_path):
    """Without dropout; the same samples in the same steps, so the same gradients but for rounding."""
    class Plain(Student):
        def __init__(self):
            super().__init__()
            self.layers[1] = nn.Identity()

    def both(number):
        return {"x": torch.cat([batch_of(2 * number)["x"], batch_of(2 * number + 1)["x"]])}

    found = []
    for name, config, data in (("two", replace(PLAN, accumulate=2), batch_of), ("one", PLAN, both)):
        AcceleratorState._reset_state(reset_partial_state=True)
        pupil = Plain()
        fit("test", tmp_path / name, pupil, config, data)
        found.append(pupil)
    for one, other in zip(*(pupil.state_dict().values() for pupil in found), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 7 .*fit nan.*micro-batch 7.*sample 7-0, sample 7-1"):
        train(tmp_path, bad_at=7)
    assert checkpoints.found(tmp_path)[-1].name == "checkpoint-00000007"


def test_the_log_has_means_speed_and_scores(tmp_path):
    train(tmp_path, replace(PLAN, log_every=20, validate_every=30), validate=lambda: {"score": 0.5})
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [20, 30, 40, 60, 60]
    assert lines[0]["samples_per_second"] > 0 and lines[1]["score"] == 0.5 and lines[0]["fit"] > lines[-2]["fit"]


def test_validation_sees_the_average_and_training_goes_on_without_it(tmp_path):
    seen = []
    pupil = Student()

    def validate():
        seen.append((pupil.training, pupil.layers[0].weight.detach().clone()))
        return {}

    fit("test", tmp_path / "a", pupil, replace(PLAN, validate_every=59, ema=0.99), batch_of, validate)
    (mode, weights), _ = seen
    assert not mode and same(pupil, train(tmp_path / "b", replace(PLAN, ema=0.99)))
    assert not torch.equal(weights, train(tmp_path / "c", replace(PLAN, ema=0.0, steps=60)).layers[0].weight)


def test_the_scores_of_a_run_are_those_of_the_weights_that_it_leaves(tmp_path):
    pupil = Student()

    def validate():
        return {"weight": pupil.layers[0].weight.sum().item()}

    for _ in range(2):  # a finished run that is started again has them too
        AcceleratorState._reset_state(reset_partial_state=True)
        run = fit("test", tmp_path, pupil, replace(PLAN, steps=8), batch_of, validate)
        assert run.scores == validate()


def test_pictures_go_to_files_and_to_the_trackers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = torch.rand(6, 9, 3)
    train(tmp_path, replace(PLAN, steps=4, log_every=2, validate_every=4, trackers=("tensorboard",)),
          validate=lambda: {"score": 0.5, "painted": picture})
    events = EventAccumulator(str(tmp_path / "mindedit")).Reload()
    assert {"fit", "score"} <= set(events.Tags()["scalars"]) and events.Tags()["images"]
    assert (tmp_path / "painted-00000004.png").exists()


def test_the_rate_warms_up_stays_and_falls_to_zero():
    plan = Training(steps=100, learning_rate=1.0, warm_up=10, decay=0.2)
    assert plan.rate(0) == 0.1 and plan.rate(50) == 1.0 and plan.rate(90) == 0.5 and plan.rate(100) == 0.0


@pytest.mark.parametrize(("steps", "ema"), [(60, 0.999), (600, 0.999), (60, 0.0)])
def test_the_average_forgets_its_random_start(steps, ema, tmp_path):
    """A plain average of this decay would still be 55 % (of 600) or 94 % (of 60) random start; 0 keeps the last."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    run = Run("test", tmp_path, module, replace(PLAN, ema=ema))
    run.average.step(run.parameters)
    nn.init.ones_(module.weight)
    for _ in range(steps):
        run.average.step(run.parameters)
    assert 0.99 < run.average.shadow_params[0].item() <= 1.0


def test_a_run_of_other_processes_is_not_resumed(tmp_path):
    train(tmp_path)
    progress = checkpoints.found(tmp_path)[-1] / checkpoints.PROGRESS
    progress.write_text(json.dumps({"step": 60, "processes": 2}))
    with pytest.raises(ValueError, match="has 2 processes, got 1"):
        train(tmp_path)


def test_a_batch_is_moved_with_all_that_it_holds():
    batch = {"x": torch.ones(1), "list": [{"y": torch.ones(1)}], "names": ["a"], "kept": (torch.ones(1),)}
    moved = loop.on_device(batch)
    assert moved.keys() == batch.keys() and moved["list"][0]["y"].device == loop.device() and moved["names"] == ["a"]
