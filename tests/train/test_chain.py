"""Every recipe after the other, two steps each, in an empty folder: what they leave behind is a mini that edits."""

import importlib

import pytest
import torch
from accelerate.state import AcceleratorState

from mindedit_core import edit, load_system
from mindedit_core.checkpoint import load_tensors, read_metadata, save_checkpoint
from mindedit_core.model_files import MINI_FILES
from mindedit_core.scenes import sample
from train import autoencoder, unet

COUNT = ("--set", "count=20")
CHAIN = (("tower",), ("mllm",), ("autoencoder",), ("clip",), ("unet", "--config", "inpaint", *COUNT),
         ("unet", "--config", "img2img", *COUNT), ("ip_adapter", *COUNT), ("mind_edit", "--set", "held_out=14"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """recipe(name, *arguments): run it for two steps, all recipes in the same folders; returns that of the weights."""
    runs, weights = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("weights")
    settings = {"steps": 2, "batch_size": 4, "trackers": "", "runs": runs, "weights": weights}
    fixed = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def run(name: str, *arguments: str):
        with pytest.MonkeyPatch.context() as patch:
            for module in (autoencoder, unet):
                patch.setattr(module, "VALIDATION", 4)
            patch.setattr(unet, "SETTINGS", unet.SETTINGS.but(steps=1))
            patch.setattr("sys.argv", [name, *arguments, *fixed])
            AcceleratorState._reset_state(reset_partial_state=True)  # each recipe is a launch of its own
            with torch.random.fork_rng(devices=[]):
                importlib.import_module(f"train.{name}").main()
        return weights

    return run


@pytest.fixture(scope="module")
def mini(recipe):
    return [recipe(*step) for step in CHAIN][-1]


def test_the_recipes_leave_a_whole_mini(mini):
    configs = [name.replace(".safetensors", ".config.json") for name in MINI_FILES if name.endswith(".safetensors")]
    assert sorted(path.name for path in mini.iterdir()) == sorted([*MINI_FILES, *configs])
    assert all(read_metadata(mini / name)["steps"] == 2 for name in MINI_FILES if name.endswith(".safetensors"))


def test_a_mini_of_the_recipes_edits(mini):
    system, item = load_system(mini), sample(3)
    source = torch.from_numpy(item.source_image)[None].float() / 255
    mask = torch.from_numpy(item.mask)[None].float()
    result = edit(system, source, item.instruction, system.settings_for(mask).but(steps=1))
    kept = ~torch.from_numpy(item.mask)[None]
    assert torch.equal(result.image[kept], source[kept]) and not torch.equal(result.image, source)


STAND_STILL = ("warm=true", "learning_rate=1e-9", "weight_decay=0")
WARM = [step for step in CHAIN if step[0] != "tower"]


@pytest.mark.parametrize("step", WARM, ids="-".join)
def test_warm_goes_on_from_the_shipped_file(mini, recipe, step):
    """At next to no learning rate the second stage keeps what it finds, which no first stage left, and counts on."""
    name = {"unet --config inpaint": "unet_inpaint"}.get(" ".join(step[:3]), step[0])
    path = mini / f"{name}.safetensors"
    metadata, shipped = read_metadata(path), load_tensors(path)
    before = {key: tensor if key.endswith("alpha") else 1.01 * tensor for key, tensor in shipped.items()}
    save_checkpoint(path, before, metadata)
    recipe(*step, *(word for setting in STAND_STILL for word in ("--set", setting)))
    after = load_tensors(path)
    assert before.keys() == after.keys() and read_metadata(path)["steps"] == 4
    assert all(torch.allclose(before[key], after[key], rtol=2e-3, atol=1e-6) for key in before)
