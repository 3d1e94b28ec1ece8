"""SANA as the host's MODEL: diffusers' latents from the host's own sampling, and everything that works on a MODEL."""

from __future__ import annotations

import copy

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import pytest
import torch

import nodes
from mindedit_core.contracts import Condition, Insight, Misfit, PaintSettings, Plan
from mindedit_core.dim.files import DimParts
from mindedit_core.hosts import comfy_flow, comfy_sana
from mindedit_core.hosts.comfy_dc_ae import AutoencoderBox, DcAeVAE
from mindedit_core.hosts.comfy_managed import unmanaged
from mindedit_core.hosts.comfy_sampler import edit_sample, require_text
from mindedit_core.hosts.comfy_sana import SanaBox
from mindedit_core.painters.flow import FlowSchedule
from mindedit_core.painters.sana import SanaPainter
from mindedit_core.systems.tiny import LATENT_CHANNELS
from mindedit_core.systems.tiny_dim import tiny_dim_parts

PUBLISHED = {"sampler_name": comfy_flow.SOLVER, "scheduler": comfy_flow.LEVELS}
SETTINGS = {"seed": 233, "steps": 5, "cfg": 7.5, **PUBLISHED}
HEADLESS = PaintSettings(steps=5, guidance_scale=7.5, seed=233)
PLAN = Plan("make it blue", "make it blue")
FACTOR = 16  # pixels a cell of the tiny autoencoder


def hosted(parts):
    """(MODEL, VAE) of copies: a box changes the classes of what it is given."""
    own = {name: copy.deepcopy(part) for name, part in parts.items()}
    vae = DcAeVAE(own["autoencoder"], torch.float32)
    found = DimParts(own["projector"], own["transformer"], own["null_tokens"], FlowSchedule())
    return comfy_sana.sana_model(found, vae, torch.float32), vae


@pytest.fixture(scope="module")
def parts():
    return tiny_dim_parts()


@pytest.fixture(scope="module")
def model_and_vae(parts):
    with torch.inference_mode():
        return hosted(parts)


@pytest.fixture(scope="module")
def model(model_and_vae):
    return model_and_vae[0]


@pytest.fixture(scope="module")
def vae(model_and_vae):
    return model_and_vae[1]


@pytest.fixture(scope="module")
def painter(parts):
    return SanaPainter(parts["transformer"], parts["autoencoder"], parts["null_tokens"])


@pytest.fixture
def image(generator):
    return torch.rand(2, 128, 128, 3, generator=generator)


@pytest.fixture
def insight(generator):
    """States of two turns of unequal length."""
    hidden = torch.randn(2, 21, 48, generator=generator)
    return Insight(hidden, torch.arange(21) < torch.tensor([[21], [9]]))


@pytest.fixture
def conds(model, insight):
    return comfy_sana.conditioning(comfy_sana.painter_of(model), insight)


def by_headless(parts, painter, image, insight, settings=HEADLESS):
    condition = parts["projector"](insight)
    return painter.paint_latents(image, condition, settings)


# The same numbers ----------------------------------------------------------------------------------------------------


def test_edit_sampler_paints_the_headless_latents(parts, painter, model, vae, image, insight, conds):
    edited = edit_sample(model, *conds, vae, image, **SETTINGS)
    ours = edited.latent["samples"] * vae.scaling_factor
    torch.testing.assert_close(ours, by_headless(parts, painter, image, insight), atol=1e-4, rtol=1e-4)
    theirs = painter.paint(image, PLAN, parts["projector"](insight), HEADLESS)
    assert (edited.image - theirs).abs().max() < 1e-4 and not edited.notes


def test_sampler_and_sigmas_paint_them_too(parts, painter, model, vae, image, insight, conds):
    """What SamplerCustom does, from the latent that VAEEncode gives."""
    latent = vae.encode(image)
    noise = comfy.sample.prepare_noise(latent, 233)
    sigmas = comfy_flow.flow_sigmas(model, 5)
    found = comfy.sample.sample_custom(model, noise, 7.5, comfy_flow.flow_sampler(), sigmas, *conds, latent)
    expected = by_headless(parts, painter, image, insight)
    torch.testing.assert_close(found * vae.scaling_factor, expected, atol=1e-4, rtol=1e-4)


CHANGES = [{"strength": 0.4}, {"cfg": 1.0}, {"masked": True}, {"strength": 0.6, "masked": True}]


