"""Stable Diffusion folders as published: shards, fp16 variants, SDXL's two encoders, and the part that is missing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mindedit_core.__main__ import main
from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.checkpoint import CheckpointError, save_checkpoint, variant_of, weight_files
from mindedit_core.contracts import Condition, Misfit, PaintSettings, Plan
from mindedit_core.painters.schedule import EDMSchedule
from mindedit_core.systems import load_system
from mindedit_core.systems.stable_diffusion import load_painter
from mindedit_core.systems.tiny import save_tiny
from mindedit_core.systems.tiny_sd import COSXL, save_tiny_sd

QUICK = PaintSettings(steps=2, seed=3)
SHARDS = {"max_shard_size": "500KB"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder of a random Stable Diffusion, written when it is first asked for."""
    root = tmp_path_factory.mktemp("sd")
    saved = {
        "ip2p": ("sd15", 8),
        "sdxl": ("sdxl", 4),
        "sdxl-inpaint": ("sdxl", 9),
        "cosxl": ("sdxl", 8, COSXL),
    }

    def folder(name: str):
        if not (root / name).is_dir():
            save_tiny_sd(root / name, *saved[name])
        return root / name

    return folder


def painted(folder, **changes) -> torch.Tensor:
    image = torch.rand(1, 40, 48, 3, generator=torch.Generator().manual_seed(0))
    return load_painter(folder, None).paint_latents(image, Plan("", "red cat"), Condition(), QUICK.but(**changes))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [{}, SHARDS], ids=["one file", "shards"])
def test_shards_and_variants_hold_the_same_model(variant, shards, tmp_path):
    whole = save_tiny_sd(tmp_path / "whole", "sdxl")
    other = save_tiny_sd(tmp_path / "other", "sdxl", variant=variant, **shards)
    files = weight_files(other / "unet")
    assert variant_of(other / "unet") == variant and (len(files) > 1) == bool(shards)
    half = load_painter(other, None).unet.state_dict()
    for key, value in load_painter(whole, None).unet.state_dict().items():
        assert half[key].dtype == torch.float32
        assert torch.equal(half[key], value if variant is None else value.half().float()), key


def test_a_variant_beside_the_usual_file_is_left_alone(tmp_path):
    folder = save_tiny_sd(tmp_path / "sd", "sd15")
    expected = painted(folder)
    for name in ("unet", "vae", "text_encoder"):
        usual = next((folder / name).glob("*.safetensors"))
        usual.with_name(f"{usual.stem}.fp16.safetensors").write_bytes(b"not read")
    assert variant_of(folder / "unet") is None and torch.equal(painted(folder), expected)


def test_what_a_folder_is_is_read_from_its_configurations(folders):
    sdxl, ip2p, cosxl = (load_painter(folders(name), None) for name in ("sdxl", "ip2p", "cosxl"))
    assert sdxl.text_encoder_2 is not None and sdxl.token_dim == 80 and not sdxl.reads_source()
    assert ip2p.text_encoder_2 is None and ip2p.token_dim == 32 and ip2p.reads_source()
    assert isinstance(cosxl.schedule, EDMSchedule) and cosxl.reads_source()
    assert sdxl.tokenizer_2.pad_token == "!" != sdxl.tokenizer.pad_token
    both = load_painter(folders("sdxl"), folders("sdxl-inpaint"))
    assert (both.unet.config.in_channels, both.unet_inpaint.config.in_channels) == (4, 9)


def test_without_a_scheduler_file_the_noise_is_that_of_sd15(folders, tmp_path):
    folder = shutil.copytree(folders("sdxl"), tmp_path / "sd")
    expected = painted(folder)
    shutil.rmtree(folder / "scheduler")
    assert torch.equal(painted(folder), expected)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("text_encoder_2", "no CLIPTextModelWithProjection in .*text_encoder_2: it lacks config.json; fetch"),
        ("tokenizer_2", "no CLIP tokenizer in .*tokenizer_2: it lacks vocab.json and merges.txt; fetch"),
        ("tokenizer", "no CLIP tokenizer in .*tokenizer: it lacks"),
        ("vae", "no AutoencoderKL in .*vae: it lacks config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "unet must hold one .safetensors file, or shards .* found config"),
    ],
)
def test_a_missing_part_is_named(lost, message, folders, tmp_path):
    folder = shutil.copytree(folders("sdxl"), tmp_path / "sd")
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_painter(folder, None)


def test_a_missing_shard_of_a_variant_is_named(tmp_path):
    folder = save_tiny_sd(tmp_path / "sd", "sd15", variant="fp16", **SHARDS)
    lost = weight_files(folder / "unet")[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of .* shards named in .*fp16.json, first: {lost.name}"):
        load_painter(folder, None)


def test_folders_that_do_not_go_together_are_refused(folders, tmp_path):
    with pytest.raises(Misfit, match="were trained on different noise levels .*; name one of them alone"):
        load_painter(folders("cosxl"), folders("sdxl-inpaint"))
    with pytest.raises(Misfit, match="is an SDXL, the other is not; name two of one kind, or one alone"):
        load_painter(folders("ip2p"), folders("sdxl-inpaint"))
    with pytest.raises(Misfit, match=r"got 9 where 4 or 8 belong; put it in its own place"):
        load_painter(folders("sdxl-inpaint"), None)
    broken = shutil.copytree(folders("ip2p"), tmp_path / "sd")
    (broken / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "scaled_linear"}')
    with pytest.raises(CheckpointError, match="scheduler_config.json is not a scheduler's configuration .*beta_start"):
        load_painter(broken, None)


# The whole system, from the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(tiny_parts, tmp_path_factory):
    """An MLLM folder and its adapter, as published."""
    folder = tmp_path_factory.mktemp("thinker")
    tiny_parts["mllm"].save_pretrained(folder / "llava")
    tiny_parts["tokenizer"].save_pretrained(folder / "llava")
    return folder, save_tiny(folder / "mini", parts=tiny_parts) / "mind_edit.safetensors"


@pytest.mark.parametrize("name", ["sdxl", "ip2p", "cosxl"])
def test_the_command_edits_with_every_layout(name, folders, thinker, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sd, (parts, adapter) = folders(name), thinker
    unet = load_painter(sd, None).unet
    with torch.random.fork_rng(devices=[]):
        bridge = IPAdapter.for_unet(unet, embed_dim=24, clip_space="tiny-clip")
    save_checkpoint(tmp_path / "ip-adapter.safetensors", bridge.state_dict(), {})
    said = {"mllm": str(parts / "llava"), "adapter": str(adapter), "sd": str(sd), "clip_space": "tiny-clip"}
    (tmp_path / "system.json").write_text(json.dumps({**said, "ip_adapter": "ip-adapter.safetensors"}))
    assert load_system(tmp_path).settings_for(None).strength == (0.85 if name == "sdxl" else 1.0)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save("in.png")
    words = ["edit", "in.png", "make it red", "--system", str(tmp_path), "--steps", "2", "--max-new-tokens", "4"]
    pictures = []
    for scale in ("1.5", "3"):
        assert main([*words, "--image-guidance-scale", scale]) == 0, capsys.readouterr().err
        pictures.append((tmp_path / "in-edited.png").read_bytes())
    assert (pictures[0] != pictures[1]) == (name != "sdxl")
