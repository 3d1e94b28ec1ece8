"""Both of the paper's tables on a tiny random system: who is told what, and what is compared with what."""

import argparse
import json
from functools import partial

import pytest
import torch

from mindedit_core import load_system
from mindedit_core.backbones.adapter_files import read_adapter, save_adapter
from mindedit_core.backbones.lora import LoraPair
from train import ablate
from train.unseen import singles


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    """The tiny system's own adapter, and two others like those that were trained independently."""
    folder, joint = tmp_path_factory.mktemp("adapters"), tiny_folder / "mind_edit.safetensors"
    adapter = read_adapter(joint)
    random = torch.Generator().manual_seed(0)
    louder = {name: LoraPair(torch.randn(pair.down.shape, generator=random), pair.up + 0.3, pair.alpha)
              for name, pair in adapter.pairs.items()}
    paths = {"joint": joint}
    for variant, head in (("text", None), ("insight", adapter.head)):
        paths[variant] = folder / f"{variant}.safetensors"
        save_adapter(paths[variant], louder, head, {**adapter.config, "variant": variant})
    return paths


@pytest.fixture(scope="module")
def options(adapters):
    return argparse.Namespace(seed=0, n=7, batch=4, samples=["single", "multi-step"], system="tiny", **adapters)


@pytest.fixture(scope="module")
def system(tiny_folder):
    found = load_system(tiny_folder)
    found.designer.design_each = partial(found.designer.design_each, max_new_tokens=2)
    object.__setattr__(found, "settings", found.settings.but(steps=1, guidance_scale=1.0))
    return found


def test_every_column_is_told_what_its_name_says(system, adapters, options):
    items = singles(0, 4)
    told = ablate.known(system, items, adapters, batch=3)
    assert [plan.text for plan in told["raw"][0]] == [item.instruction for item in items]
    joint, insight = (torch.cat([hint.image_embeds for hint in told[name][1]]) for name in ("joint", "insight"))
    assert joint.shape == insight.shape and not torch.allclose(joint, insight)
    assert told["text"][1][0].image_embeds is None  # it has no head
    pairs = {name: pair for table in ablate.TABLES.values() for name, pair in table.items()}
    assert pairs["full"] == pairs["joint"] and {whose for pair in pairs.values() for whose in pair} == {
        "raw", "joint", "text", "insight", None}


def test_the_independent_insight_does_not_depend_on_what_was_written(system, adapters):
    """It was trained on the wish alone; the joint one reads its own T_opt."""
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    plan = system.designer.design(image, "remove the cat")
    other = type(plan)(plan.raw, "something else entirely")
    system.mllm.attach(adapters["insight"])
    assert torch.equal(system.mllm.encode(image, plan).image_embeds, system.mllm.encode(image, other).image_embeds)
    system.mllm.attach(adapters["joint"])
    assert not torch.equal(system.mllm.encode(image, plan).image_embeds, system.mllm.encode(image, other).image_embeds)


def test_the_report_compares_every_column_with_the_full_one(system, options, tmp_path, capsys):
    report = json.loads(json.dumps(ablate.ablate(system, options)))
    ablate.show(report)
    assert set(report["samples"]) == {"single", "multi-step"}
    table = report["samples"]["single"]
    assert set(table) == {name for columns in ablate.TABLES.values() for name in columns} - {"joint"}
    assert all(table["full"][metric]["p"] == 1.0 and table["full"][metric]["full_minus"]["value"] == 0.0
               for metric in ("success", "psnr", "ssim"))
    gap = table["neither"]["psnr"]
    assert gap["full_minus"]["value"] == pytest.approx(table["full"]["psnr"]["value"] - gap["value"])
    told = capsys.readouterr().out
    assert "(a) single, n = 7" in told and "joint insight" in told and "p " in told


def test_vague_wishes_point_and_do_not_name():
    items = ablate.vague(0, 20)
    assert len(items) == 20 and all(ablate.is_vague(item.instruction) for item in items)
    assert len({item.operation for item in items}) > 3
    assert not ablate.is_vague("paint the thing at the top left red")
