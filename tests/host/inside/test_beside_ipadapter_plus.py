"""IPAdapter_plus's own nodes and our attachment on one MODEL: the same alone, and together both are there.

Its code is run as it is; tests/host/ipadapter_plus.py says where it is looked for. One thing sets the two apart: it
registers the middle block under ("middle", 1), the host asks for ("middle", 0), so its adapter does nothing there.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import comfy.model_patcher
import comfy.patcher_extension
import folder_paths
import ipadapter_plus  # these two from tests/host, which conftest.py puts on the path
import pytest
import torch
from narrow_sd15 import MIDDLE, narrow_model, random_adapter, random_insight, sample

from mindedit_core.hosts.comfy_adapter import attach, load_adapter
from mindedit_core.hosts.comfy_mllm import embeds

ROUNDING = 1e-5  # of the largest number; two orders of the same sums differ by 2e-6
VISIBLE = 1e-2


@pytest.fixture(scope="module")
def nodes():
    folder = ipadapter_plus.find(Path(folder_paths.__file__).parent)
    if folder is None:
        pytest.skip(ipadapter_plus.MISSING)
    return ipadapter_plus.load(folder).NODE_CLASS_MAPPINGS


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode(False):
        return narrow_model()


@pytest.fixture
def theirs(nodes):
    """`theirs(model, adapter, insight, weight)`: its IPAdapter Embeds node, fed by our EMBEDS."""

    def apply(model, adapter, insight, weight=1.0, *, node="IPAdapterEmbeds", start=0.0, end=1.0, **options):
        positive, negative = embeds(insight)
        options = {"weight_type": "linear", "embeds_scaling": "V only", "neg_embed": negative, **options}
        return nodes[node]().apply_ipadapter(model, adapter, positive, weight, start_at=start, end_at=end, **options)[0]

    return apply


def ours(model, adapter, insight, weight=1.0, **options):
    return attach(model, load_adapter(adapter), insight, scale=weight, **options)


def distance(one, two) -> float:
    """The largest difference, as a part of the largest number."""
    return float((one - two).abs().max() / two.abs().max())


def differ(one, two) -> bool:
    return distance(one, two) > VISIBLE


def agree(one, two) -> bool:
    return distance(one, two) < ROUNDING


# Alone ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.35, -0.5])
def test_our_embeds_in_its_node_paint_what_our_bridge_paints(model, theirs, weight):
    """With an adapter that adds nothing in the middle block, where its patch never fires."""
    adapter, seen = random_adapter(silent=(MIDDLE,)), random_insight()
    by_them = sample(theirs(model, adapter, seen, weight))
    assert agree(sample(ours(model, adapter, seen, weight)), by_them)
    assert differ(by_them, sample(model))


@pytest.mark.parametrize("window", [(0.0, 0.4), (0.3, 0.8), (0.6, 1.0)])
def test_the_part_of_the_sampling_in_which_it_acts_is_the_same(model, theirs, window):
    adapter, seen = random_adapter(silent=(MIDDLE,)), random_insight()
    start, end = window
    by_them = sample(theirs(model, adapter, seen, start=start, end=end), steps=5)
    by_us = sample(ours(model, adapter, seen, start=start, end=end), steps=5)
    assert agree(by_us, by_them)
    assert differ(by_us, sample(ours(model, adapter, seen), steps=5))


def test_the_middle_block_is_all_that_sets_them_apart(model, theirs):
    adapter, seen = random_adapter(), random_insight()
    assert differ(sample(ours(model, adapter, seen)), sample(theirs(model, adapter, seen)))
    silenced = random_adapter(silent=(MIDDLE,))
    assert torch.equal(sample(theirs(model, adapter, seen)), sample(theirs(model, silenced, seen)))


def test_a_batch_of_insights_goes_row_by_row(model, theirs):
    adapter, seen = random_adapter(silent=(MIDDLE,)), random_insight(batch=2)
    by_them = sample(theirs(model, adapter, seen, node="IPAdapterEmbedsBatch"), batch=2)
    by_us = sample(ours(model, adapter, seen), batch=2)
    assert agree(by_us, by_them)


# Together ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def stacked(model, theirs):
    """`stacked(order, our_weight, their_weight)`: both on one model, each with an adapter and an insight of its own."""

    def build(order, our_weight=0.7, their_weight=0.7, **options):
        patched = model
        for who in order:
            if who == "us":
                patched = ours(patched, random_adapter(seed=1), random_insight(seed=2), our_weight)
            else:
                patched = theirs(patched, random_adapter(seed=9), random_insight(seed=4), their_weight, **options)
        return patched

    return build


ORDERS = [("us", "them"), ("them", "us")]


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_together_both_are_there(stacked, model, order):
    """Switching one off leaves exactly the other; with both on, the picture is neither's."""
    both, us, them = sample(stacked(order)), sample(stacked(("us",))), sample(stacked(("them",)))
    assert torch.equal(sample(stacked(order, our_weight=0.0)), them)
    assert torch.equal(sample(stacked(order, their_weight=0.0)), us)
    for alone in (us, them, sample(model)):
        assert differ(both, alone)