@pytest.mark.parametrize("changes", CHANGES)
def test_strength_guidance_and_masks_are_the_headless_ones(parts, painter, model, vae, image, insight, conds, changes):
    changes = dict(changes)
    mask = torch.zeros(1, 128, 128)
    mask[:, 16:80, 40:] = 1.0
    mask = mask if changes.pop("masked", False) else None
    edited = edit_sample(model, *conds, vae, image, mask, **SETTINGS | changes)
    settings = HEADLESS.but(
        strength=changes.get("strength", 1.0), guidance_scale=changes.get("cfg", 7.5), mask=mask
    )
    theirs = painter.paint(image, PLAN, parts["projector"](insight), settings)
    assert (edited.image - theirs).abs().max() < 2e-4


@pytest.mark.parametrize("framing", ["bins", "pad", "crop"])
def test_other_sizes_are_framed_as_headless(parts, painter, model, vae, insight, conds, framing, generator):
    image = torch.rand(2, 90, 150, 3, generator=generator)
    edited = edit_sample(model, *conds, vae, image, **SETTINGS, framing=framing)
    notes = []
    settings = HEADLESS.but(framing=framing)
    theirs = painter.paint(image, PLAN, parts["projector"](insight), settings, on_note=notes.append)
    assert edited.image.shape == theirs.shape == ((2, 128, 128, 3) if framing == "crop" else image.shape)
    assert (edited.image - theirs).abs().max() < 2e-4
    assert edited.notes == notes


def test_the_model_is_told_whole_thousandths(model, conds, monkeypatch):
    seen = []
    transformer = model.model.diffusion_model.transformer
    forward = transformer.forward

    def told(*args, timestep, **kwargs):
        seen.append(timestep)
        return forward(*args, timestep=timestep, **kwargs)

    monkeypatch.setattr(transformer, "forward", told)
    box = model.model.diffusion_model
    x = torch.zeros(3, 2 * LATENT_CHANNELS, 8, 8)
    box(x, torch.tensor([1000.0, 499.7, 0.2]), conds[0][0][0][:1].expand(3, -1, -1))
    assert seen[0].tolist() == [999, 499, 0]


# The host's own ------------------------------------------------------------------------------------------------------


def test_stock_ksampler_runs_and_sees_the_source(model, vae, image, conds):
    def sampled(picture):
        latent = {"samples": vae.encode(picture)}
        (found,) = nodes.KSampler().sample(model, 3, 4, 3.0, "euler", "simple", *conds, latent, denoise=1.0)
        return found["samples"]

    first = sampled(image)
    assert torch.isfinite(first).all() and torch.equal(first, sampled(image))
    assert (first - sampled(image.flip(1))).abs().mean() > 1e-3


def test_sampler_custom_advanced_runs_with_stock_parts(model, vae, image, conds):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(3.0)
    latent = vae.encode(image)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 4)
    noise = comfy.sample.prepare_noise(latent, 1)
    found = guider.sample(noise, latent, comfy.samplers.sampler_object("dpmpp_2m"), sigmas)
    assert torch.isfinite(found).all() and found.shape == latent.shape


def test_every_weight_can_be_offloaded(model):
    """Nothing is left that breaks when the host keeps a part in RAM."""
    assert unmanaged(model.model.diffusion_model) == []
    assert unmanaged(comfy_sana.painter_of(model).projector.model) == []


def test_half_precision_weights_are_computed_in_fp32(parts, image, insight):
    """Kept in bf16, as the published ones; the tables of shifts and scales too."""
    half = {name: part.to(torch.bfloat16) if name in ("transformer", "projector", "null_tokens") else part
            for name, part in copy.deepcopy(parts).items()}
    model, vae = hosted(half)
    assert {parameter.dtype for parameter in model.model.diffusion_model.parameters()} == {torch.bfloat16}
    conds = comfy_sana.conditioning(comfy_sana.painter_of(model), insight)
    found = edit_sample(model, *conds, vae, image, **SETTINGS).latent["samples"]
    widened = {name: part.float() if name in ("transformer", "projector", "null_tokens") else part
               for name, part in half.items()}
    painter = SanaPainter(widened["transformer"], widened["autoencoder"], widened["null_tokens"])
    expected = by_headless(widened, painter, image, insight)
    torch.testing.assert_close(found * vae.scaling_factor, expected, atol=1e-4, rtol=1e-4)


