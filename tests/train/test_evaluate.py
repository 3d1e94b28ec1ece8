"""The evaluation of a tiny random system: what its report says, what each variant may know, and what it is run on."""

import argparse
import json
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindedit_core import load_system
from mindedit_core.contracts import Insight, Plan
from mindedit_core.scenes import OPERATIONS, judge_text
from train import evaluate
from train import evaluate_mind_edit as mind_edit
from train.clip_target import image_embeds, target_pixels
from train.pairs import samples
from train.unseen import programs, singles

MEASURED = {"psnr", "ssim", "clip_i"}
PAINTED = {*mind_edit.METRICS, *MEASURED, *(f"{name}_multi_step" for name in MEASURED)}
WRITTEN = {"t_opt_exact", "t_opt_exact_multi_step", "t_opt_exact_grey", "region_iou", "region_iou_multi_step"}
OPTIONS = argparse.Namespace(batch=4, seed=0, n=7, variants=list(mind_edit.VARIANTS),
                             metrics=list(mind_edit.METRICS))


def quick(folder):
    """The system with one sampler step, no guidance and answers of two tokens."""
    system = load_system(folder)
    system.designer.design_each = partial(system.designer.design_each, max_new_tokens=2)
    return replace(system, settings=system.settings.but(steps=1, guidance_scale=1.0))


@pytest.fixture(scope="module")
def system(tiny_folder):
    return quick(tiny_folder)


@pytest.fixture(scope="module")
def report_of(tiny_folder, tmp_path_factory):
    """report_of(*arguments): what `python -m train.evaluate` writes about the tiny system for them."""

    def run(*arguments: str) -> dict:
        path = tmp_path_factory.mktemp("evaluation") / "made" / "report.json"
        command = ["evaluate", "--system", str(tiny_folder), "--n", "7", "--batch", "4", "--json", str(path)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate, "load_system", quick)
            patch.setattr("sys.argv", [*command, *arguments])
            evaluate.main()
        return json.loads(path.read_text())

    return run


@pytest.fixture(scope="module")
def report(report_of):
    return report_of()


@pytest.fixture(scope="module")
def items():
    return singles(0, 4)


def known(items) -> tuple[list[Plan], list[Insight]]:
    """Plans whose T_opt nobody would write, and embeddings that are no picture's."""
    plans = [Plan(item.instruction, "said by the designer", "self") for item in items]
    return plans, [Insight(None, None, image_embeds=torch.full((1, 24), 3.0), clip_space="tiny-clip") for _ in items]


# The report ----------------------------------------------------------------------------------------------------------


def test_the_report_names_what_was_evaluated(report, tiny_folder):
    assert (report["system"], report["seed"], report["n"]) == (str(tiny_folder), 0, 7)
    assert len(report["commit"]) == 40 or report["commit"] == "unknown"


def test_every_variant_has_every_metric_with_its_interval(report):
    assert list(report["variants"]) == list(mind_edit.VARIANTS)
    for variant, metrics in report["variants"].items():
        assert set(metrics) == (PAINTED | WRITTEN if variant == "full" else PAINTED)
        for found in metrics.values():
            assert set(found) == {"value", "low", "high", "n"} and found["n"] == 7
            assert found["low"] <= found["value"] <= found["high"]


def test_the_operations_table_splits_what_full_scored_on_single_edits(report):
    assert set(report["operations"]) == set(OPERATIONS)
    for metric in [name for name in PAINTED | WRITTEN if "multi_step" not in name]:
        parts = [report["operations"][name][metric] for name in OPERATIONS]
        assert [part["n"] for part in parts] == [1] * 7
        assert np.mean([part["value"] for part in parts]) == pytest.approx(report["variants"]["full"][metric]["value"])


def test_no_multi_step_metric_is_split_by_operation(report):
    assert not [name for metrics in report["operations"].values() for name in metrics if "multi_step" in name]


@pytest.mark.parametrize("variant", mind_edit.PAIRS)
def test_differences_are_those_of_the_means(report, variant):
    ran = set(mind_edit.PAIRS[variant]) & set(mind_edit.VARIANTS) if variant in mind_edit.VARIANTS else set()
    assert set(report[f"{variant}_minus"]) == ran
    for other, metrics in report[f"{variant}_minus"].items():
        assert set(metrics) == PAINTED
        for metric, gap in metrics.items():
            apart = report["variants"][variant][metric]["value"] - report["variants"][other][metric]["value"]
            assert gap["value"] == pytest.approx(apart, abs=1e-6) and gap["n"] == 7
            assert gap["ahead"] is (gap["low"] > 0)


@pytest.mark.parametrize("theirs, ahead", [([0.0] * 6, True), ([1.0] * 6, False), ([2.0] * 6, False),
                                           ([0.0] + [1.0] * 5, False), ([0.0] * 5 + [1.0], True)])
def test_only_a_clear_lead_is_ahead(theirs, ahead):
    found = {"full": {"score": [1.0] * 6}, "neither": {"score": theirs}}
    gap = evaluate.differences(found, "full", {"full": ("neither",)})["neither"]["score"]
    assert gap["ahead"] is ahead is (gap["low"] > 0)


def test_the_same_seed_gives_the_same_report_whichever_variants_run(report, report_of):
    again = report_of("--variants", "neither", "full")
    chosen = {"variants": {name: report["variants"][name] for name in ("full", "neither")},
              "full_minus": {"neither": report["full_minus"]["neither"]}, "insight_only_minus": {}}
    assert again == {**report, **chosen}


