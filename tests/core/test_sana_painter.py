"""SanaPainter: equal to diffusers' own solver and model; laws of guidance, strength, masks, padding and framing."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from mindedit_core.contracts import Condition, Interrupted, Misfit, PaintSettings, Plan
from mindedit_core.painters.flow import FlowSchedule, dpm_solver, foreseen
from mindedit_core.painters.framing import frame
from mindedit_core.painters.latents import encode
from mindedit_core.painters.sana import SanaPainter
from mindedit_core.painters.schedule import cpu_noise
from mindedit_core.systems.tiny import LATENT_CHANNELS
from mindedit_core.systems.tiny_dim import NULL_TOKENS, TOKEN_DIM, tiny_dim_parts

PLAN = Plan("make it blue", "make it blue")
SETTINGS = PaintSettings(steps=6, guidance_scale=7.5, seed=233)


def published_scheduler(steps: int) -> DPMSolverMultistepScheduler:
    scheduler = DPMSolverMultistepScheduler(
        flow_shift=3.0,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.fixture(scope="module")
def parts():
    return tiny_dim_parts()


@pytest.fixture(scope="module")
def painter(parts):
    return SanaPainter(parts["transformer"], parts["autoencoder"], parts["null_tokens"])


@pytest.fixture(scope="module")
def image():
    return torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(1))


def condition(length: int = 21, batch: int = 2, seed: int = 3) -> Condition:
    tokens = torch.randn(batch, length, TOKEN_DIM, generator=torch.Generator().manual_seed(seed))
    return Condition(text_tokens=tokens, text_mask=torch.ones(batch, length, dtype=torch.bool))


# The schedule and the solver -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 14, 15, 20, 30])
def test_levels_and_timesteps_are_those_of_the_published_scheduler(steps):
    scheduler, schedule = published_scheduler(steps), FlowSchedule()
    sigmas = schedule.simple(steps)
    torch.testing.assert_close(sigmas, scheduler.sigmas.float(), atol=1e-6, rtol=0)
    assert [int(schedule.timestep(sigma)) for sigma in sigmas[:-1]] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 2, 5, 14, 30])
def test_the_solver_is_diffusers_own(steps):
    """On a model whose answer depends on sample and level, so that every coefficient counts."""
    scheduler, sigmas = published_scheduler(steps), FlowSchedule().simple(steps)
    start = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))

    def velocity(sample, sigma):
        return torch.tanh(sample) * (1.0 + sigma) - 0.3 * sigma**2

    sample = start
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        sample = scheduler.step(velocity(sample, sigma), timestep, sample).prev_sample
    ours = dpm_solver(lambda x, sigma: foreseen(x, velocity(x, sigma), sigma), start, sigmas)
    torch.testing.assert_close(ours, sample, atol=1e-5, rtol=1e-5)


def test_a_model_that_knows_the_end_gets_there():
    """A constant foreseen picture is reached exactly, from any number of steps."""
    end, sigmas = torch.randn(1, 2, 3, 3), FlowSchedule().simple(7)
    torch.testing.assert_close(dpm_solver(lambda *_: end, torch.randn(1, 2, 3, 3), sigmas), end)


# The painter ---------------------------------------------------------------------------------------------------------


def by_diffusers(parts, image, condition, settings, padded_to: int | None = None):
    """Draw-In-Mind's loop with diffusers' model and scheduler; padded_to: zeros after the projector, and a mask."""
    source, transformer = encode(parts["autoencoder"], image), parts["transformer"]
    sample, scheduler = cpu_noise(tuple(source.shape), settings.seed), published_scheduler(settings.steps)
    tokens = condition.text_tokens
    length = tokens.shape[1]
    null = parts["null_tokens"][: padded_to or length].expand(len(image), -1, -1)
    mask = None
    if padded_to:
        tokens = torch.cat([tokens, torch.zeros(len(image), padded_to - length, TOKEN_DIM)], 1)
        mask = (torch.arange(padded_to) < length).long().expand(2 * len(image), -1)
    for timestep in scheduler.timesteps:
        seen = torch.cat([torch.cat([sample, source], 1)] * 2)
        output = transformer(
            seen,
            encoder_hidden_states=torch.cat([null, tokens]),
            timestep=timestep.expand(len(seen)),
            encoder_attention_mask=mask,
        ).sample
        without, told = output.chunk(2)
        sample = scheduler.step(without + settings.guidance_scale * (told - without), timestep, sample).prev_sample
    return sample


@torch.no_grad()
def test_latents_equal_the_published_loop(parts, painter, image):
    ours = painter.paint_latents(image, condition(), SETTINGS)
    torch.testing.assert_close(ours, by_diffusers(parts, image, condition(), SETTINGS), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_published_padding_changes_nothing(parts, painter, image):
    """Zeros up to the longest turn and a mask, as published: the same picture from 21 tokens alone."""
    ours = painter.paint_latents(image, condition(), SETTINGS)
    padded = by_diffusers(parts, image, condition(), SETTINGS, padded_to=NULL_TOKENS)
    torch.testing.assert_close(ours, padded, atol=1e-4, rtol=1e-4)


def test_rows_of_unequal_length_paint_as_if_alone(painter, image):
    short, long = condition(9, 1), condition(21, 1, seed=4)
    tokens = torch.cat([torch.nn.functional.pad(short.text_tokens, (0, 0, 0, 12)), long.text_tokens])
    mask = torch.arange(21) < torch.tensor([[9], [21]])
    both = painter.paint_latents(image, Condition(text_tokens=tokens, text_mask=mask), SETTINGS)
    noise = cpu_noise(tuple(both.shape), SETTINGS.seed)
    alone = painter.paint_latents(image[:1], short, SETTINGS)
    assert torch.equal(cpu_noise(tuple(alone.shape), SETTINGS.seed), noise[:1])
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)


def test_guidance_of_one_needs_no_second_branch(painter, image, monkeypatch):
    rows = []
    forward = painter.transformer.forward
    monkeypatch.setattr(painter.transformer, "forward", lambda x, **kw: rows.append(len(x)) or forward(x, **kw))
    painter.paint_latents(image, condition(), SETTINGS.but(guidance_scale=1.0))
    assert set(rows) == {2}
    rows.clear()
    painter.paint_latents(image, condition(), SETTINGS)
    assert set(rows) == {4}


def test_what_is_painted_follows_source_text_and_seed(painter, image):
    first = painter.paint(image, PLAN, condition(), SETTINGS)
    assert torch.equal(first, painter.paint(image, PLAN, condition(), SETTINGS))
    for other in (
        painter.paint(image.flip(1), PLAN, condition(), SETTINGS),
        painter.paint(image, PLAN, condition(seed=5), SETTINGS),
        painter.paint(image, PLAN, condition(), SETTINGS.but(seed=1)),
    ):
        assert (first - other).abs().mean() > 1e-3


def test_strength_zero_and_an_empty_mask_give_the_source_back(painter, image):
    assert torch.equal(painter.paint(image, PLAN, condition(), SETTINGS.but(strength=0.0)), image)
    notes = []
    empty = SETTINGS.but(mask=torch.zeros(1, 128, 128))
    assert torch.equal(painter.paint(image, PLAN, condition(), empty, on_note=notes.append), image)
    assert "mask is empty" in notes[0]


def test_less_strength_keeps_more_of_the_source(painter, image):
    latents = encode(painter.vae, image)
    far = [
        (painter.paint_latents(image, condition(), SETTINGS.but(strength=s)) - latents).abs().mean()
        for s in (0.1, 0.5, 1.0)
    ]
    assert far == sorted(far)


def test_outside_a_mask_the_source_stays(painter, image):
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    painted = painter.paint(image, PLAN, condition(), SETTINGS.but(mask=mask))
    assert torch.equal(painted[:, 64:], image[:, 64:])
    assert (painted[:, :64] - image[:, :64]).abs().mean() > 1e-2
    held = painter.paint_latents(image, condition(), SETTINGS.but(mask=mask))
    torch.testing.assert_close(held[:, :, 5:], encode(painter.vae, image)[:, :, 5:], atol=1e-5, rtol=1e-5)


def test_text_to_image_sees_no_source(image):
    parts = tiny_dim_parts(in_channels=LATENT_CHANNELS)
    painter = SanaPainter(parts["transformer"], parts["autoencoder"], parts["null_tokens"])
    assert not painter.reads_source()
    first = painter.paint_latents(image, condition(), SETTINGS)
    assert torch.equal(first, painter.paint_latents(image.flip(1), condition(), SETTINGS))


def test_an_interrupted_painter_paints_again(painter, image):
    steps = []
    with pytest.raises(Interrupted, match="after 2 of 6 steps"):
        painter.paint(image, PLAN, condition(), SETTINGS, lambda i, _: steps.append(i), lambda: len(steps) == 2)
    painter.paint(image, PLAN, condition(), SETTINGS.but(steps=1))


@pytest.mark.parametrize("wrong", [Condition(), condition(NULL_TOKENS + 1), condition(batch=3)])
def test_what_does_not_fit_says_what_to_do(painter, image, wrong):
    with pytest.raises(Misfit, match="text_tokens"):
        painter.paint(image, PLAN, wrong, SETTINGS)


def test_another_vae_is_refused(parts):
    with pytest.raises(Misfit, match="load the VAE it was made for"):
        SanaPainter(tiny_dim_parts(in_channels=24)["transformer"], parts["autoencoder"], parts["null_tokens"])


# Framing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 128), (100, 200), (200, 90), (128, 512), (37, 53)])
@pytest.mark.parametrize("kind", ["bins", "pad"])
def test_whole_picture_framings_give_the_sources_size_back(kind, size):
    framed = frame(kind, size, 128, 16)
    picture = torch.rand(1, *size, 3)
    seen = framed.apply(picture)
    assert seen.shape[1] % 16 == 0 and seen.shape[2] % 16 == 0
    assert 0.6 < seen.shape[1] * seen.shape[2] / 128**2 < 1.5 or max(size) / min(size) >= 4
    back = framed.undo(seen)
    assert back.shape == picture.shape
    smooth = torch.linspace(0, 1, size[0]).view(1, -1, 1, 1).expand(1, *size, 3)
    assert (framed.undo(framed.apply(smooth)) - smooth).abs().mean() < 0.02
    assert bool(framed.note) == (size != (128, 128))


def test_a_picture_that_fits_is_left_alone_to_the_bit():
    picture = torch.rand(1, 128, 128, 3)
    for kind in ("bins", "pad", "crop"):
        framed = frame(kind, (128, 128), 128, 16)
        assert torch.equal(framed.apply(picture), picture) and torch.equal(framed.undo(picture), picture)


def test_the_published_crop_gives_the_square_back(painter):
    wide = torch.rand(1, 100, 180, 3)
    notes = []
    painted = painter.paint(wide, PLAN, condition(batch=1), SETTINGS.but(framing="crop"), on_note=notes.append)
    assert painted.shape == (1, 128, 128, 3)
    assert "centre cut out" in notes[0]
    assert painter.paint(wide, PLAN, condition(batch=1), SETTINGS, on_note=notes.append).shape == wide.shape


@pytest.mark.parametrize(("size", "scaled", "corner"), [
    ((600, 799), (1024, 1363), (0, 170)), ((799, 600), (1363, 1024), (170, 0)), ((500, 500), (1024, 1024), (0, 0)),
    ((700, 999), (1024, 1461), (0, 218)), ((3000, 2001), (1535, 1024), (256, 0)),
])  # fmt: skip
def test_the_crop_is_that_of_the_published_transforms(size, scaled, corner):
    """By hand: Resize gives int(1024 * long / short), CenterCrop begins at int(round((edge - 1024) / 2))."""
    framed = frame("crop", size, 1024, 32)
    assert framed.scaled == scaled and framed.box == (*corner, 1024, 1024)
    rising = torch.linspace(0, 1, max(size))
    plane = rising.expand(size) if size[1] >= size[0] else rising[:, None].expand(size)
    assert abs(framed.apply(plane[None]).mean().item() - 0.5) < 2e-3


def test_an_unknown_framing_lists_the_known():
    with pytest.raises(ValueError, match="bins, pad, crop"):
        frame("fit", (10, 10), 128, 16)
