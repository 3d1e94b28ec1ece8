"""Painters and autoencoders in the models folders: listed by what they are, loaded, refused with what to do."""

from __future__ import annotations

import json

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from mindedit_core.checkpoint import load_tensors
from mindedit_core.contracts import Misfit
from mindedit_core.dim.files import DimParts
from mindedit_core.hosts import comfy_folders, comfy_painters, comfy_sana
from mindedit_core.painters.flow import FlowSchedule
from mindedit_core.systems.dim_files import load_dim, save_dim
from mindedit_core.systems.tiny import LATENT_CHANNELS
from mindedit_core.systems.tiny_dim import save_tiny_dim, tiny_dim_parts


@pytest.fixture
def models(unregistered_models, monkeypatch):
    """models/{diffusion_models, vae, diffusers} with one painter, one file of another kind, and one autoencoder."""
    for key in ("diffusion_models", "vae", "diffusers"):
        (unregistered_models / key).mkdir()
        extensions = folder_paths.folder_names_and_paths[key][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(unregistered_models / key)], extensions))
    parts = tiny_dim_parts()
    found = DimParts(parts["projector"], parts["transformer"], parts["null_tokens"], FlowSchedule())
    save_dim(unregistered_models / "diffusion_models" / "dim.safetensors", found)
    save_file({"x": torch.zeros(1)}, unregistered_models / "diffusion_models" / "other.safetensors")
    with torch.inference_mode(False):
        parts["autoencoder"].save_pretrained(unregistered_models / "diffusers" / "dc-ae")
    return unregistered_models


@pytest.fixture(autouse=True)
def dim_mini(tmp_path_factory, monkeypatch):
    monkeypatch.setenv(comfy_folders.DIM_VARIABLE, str(save_tiny_dim(tmp_path_factory.mktemp("dim"))))


def test_what_lies_there_is_told_by_its_content(models):
    assert comfy_painters.list_painters() == [comfy_folders.DIM_MINI, "dim.safetensors"]
    assert comfy_painters.list_autoencoders() == [comfy_painters.OWN, "dc-ae"]
    tensors = load_tensors(models / "diffusers" / "dc-ae")
    save_file(tensors, models / "vae" / "file.safetensors")
    folder_paths.filename_list_cache.clear()
    assert comfy_painters.list_autoencoders() == [comfy_painters.OWN, "file.safetensors", "dc-ae"]


def test_a_painter_and_its_autoencoder_are_loaded(models):
    model, clip, vae = comfy_painters.load_painter("dim.safetensors", "dc-ae")
    assert isinstance(clip, comfy_sana.NoTextEncoder)
    assert comfy_sana.painter_of(model).base == 128 and model.model.reads_source
    assert vae.latent_channels == 16
    assert "edits" in comfy_painters.describe(model)
    theirs = load_dim(models / "diffusion_models" / "dim.safetensors").transformer.state_dict()
    ours = model.model.diffusion_model.transformer.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_built_in_one_is_kept_in_half_precision(models):
    model, _, _ = comfy_painters.load_painter(comfy_folders.DIM_MINI)
    assert {parameter.dtype for parameter in model.model.diffusion_model.parameters()} == {torch.float16}
    assert model.model.manual_cast_dtype == torch.float32


def test_a_converted_painter_needs_an_autoencoder(models):
    with pytest.raises(ValueError, match="fetch mit-han-lab/dc-ae"):
        comfy_painters.load_painter("dim.safetensors")


@pytest.mark.parametrize(("painter", "vae"), [("gone.safetensors", "dc-ae"), ("other.safetensors", "dc-ae"),
                                              ("dim.safetensors", "../dc-ae")])
def test_what_is_not_listed_is_never_opened(models, painter, vae):
    with pytest.raises(FileNotFoundError, match=r"is not there; put .* press R"):
        comfy_painters.load_painter(painter, vae)
    assert comfy_painters.problem(painter, vae)


def test_a_changed_file_changes_the_fingerprint(models):
    before = comfy_painters.fingerprint("dim.safetensors", "dc-ae")
    path = models / "diffusion_models" / "dim.safetensors"
    save_file(load_tensors(path), path, metadata={"mindedit": json.dumps({"component": "dim"})})
    assert comfy_painters.fingerprint("dim.safetensors", "dc-ae") != before


def test_the_built_in_one_refuses_another_autoencoder(models):
    with pytest.raises(Misfit, match="choose \"the painter's own\""):
        comfy_painters.load_painter(comfy_folders.DIM_MINI, "dc-ae")
    assert comfy_painters.problem(comfy_folders.DIM_MINI, "dc-ae")
    assert comfy_painters.problem(comfy_folders.DIM_MINI, comfy_painters.OWN) is None


def test_an_autoencoder_of_other_channels_is_refused(models):
    from diffusers import AutoencoderDC

    sizes = {"latent_channels": 2 * LATENT_CHANNELS, "encoder_block_out_channels": (8, 16),
             "decoder_block_out_channels": (8, 16), "encoder_layers_per_block": (1, 1),
             "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), ()),
             "decoder_qkv_multiscales": ((), ())}  # fmt: skip
    with torch.inference_mode(False):
        AutoencoderDC(**sizes).save_pretrained(models / "diffusers" / "f64c128")
    with pytest.raises(Misfit, match="paints latents of 16 channels, the autoencoder makes 32"):
        comfy_painters.load_painter("dim.safetensors", "f64c128")


def test_a_painter_in_a_folder_of_its_own_is_called_as_templates_call_it(models):
    place = models / "diffusion_models" / "DIM-4.6B-Edit"
    place.mkdir()
    (models / "diffusion_models" / "dim.safetensors").rename(place / "model.safetensors")
    folder_paths.filename_list_cache.clear()
    assert comfy_painters.list_painters()[1:] == ["DIM-4.6B-Edit/model.safetensors"]
    assert comfy_painters.load_painter("DIM-4.6B-Edit/model.safetensors", "dc-ae").model.model.reads_source


def test_a_pickle_is_named_with_the_command_that_converts_it(models):
    path = models / "diffusion_models" / "SANA1.5.pth"
    torch.save({"state_dict": {"x": torch.zeros(1)}}, path)
    folder_paths.filename_list_cache.clear()
    assert path.name not in comfy_painters.list_painters()
    command = f"mindedit convert sana {path} {path.with_suffix('.safetensors')}"
    assert command in comfy_painters.problem(path.name)
    (found,) = comfy_painters.found_pickles()
    assert found.startswith(f"{path.name}, if it is a SANA: ") and command in found


def test_licences_name_every_owner():
    owners = ("DIM-4.6B", "Qwen", "NVIDIA", "Gemma terms of use (Google)")
    assert all(owner in comfy_painters.LICENCES for owner in owners)


def test_it_is_no_text_encoder():
    with pytest.raises(Misfit, match="in place of CLIP Text Encode"):
        comfy_sana.NoTextEncoder().tokenize("a cat")
