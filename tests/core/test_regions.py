"""An MLLM's region lines as a mask."""

import pytest

from mindedit_core.contracts import Region
from mindedit_core.regions import MARGIN, region_mask
from mindedit_core.scenes import OPERATIONS, sample
from mindedit_core.scenes.graph import box_of

QUARTER = Region("box", (0.0, 500.0, 500.0, 1000.0))


def test_a_box_is_filled_and_grown_by_the_margin():
    mask = region_mask([QUARTER], 100, 200)
    assert mask.shape == (100, 200) and mask[50:, :100].all()
    assert mask.sum() == pytest.approx((50 + 100 * MARGIN) * (100 + 200 * MARGIN))


def test_nothing_said_is_nowhere_and_a_background_alone_is_everywhere():
    assert not region_mask([], 4, 4).any()
    assert region_mask([Region("background")], 4, 4).all()


def test_what_stays_before_a_background_is_spared_but_a_box_wins():
    kept = Region("keep", QUARTER.box)
    mask = region_mask([Region("background"), kept], 8, 8)
    assert not mask[4:, :4].any() and mask[:4].all() and mask[4:, 4:].all()
    assert region_mask([Region("background"), kept, QUARTER], 8, 8).all()


def test_a_kept_box_alone_asks_for_no_edit():
    assert not region_mask([Region("keep", QUARTER.box)], 8, 8).any()


def test_the_smallest_box_is_one_pixel_inside_the_picture():
    assert region_mask([Region("box", (999.0, 999.0, 1000.0, 1000.0))], 2, 2).sum() == 1
    assert region_mask([Region("box", (0.0, 0.0, 1.0, 1.0))], 1, 3)[0, 0] == 1


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "background"])
def test_the_true_regions_cover_every_pixel_that_an_edit_changes(operation):
    for seed in range(20):
        item = sample(seed, operation=operation)
        changed = (item.source_image != item.target_image).any(-1)
        mask = region_mask(item.regions, *changed.shape).numpy() > 0
        assert not (changed & ~mask).any()
        assert mask.mean() < 0.5


def test_the_true_regions_of_a_new_background_cover_nearly_all_of_it_and_no_thing_s_middle():
    for seed in range(20):
        item = sample(seed, operation="background")
        mask = region_mask(item.regions, 128, 128).numpy() > 0
        new_ground = (item.source_image != item.target_image).any(-1)
        assert (new_ground & mask).sum() > 0.9 * new_ground.sum()
        for x0, y0, x1, y1 in map(box_of, item.source.things):
            assert not mask[(y0 + y1) // 2, (x0 + x1) // 2]


def test_regions_and_steps_of_a_program_tell_its_whole_story():
    for seed in range(30):
        item = sample(seed, steps=2 + seed % 3)
        assert len(item.steps) == len(item.operations)
        assert ("background" in {region.kind for region in item.regions}) == (
            item.source.background != item.target.background)
