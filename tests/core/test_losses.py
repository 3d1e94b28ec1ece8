"""Losses against their written formula and against transformers' own."""

import math

import pytest
import torch

from mindedit_core.losses import contrastive_loss, edm_weight, epsilon_loss, insight_loss, min_snr_weight


def test_epsilon_loss_is_the_mean_square_and_weights_are_per_sample(generator):
    a, b = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    assert epsilon_loss(a, b).item() == pytest.approx(((a - b) ** 2).mean().item(), rel=1e-6)
    weighted = epsilon_loss(a, b, torch.tensor([2.0, 0.0]))
    assert weighted.item() == pytest.approx(((a - b)[0] ** 2).mean().item(), rel=1e-6)


def test_min_snr_weight_caps_the_easy_steps_only():
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([0, 100, 500, 999])
    snr = compute_snr(scheduler, timesteps)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    weight = min_snr_weight(scheduler.alphas_cumprod, timesteps)
    assert torch.allclose(weight, expected, rtol=1e-5) and weight[0] < 0.01 and weight[-1] == 1


def test_edm_weight_is_edms_in_the_middle_and_bounded_at_both_ends():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([20, 300, 500, 800, 999])
    alphas = scheduler.alphas_cumprod[timesteps]
    sigma = ((1 - alphas) / alphas).sqrt()
    of_the_picture = (sigma**2 + 1) / sigma**2  # Karras et al. 2022, table 1, data of unit variance
    weight = edm_weight(scheduler.alphas_cumprod, timesteps)
    assert torch.allclose(weight[1:4], (of_the_picture * sigma**2)[1:4], rtol=1e-5)  # x0 error = sigma * its error
    assert weight[0] < 0.5 and weight[-1] == 51


def test_insight_loss_is_zero_only_at_the_target_and_does_not_depend_on_the_unit(generator):
    target, predicted = torch.randn(3, 8, generator=generator), torch.randn(3, 8, generator=generator)
    assert insight_loss(target, target).item() == pytest.approx(0.0, abs=1e-6)
    assert insight_loss(2 * target, target).item() == pytest.approx(1.0, abs=1e-5)  # right direction, wrong length
    scaled = insight_loss(9 * predicted, 9 * target).item()
    assert insight_loss(predicted, target).item() == pytest.approx(scaled, rel=1e-5)


def test_insight_loss_moves_the_prediction_to_the_target(generator):
    target = torch.randn(4, 6, generator=generator)
    predicted = torch.randn(4, 6, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([predicted], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        insight_loss(predicted, target).backward()
        optimizer.step()
    assert torch.allclose(predicted.detach(), target, atol=0.05)


def test_contrastive_loss_equals_clips_own(tiny_parts, generator):
    model, tokenizer = tiny_parts["clip"], tiny_parts["tokenizer"]
    text = tokenizer(["red cat", "small tree", "blue sky"], return_tensors="pt", padding=True)
    pixels = torch.randn(3, 3, 128, 128, generator=generator)
    with torch.no_grad():
        theirs = model(input_ids=text.input_ids, pixel_values=pixels, return_loss=True)
        ours = contrastive_loss(theirs.image_embeds, theirs.text_embeds, model.logit_scale.exp())
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-5)


def test_contrastive_loss_of_blind_embeddings_is_chance():
    assert contrastive_loss(torch.ones(5, 3), torch.ones(5, 3), 10.0).item() == pytest.approx(math.log(5), rel=1e-6)