def test_a_clone_carries_the_painter_and_the_original_is_left_alone(model):
    clone = model.clone()
    assert comfy_sana.painter_of(clone) is comfy_sana.painter_of(model)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    clone.add_patches({"diffusion_model.transformer.proj_out.weight": (torch.ones(LATENT_CHANNELS, 224),)}, 1.0)
    assert model.patches == {}
    assert all(torch.equal(before[key], value) for key, value in model.model.state_dict().items())


def test_patches_of_weights_change_the_picture_and_go_away(model, vae, image, conds):
    first = edit_sample(model, *conds, vae, image, **SETTINGS).image
    patched = model.clone()
    weight = torch.randn(224, 224, generator=torch.Generator().manual_seed(0))
    patched.add_patches({"diffusion_model.transformer.transformer_blocks.0.attn2.to_q.weight": (weight,)}, 1.0)
    assert (edit_sample(patched, *conds, vae, image, **SETTINGS).image - first).abs().mean() > 1e-4
    assert torch.equal(edit_sample(model, *conds, vae, image, **SETTINGS).image, first)


def test_previews_are_colours_of_the_latents(model):
    import latent_preview

    factors = model.model.latent_format.latent_rgb_factors
    assert len(factors) == LATENT_CHANNELS and len(factors[0]) == 3
    previewer = latent_preview.Latent2RGBPreviewer(factors, model.model.latent_format.latent_rgb_factors_bias)
    picture = previewer.decode_latent_to_preview(torch.randn(1, LATENT_CHANNELS, 8, 8))
    assert picture.size == (8, 8)


def test_an_interrupt_ends_it_within_a_step(model, vae, image, conds, monkeypatch):
    """As the host's button does it, which only sets a flag; whoever looks at it ends the run."""
    steps = []
    velocity = SanaBox._velocity

    def interrupted(box, *args, **kwargs):
        steps.append(1)
        if len(steps) == 2:
            mm.interrupt_current_processing()
        return velocity(box, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SanaBox, "_velocity", interrupted)
        try:
            with pytest.raises(mm.InterruptProcessingException):
                edit_sample(model, *conds, vae, image, **SETTINGS)
        finally:
            mm.interrupt_current_processing(False)
    assert len(steps) == 2
    assert torch.isfinite(edit_sample(model, *conds, vae, image, **SETTINGS).image).all()


# Tiles ---------------------------------------------------------------------------------------------------------------


class Tiles(list):
    """Pixels of whatever the autoencoder decoded and encoded. room: of memory, in pixels"""

    room = float("inf")

    def watched(self, method, pixels_a_number):
        def run(box, x, **kwargs):
            self.append(x.shape[2] * x.shape[3] * pixels_a_number)
            if self[-1] > self.room:
                raise mm.OOM_EXCEPTION("no room")
            return method(box, x, **kwargs)

        return run


@pytest.fixture
def tiles(monkeypatch):
    seen = Tiles()
    monkeypatch.setattr(AutoencoderBox, "decode", seen.watched(AutoencoderBox.decode, FACTOR**2))
    monkeypatch.setattr(AutoencoderBox, "encode", seen.watched(AutoencoderBox.encode, 1))
    return seen


def test_tiled_decoding_and_encoding_are_near_to_whole(vae, generator, tiles):
    image = torch.rand(1, 256, 256, 3, generator=generator)
    latent, whole = vae.encode(image), vae.decode(vae.encode(image))
    tiles.clear()
    tiled = vae.decode_tiled(latent, tile_x=12, tile_y=12, overlap=4)
    assert len(tiles) > 3 and max(tiles) < 256**2
    assert tiled.shape == whole.shape and (tiled - whole).abs().mean() < 0.02
    tiles.clear()
    again = vae.encode_tiled(image, tile_x=192, tile_y=192, overlap=64)
    assert len(tiles) > 3 and max(tiles) < 256**2
    assert again.shape == latent.shape and (again - latent).abs().mean() < 0.1 * latent.abs().mean()


def test_out_of_memory_falls_back_on_tiles_that_are_smaller_than_the_picture(vae, generator, tiles):
    """The host's 64 cells would be the whole of 1024 pixels once more, or of 2048 with 32 pixels a cell."""
    image = torch.rand(1, 1024, 1024, 3, generator=generator)
    latent, whole = vae.encode(image), vae.decode(vae.encode(image))
    tiles.clear()
    tiles.room = 512**2
    decoded, encoded = vae.decode(latent), vae.encode(image)
    assert [pixels for pixels in tiles if pixels > tiles.room] == [1024**2, 1024**2] and len(tiles) > 10
    assert decoded.shape == whole.shape and (decoded - whole).abs().mean() < 0.01
    assert encoded.shape == latent.shape and (encoded - latent).abs().mean() < 0.1 * latent.abs().mean()


