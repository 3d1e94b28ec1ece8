"""The same edit without ComfyUI: the headless core and the graph agree inside the mask, and word for word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindedit_core import PaintSettings, edit, load_system
from mindedit_core.scenes import sample

SCENES = [2**31 + number for number in range(10)]
SAMPLER = "MindEditEditSampler"
CLOSE = 2.0  # of 255, mean absolute difference inside the edit mask
STEPS = 20  # divides 1000: euler on `simple` and on `trailing` are then the same


@pytest.fixture(scope="module")
def system(mini_folder):
    return load_system(mini_folder)


def headless(system, seed: int) -> tuple[np.ndarray, str]:
    """uint8 picture, compositing off, and T_opt."""
    scene = sample(seed)
    image = torch.from_numpy(scene.source_image.copy()).float()[None] / 255
    mask = torch.from_numpy(scene.mask.copy()).float()[None]
    settings = PaintSettings(steps=STEPS, guidance_scale=3.0, seed=seed, mask=mask, composite=False)
    with torch.inference_mode():
        result = edit(system, image, scene.instruction, settings)
    return (result.image[0].numpy() * 255).clip(0, 255).astype(np.uint8), result.plan.text


@pytest.mark.parametrize("seed", SCENES)
def test_headless_and_comfyui_agree(server, mini, system, seed):
    mini["MindEditSampleScene"]["seed"] = seed
    mini[SAMPLER] |= {"seed": seed, "steps": STEPS, "cfg": 3.0, "composite": False}
    answer = mini.add("PreviewAny", source=mini.link("MindEditInstructionOptimizer"))
    run = server.run_well(mini.prompt)
    picture, text = headless(system, seed)
    assert server.text(run, answer) == text
    inside = sample(seed).mask.astype(bool)
    hosted = server.pictures(run, mini.id("SaveImage"))[0]
    assert np.abs(hosted[inside].astype(int) - picture[inside].astype(int)).mean() <= CLOSE