def test_the_order_does_not_matter(stacked):
    one, two = (sample(stacked(order)) for order in ORDERS)
    assert agree(one, two)


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
@pytest.mark.parametrize("weight_type", ["style transfer", "composition", "ease in", "weak output", "strong middle"])
def test_its_weight_types_act_as_they_do_alone(stacked, order, weight_type):
    """Each of its ways of weighing blocks, with ours at zero: exactly what it does without us; with ours on, more."""
    options = {"weight_type": weight_type}
    alone = sample(stacked(("them",), **options))
    assert torch.equal(sample(stacked(order, our_weight=0.0, **options)), alone)
    assert differ(sample(stacked(order, **options)), alone)


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_each_keeps_to_its_own_part_of_the_sampling(model, theirs, order):
    """Ours in the first half, theirs in the second: each of them matters."""

    def build(our_weight, their_weight):
        patched = model
        for who in order:
            if who == "us":
                patched = ours(patched, random_adapter(seed=1), random_insight(seed=2), our_weight, end=0.5)
            else:
                patched = theirs(patched, random_adapter(seed=9), random_insight(seed=4), their_weight, start=0.5)
        return sample(patched, steps=4)

    both = build(0.7, 0.7)
    assert differ(both, build(0.0, 0.7)) and differ(both, build(0.7, 0.0))


CLONING = {"deep copies (v0.10)": copy.deepcopy, "shared leaves (newer)": comfy.patcher_extension.copy_nested_dicts}


@pytest.mark.parametrize("cloning", CLONING)
@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_stacking_leaves_the_models_below_as_they_were(stacked, model, theirs, order, cloning, monkeypatch):
    """Neither writes into the MODEL it was given: the first alone, and the bare model, paint as before."""
    monkeypatch.setattr(comfy.model_patcher, "copy", SimpleNamespace(deepcopy=CLONING[cloning]))
    bare = sample(model)
    first = stacked(order[:1])
    before = sample(first)
    for _ in range(2):
        if order[1] == "us":
            second = ours(first, random_adapter(seed=1), random_insight(seed=2), 0.7)
        else:
            second = theirs(first, random_adapter(seed=9), random_insight(seed=4), 0.7)
    assert differ(sample(second), before)
    assert torch.equal(sample(first), before) and torch.equal(sample(model), bare)
    assert agree(sample(second), sample(stacked(order)))


def test_a_mask_of_theirs_is_kept(stacked):
    """attn_mask of its node: nothing of it where the mask is black."""
    black = torch.zeros(1, 64, 64)
    us = sample(stacked(("us",)))
    for order in ORDERS:
        assert torch.equal(sample(stacked(order, attn_mask=black)), us)
        assert differ(sample(stacked(order, attn_mask=1 - black)), us)