def test_a_study_and_a_single_metric_run_when_asked_for(report, report_of):
    study = report_of("--variants", "text_only", "full_true_insight", "--metrics", "success_mask")
    assert list(study["variants"]) == ["text_only", "full_true_insight"]
    assert set(study["variants"]["text_only"]) == {"success_mask", *MEASURED}
    assert study["variants"]["text_only"].items() <= report["variants"]["text_only"].items()
    assert set(study["full_true_insight_minus"]) == {"text_only"}


# The samples ---------------------------------------------------------------------------------------------------------


def test_evaluation_sees_reserved_scenes_alone_and_training_none_of_them():
    unseen = [*singles(0, 14), *programs(0, 14)]
    seen = [item for step in range(8) for item in samples(0, step, 8)]
    assert all(item.source.for_evaluation and item.target.for_evaluation for item in unseen)
    assert not any(item.source.for_evaluation or item.target.for_evaluation for item in seen)


def test_single_edits_take_the_operations_in_turn_and_seeds_differ():
    assert [item.operation for item in singles(0, 7)] == list(OPERATIONS)
    drawn = [[item.optimized for item in singles(seed, 7)] for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


# The variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant, raw, factor", [("full", False, 1.0), ("text_only", False, 0.0),
                                                  ("insight_only", True, 1.0), ("neither", True, 0.0)])
def test_each_ablation_takes_away_what_its_name_says(variant, raw, factor, items):
    plans, insights = known(items)
    texts, hints, scale = mind_edit.varied(variant, items, plans, insights, clip=None)
    expected = [item.instruction if raw else "said by the designer" for item in items]
    assert [plan.text for plan in texts] == expected
    assert hints == insights and scale == factor


@pytest.mark.parametrize("variant, own_text, factor", [("full_true_insight", True, 1.0), ("true_text", False, 0.0),
                                                       ("raw_true_insight", False, 1.0)])
def test_each_study_tells_the_truth_of_one_thing_alone(variant, own_text, factor, system, items):
    plans, insights = known(items)
    texts, hints, scale = mind_edit.varied(variant, items, plans, insights, system.painter.text_encoder)
    truth = [item.optimized if variant == "true_text" else item.instruction for item in items]
    assert [plan.text for plan in texts] == (["said by the designer"] * len(items) if own_text else truth)
    told = torch.cat([hint.image_embeds for hint in hints])
    assert torch.equal(told, image_embeds(system.painter.text_encoder, target_pixels(items))) is (factor == 1.0)
    assert scale == factor


def test_oracle_knows_the_true_instruction_and_the_targets_embedding(system, items):
    plans, insights = known(items)
    clip = system.painter.text_encoder
    texts, hints, scale = mind_edit.varied("oracle", items, plans, insights, clip)
    assert [plan.text for plan in texts] == [item.optimized for item in items]
    assert all(judge_text(plan.text, item).ok for plan, item in zip(texts, items, strict=True))
    assert torch.equal(torch.cat([hint.image_embeds for hint in hints]), image_embeds(clip, target_pixels(items)))
    assert scale == 1.0


def test_variants_leave_the_designers_plans_as_they_were(system, items):
    plans, insights = known(items)
    mind_edit.varied("oracle", items, plans, insights, system.painter.text_encoder)
    assert {plan.text for plan in plans} == {"said by the designer"}
    assert all(bool((insight.image_embeds == 3.0).all()) for insight in insights)


@contextmanager
def watched(painter):
    """Lists, filled while the painter paints: the texts it was given, and the scales its adapter was attached with."""
    texts, scales = [], []
    paint, attached = painter.paint, painter.adapter.attached

    def seen_paint(image, plans, condition, settings):
        texts.extend(plan.text for plan in plans)
        return paint(image, plans, condition, settings)

    def seen_attached(unet, **options):
        scales.append(options["scale"])
        return attached(unet, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painter, "paint", seen_paint)
        patch.setattr(painter.adapter, "attached", seen_attached)
        yield texts, scales


@pytest.mark.parametrize("variant, scales", [("full", [1.0]), ("text_only", []), ("insight_only", [1.0]),
                                             ("neither", []), ("oracle", [1.0])])
def test_only_variants_with_insight_paint_through_the_adapter(variant, scales, system, items):
    with watched(system.painter) as (_, used):
        mind_edit.run_variant(system, variant, items, *known(items), "success_mask", OPTIONS)
    assert used == scales


def test_neither_paints_the_wish_as_the_user_wrote_it(system, items):
    with watched(system.painter) as (texts, used):
        mind_edit.run_variant(system, "neither", items, *known(items), "success_img2img", OPTIONS)
    assert texts == [item.instruction for item in items] and used == []


@pytest.mark.parametrize("variant", ["oracle", "raw_true_insight"])
def test_the_truth_is_refused_before_anything_runs_where_clip_does_not_see(variant):
    blind = SimpleNamespace(painter=SimpleNamespace(text_encoder=torch.nn.Linear(1, 1)))
    options = argparse.Namespace(**{**vars(OPTIONS), "variants": [variant]})
    left = "--variants full text_only insight_only neither$"
    with pytest.raises(ValueError, match=f"variant {variant} .*Linear has no vision model.*{left}"):
        mind_edit.evaluate(blind, {}, options)


def test_too_few_samples_are_refused_before_anything_runs(report_of, capsys):
    with pytest.raises(SystemExit):
        report_of("--n", "6")
    assert "--n must be 7 or more, one sample for each operation, got 6" in capsys.readouterr().err