def test_text_to_image_takes_the_size_of_the_picture(image, insight):
    model, vae = hosted(tiny_dim_parts(in_channels=LATENT_CHANNELS))
    conds = comfy_sana.conditioning(comfy_sana.painter_of(model), insight)
    first = edit_sample(model, *conds, vae, image, **SETTINGS)
    assert torch.equal(first.image, edit_sample(model, *conds, vae, image.flip(1), **SETTINGS).image)
    assert "only the size is used" in first.notes[0]


def test_other_samplers_are_named_beside_the_published_one(model, vae, image, conds):
    edited = edit_sample(model, *conds, vae, image, **SETTINGS | {"sampler_name": "euler", "scheduler": "simple"})
    (note,) = edited.notes
    assert "with euler and simple" in note and "dpm_solver_flow and flow" in note and "30 steps" in note


# What does not fit ---------------------------------------------------------------------------------------------------


def test_text_of_another_width_is_refused_before_the_transformer_runs(model, vae, image, conds, monkeypatch):
    """By every sampler; Edit Sampler's node says it of positive and negative."""
    monkeypatch.setattr(SanaBox, "_velocity", None)
    of_clip = [[torch.zeros(1, 77, 768), {"pooled_output": None}]]
    wrong = r"reads text of width 40, its conditioning has 768; wire positive and negative of IP-Adapter Bridge"
    latent = {"samples": vae.encode(image)}
    for pair in ((of_clip, conds[1]), (conds[0], of_clip)):
        with pytest.raises(Misfit, match=wrong):
            nodes.KSampler().sample(model, 3, 4, 3.0, "euler", "simple", *pair, latent)
        with pytest.raises(Misfit, match=wrong):
            require_text(model, *pair)
        with pytest.raises(Misfit, match=wrong):
            edit_sample(model, *pair, vae, image, **SETTINGS)


def test_a_sana_of_a_text_encoder_asks_for_that(parts, image):
    found = tiny_dim_parts(in_channels=LATENT_CHANNELS)
    plain = DimParts(None, found["transformer"], None, FlowSchedule())
    vae = DcAeVAE(found["autoencoder"], torch.float32)
    model = comfy_sana.sana_model(plain, vae, torch.float32)
    of_clip = [[torch.zeros(1, 77, 768), {"pooled_output": None}]]
    with pytest.raises(Misfit, match="wire CLIP Text Encode into the sampler, with the clip of the Painter Loader"):
        nodes.KSampler().sample(model, 3, 4, 3.0, "euler", "simple", of_clip, of_clip, {"samples": vae.encode(image)})


def test_states_are_refused_for_other_models(image, conds):
    from mindedit_core.hosts import comfy_mini

    mini = comfy_mini.load_mini("img2img")
    other = SETTINGS | {"sampler_name": "euler", "scheduler": "simple"}
    with pytest.raises(Misfit, match="which a SANA alone reads.*same IP-Adapter Bridge"):
        edit_sample(mini.model, *conds, mini.vae, image, **other)


def test_states_of_another_mllm_are_refused(model):
    with pytest.raises(Misfit, match="load the MLLM that it was trained with"):
        comfy_sana.conditioning(comfy_sana.painter_of(model), Insight(torch.zeros(1, 3, 36), torch.ones(1, 3).bool()))


def test_strength_zero_and_an_empty_mask_give_the_source(model, vae, image, conds):
    assert torch.equal(edit_sample(model, *conds, vae, image, **SETTINGS, strength=0.0).image, image)
    empty = edit_sample(model, *conds, vae, image, torch.zeros(1, 128, 128), **SETTINGS)
    assert torch.equal(empty.image, image) and "mask is empty" in empty.notes[0]


def test_the_flow_solver_is_refused_for_other_models(image):
    from mindedit_core.hosts import comfy_mini

    mini = comfy_mini.load_mini("inpaint")
    with pytest.raises(Misfit, match="choose euler and simple"):
        edit_sample(mini.model, [], [], mini.vae, image, **SETTINGS)
    with pytest.raises(Misfit, match="of flow models"):
        comfy_flow.flow_sigmas(mini.model, 4)


def test_condition_streams_are_the_contracts(model, insight):
    assert isinstance(comfy_sana.painter_of(model).condition(insight), Condition)
