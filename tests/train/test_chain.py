"""Every recipe after the other, two steps each, in an empty folder: what they leave behind is a mini that edits."""

import importlib

import pytest
import torch

from mindedit_core import edit, load_system
from mindedit_core.checkpoint import load_tensors, read_metadata, save_checkpoint
from mindedit_core.model_files import MINI_FILES
from mindedit_core.scenes import sample
from train import autoencoder, unet

CHAIN = (("tower",), ("mllm",), ("autoencoder",), ("clip",), ("unet", "--painter", "inpaint", "--count", "20"),
         ("unet", "--painter", "img2img", "--count", "20"), ("ip_adapter", "--count", "20"), ("mind_edit",))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """recipe(name, *arguments): run it for two steps, all recipes in the same folders; returns that of the weights."""
    runs, weights = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("weights")
    fixed = ["--steps", "2", "--batch-size", "4", "--runs", str(runs), "--weights", str(weights)]

    def run(name: str, *arguments: str):
        with pytest.MonkeyPatch.context() as patch:
            for module in (autoencoder, unet):
                patch.setattr(module, "VALIDATION", 4)
            patch.setattr(unet, "SETTINGS", unet.SETTINGS.but(steps=1))
            patch.setattr("sys.argv", [name, *arguments, *fixed])
            with torch.random.fork_rng(devices=[]):
                importlib.import_module(f"train.{name}").main()
        return weights

    return run


@pytest.fixture(scope="module")
def mini(recipe):
    return [recipe(*step) for step in CHAIN][-1]


def test_the_recipes_leave_a_whole_mini(mini):
    assert sorted(path.name for path in mini.iterdir()) == sorted(MINI_FILES)
    assert all(read_metadata(mini / name)["steps"] == 2 for name in MINI_FILES if name.endswith(".safetensors"))


def test_a_mini_of_the_recipes_edits(mini):
    system, item = load_system(mini), sample(3)
    source = torch.from_numpy(item.source_image)[None].float() / 255
    mask = torch.from_numpy(item.mask)[None].float()
    result = edit(system, source, item.instruction, system.settings_for(mask).but(steps=1))
    kept = ~torch.from_numpy(item.mask)[None]
    assert torch.equal(result.image[kept], source[kept]) and not torch.equal(result.image, source)


WARM = [step for step in CHAIN if step[0] != "tower"]


@pytest.mark.parametrize("step", WARM, ids="-".join)
def test_warm_goes_on_from_the_shipped_file(mini, recipe, step):
    """At next to no learning rate the second stage keeps what it finds, which no first stage left, and counts on."""
    name = {"unet --painter inpaint": "unet_inpaint"}.get(" ".join(step[:3]), step[0])
    path = mini / f"{name}.safetensors"
    metadata, shipped = read_metadata(path), load_tensors(path)
    before = {key: tensor if key.endswith("alpha") else 1.01 * tensor for key, tensor in shipped.items()}
    save_checkpoint(path, before, metadata)
    recipe(*step, "--warm", "--learning-rate", "1e-9", "--weight-decay", "0.0")
    after = load_tensors(path)
    assert before.keys() == after.keys() and read_metadata(path)["steps"] == 4
    assert all(torch.allclose(before[key], after[key], rtol=2e-3, atol=1e-6) for key in before)
