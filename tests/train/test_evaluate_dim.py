"""Draw-In-Mind's evaluation: what each variant's painter is told, what counts as right, what its report says."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mindedit_core import load_system
from mindedit_core.contracts import Plan
from mindedit_core.designers.typed import Typed
from mindedit_core.scenes import OPERATIONS
from mindedit_core.scenes.blueprint import true_blueprint
from mindedit_core.systems.tiny_dim import save_tiny_dim
from train import evaluate, evaluate_dim
from train.unseen import pictures, programs, singles

MEASURED = {"psnr", "ssim", "kept", "kept_codec"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_dim(tmp_path_factory.mktemp("dim"))


def quick(folder):
    """One sampler step, no guidance, and a designer that says what it is told."""
    system = load_system(folder)
    settings = system.settings.but(steps=1, guidance_scale=1.0)
    return replace(system, settings=settings, designer=Typed("5. Edited Image Imagination: a blue cat"))


@pytest.fixture(scope="module")
def system(folder):
    return quick(folder)


@pytest.fixture(scope="module")
def items():
    return singles(0, 7)


class Paints:
    """A painter that gives the pictures it was given before, and knows its autoencoder."""

    def __init__(self, vae, images):
        self.vae, self.images = vae, images

    def paint(self, *_, **__):
        return self.images


def targets(items) -> torch.Tensor:
    return torch.from_numpy(np.stack([item.target_image for item in items])).float() / 255


# Variants ------------------------------------------------------------------------------------------------------------


def test_each_variant_tells_the_painter_its_own_text(items):
    plans = [Plan(item.instruction, "what the designer said", "blueprint") for item in items]
    told = {variant: evaluate_dim.varied(variant, items, plans) for variant in evaluate_dim.VARIANTS}
    assert [plan.text for plan in told["full"]] == ["what the designer said"] * 7
    assert [plan.text for plan in told["no_designer"]] == [item.instruction for item in items]
    assert [plan.text for plan in told["true_blueprint"]] == [true_blueprint(item) for item in items]


def test_a_blueprint_is_exact_if_its_last_section_says_the_right_facts(items):
    truths = evaluate_dim.varied("true_blueprint", items, [])
    assert evaluate_dim.exact(items, truths) == [1.0] * 7
    assert sum(evaluate_dim.exact(items, truths[1:] + truths[:1])) < 7
    assert evaluate_dim.exact(items, [Plan("a", "a") for _ in items]) == [0.0] * 7


# Pictures ------------------------------------------------------------------------------------------------------------


def test_the_targets_are_right_and_the_sources_are_not(system, items):
    seen = pictures(items)
    right = evaluate_dim.judged(system, items, targets(items), seen, "success_no_mask")
    wrong = evaluate_dim.judged(system, items, seen, seen, "success_no_mask")
    assert right["success_no_mask"] == [1.0] * 7 and wrong["success_no_mask"] == [0.0] * 7
    assert min(right["psnr"]) > 60 > max(wrong["psnr"])
    assert max(right["kept"]) == 0.0 == max(wrong["kept"])  # outside the edit's mask nothing differs


def test_what_differs_outside_the_edit_is_counted_there_alone(system):
    source, where = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, dtype=torch.bool)
    painted, where[0, 0] = source.clone(), True
    painted[0, 0, 0], painted[0, 3] = 1.0, 1.0
    assert evaluate_dim.differing(painted, source, where) == [pytest.approx(255 / 4)]
    assert evaluate_dim.differing(painted, source, torch.zeros_like(where)) == [0.0]


# The report ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "report.json"
    words = ["evaluate", "--system", str(folder), "--n", "7", "--batch", "4", "--json", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load_system", quick)
        patch.setattr("sys.argv", words)
        evaluate.main()
    return json.loads(path.read_text())


def test_the_report_has_every_variant_and_the_differences_by_operation(report):
    assert set(report["variants"]) == set(evaluate_dim.VARIANTS)
    wanted = {"success_no_mask", "success_multi_step", *MEASURED, *(f"{name}_multi_step" for name in MEASURED)}
    assert set(report["variants"]["no_designer"]) == wanted
    assert set(report["variants"]["full"]) == wanted | {"blueprint_exact", "blueprint_exact_multi_step"}
    assert set(report["full_minus"]) == {"no_designer"} and set(report["true_blueprint_minus"]) == {"full"}
    assert set(report["by_operation"]["full"]) == set(report["full_minus_by_operation"]) == set(OPERATIONS)
    assert "success_no_mask" in report["full_minus_by_operation"]["remove"]["no_designer"]


def test_a_right_painter_scores_everything(system, items):
    several = programs(0, 4)
    for metric, part in (("success_no_mask", items), ("success_multi_step", several)):
        options = argparse.Namespace(batch=len(part), seed=0, variants=["no_designer"], metrics=[metric])
        known = replace(system, painter=Paints(system.painter.vae, targets(part)))
        found = evaluate_dim.evaluate(known, {"alone": items, "several": several}, options)
        assert found["no_designer"][metric] == [1.0] * len(part)
