"""Scores against scikit-image, intervals against what they claim to cover."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mindedit_core.metrics import (
    PSNR_CEILING,
    bootstrap_interval,
    l1,
    mask_box,
    paired_interval,
    paired_p_value,
    psnr,
    ssim,
)


def pictures(generator, height=40, width=33):
    smooth = torch.rand(3, 8, 8, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(smooth.permute(0, 3, 1, 2), (height, width), mode="bicubic")
    clean = smooth.permute(0, 2, 3, 1).clamp(0, 1)
    return clean, (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def test_psnr_agrees_with_scikit_image(generator):
    clean, noisy = pictures(generator)
    theirs = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0) for a, b in zip(clean, noisy, strict=True)]
    assert psnr(noisy, clean).numpy() == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("size", [(40, 33), (11, 11), (11, 64)])
def test_ssim_agrees_with_scikit_image(generator, size):
    clean, noisy = pictures(generator, *size)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    pairs = zip(clean.double().numpy(), noisy.double().numpy(), strict=True)
    theirs = [structural_similarity(a, b, channel_axis=-1, **options) for a, b in pairs]
    assert ssim(clean, noisy).numpy() == pytest.approx(theirs, abs=1e-4)


def test_equal_pictures_score_the_ceiling_and_one(generator):
    clean, _ = pictures(generator)
    assert psnr(clean, clean).tolist() == [PSNR_CEILING] * 3
    assert ssim(clean, clean).numpy() == pytest.approx(np.ones(3), abs=1e-6)
    assert l1(clean, clean).tolist() == [0.0] * 3


def test_scores_are_one_a_picture(generator):
    clean, noisy = pictures(generator)
    for score in (psnr, ssim, l1):
        whole = score(noisy, clean)
        one_by_one = torch.cat([score(noisy[i : i + 1], clean[i : i + 1]) for i in range(3)])
        assert torch.allclose(whole, one_by_one, atol=1e-6) and len(set(whole.tolist())) == 3


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 12, 12, 3\) and \(1, 12, 13, 3\)"):
        psnr(torch.zeros(1, 12, 12, 3), torch.zeros(1, 12, 13, 3))


def test_ssim_of_a_tiny_picture_says_what_to_do():
    with pytest.raises(ValueError, match="11 pixels or more, got .10, 40.; widen the box"):
        ssim(torch.zeros(1, 10, 40, 3), torch.zeros(1, 10, 40, 3))


def test_mask_box_is_tight():
    mask = torch.zeros(20, 30)
    mask[3:9, 11:25] = 0.5
    assert mask_box(mask) == (3, 9, 11, 25)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (19, 29), (10, 10), (0, 29)])
def test_mask_box_grows_to_the_least_size_inside_the_picture(row, column):
    mask = torch.zeros(20, 30)
    mask[row, column] = 1
    top, bottom, left, right = mask_box(mask, least=11)
    assert bottom - top == 11 and right - left == 11
    assert 0 <= top <= row < bottom <= 20 and 0 <= left <= column < right <= 30


def test_mask_box_of_an_empty_mask_is_the_whole_picture():
    assert mask_box(torch.zeros(20, 30)) == (0, 20, 0, 30)


def test_interval_is_seeded_and_holds_the_mean():
    values = torch.tensor([0.0, 1.3, 1.1, 1.2, 0.4, 1.7])
    estimate = bootstrap_interval(values, seed=3)
    assert estimate == bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert estimate.value == pytest.approx(5.7 / 6) and estimate.n == 6
    assert estimate.low < estimate.value < estimate.high


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    draws = torch.Generator().manual_seed(0)
    hits = 0
    for trial in range(200):
        sample = (torch.rand(100, generator=draws) < 0.8).double()
        estimate = bootstrap_interval(sample, seed=trial, n=300)
        hits += estimate.low <= 0.8 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_needs_values():
    with pytest.raises(ValueError, match="at least one value, got none"):
        bootstrap_interval(torch.zeros(0))


def test_pairing_sees_a_difference_that_unpaired_intervals_hide(generator):
    base = torch.rand(200, generator=generator)
    better = base + 0.02 + 0.01 * torch.randn(200, generator=generator)
    assert bootstrap_interval(better).low < bootstrap_interval(base).high
    assert paired_interval(better, base).excludes_zero and not paired_interval(base, base).excludes_zero


def test_pairs_need_partners():
    with pytest.raises(ValueError, match="one partner each"):
        paired_interval(torch.zeros(3), torch.zeros(4))


def test_the_p_value_is_small_where_one_is_always_better_and_large_where_chance_decides():
    random = torch.Generator().manual_seed(0)
    values = torch.rand(200, generator=random)
    assert paired_p_value(values + 0.2, values) < 0.001
    assert paired_p_value(values, values) == 1.0
    noise = torch.randn(200, generator=random)
    assert paired_p_value(noise - noise.mean() + 0.01, torch.zeros(200)) > 0.5


def test_the_p_value_of_few_pairs_is_that_of_all_their_signs():
    """Three pairs, all better by one: 2 of 8 assignments are as extreme."""
    assert paired_p_value(torch.ones(3), torch.zeros(3)) == pytest.approx(0.25, abs=0.02)


def test_the_p_value_is_fair_where_nothing_differs():
    """Of many comparisons of equals about one in twenty falls below 0.05."""
    random = torch.Generator().manual_seed(1)
    found = [paired_p_value(torch.randn(30, generator=random), torch.zeros(30), n=400) for _ in range(200)]
    assert 0.01 < sum(p < 0.05 for p in found) / 200 < 0.10
