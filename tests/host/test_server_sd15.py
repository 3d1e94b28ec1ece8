"""The full-size template, with files of random weights in the published layouts: as published, but noise comes out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
MLLM_FOLDER = "llava-onevision-qwen2-0.5b-ov-hf"
WIDTH, HEIGHT, SIDE = 1365, 768, 256  # pixels; the template as published runs on a small square and a tiny MLLM


def make(script: str, server, *words: str) -> None:
    """Files of random weights, written by the host's own Python."""
    command = [server.python, str(HERE / script), str(server.comfyui), str(server.base / "models"), *words]
    subprocess.run(command, cwd=server.base, check=True, capture_output=True)


@pytest.fixture(scope="module")
def painter(server):
    """models/ with checkpoint and IP-Adapter at full size."""
    make("make_full_size.py", server)


@pytest.fixture
def instructed(server):
    """models/ with InstructPix2Pix instead."""
    make("make_full_size.py", server, "instruct")


@pytest.fixture
def tiny_mllm(server):
    from mindedit_core.systems.tiny import tiny_mllm, tiny_tokenizer

    folder, tokenizer = server.base / "models" / "LLM" / MLLM_FOLDER, tiny_tokenizer()
    tiny_mllm(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    yield
    shutil.rmtree(folder)


@pytest.fixture
def full_mllm(server):
    """models/LLM and models/mindedit: 0.9 billion parameters, LoRA and VisionHead."""
    make("full_size_mllm.py", server)


@pytest.fixture
def one_step(graph_class, root):
    graph = graph_class.load(root / "workflows" / "api" / "mind_edit_sd15.json")
    graph["MindEditEditSampler"]["steps"] = 1
    graph["MindEditInstructionOptimizer"]["max_new_tokens"] = 8
    return graph


def show(server, graph, picture: Image.Image, mask: np.ndarray) -> None:
    """The picture to edit and its mask, bool[H, W], as a file of its own: a picture without alpha brings none."""
    picture.save(server.base / "input" / graph["LoadImage"]["image"])
    Image.fromarray(mask).convert("RGB").save(server.base / "input" / "mask.png")
    graph["MindEditEditSampler"]["mask"] = [graph.add("LoadImageMask", image="mask.png", channel="red"), 0]


def test_the_template_of_sd15_runs(server, painter, tiny_mllm, one_step):
    example = Image.open(server.comfyui / "input" / "example.png").convert("RGB")
    show(server, one_step, example.resize((SIDE, SIDE)), np.ones((SIDE, SIDE), bool))
    run = server.run_well(one_step.prompt)
    (picture,) = server.pictures(run, one_step.id("SaveImage"))
    assert picture.shape == (SIDE, SIDE, 3)
    assert "the insight is off" in run.outputs[one_step.id("MindEditInsightEmbedding")]["text"][0]


def test_the_template_of_instruct_pix2pix_runs(server, instructed, tiny_mllm, graph_class, root):
    """The host finds the 8 channels in the checkpoint; without a mask the whole picture is painted, at any size."""
    graph = graph_class.load(root / "workflows" / "api" / "mind_edit_instruct.json")
    graph["MindEditEditSampler"]["steps"] = 1
    graph["MindEditInstructionOptimizer"]["max_new_tokens"] = 8
    example = Image.open(server.comfyui / "input" / "example.png").convert("RGB")
    example.resize((SIDE - 30, SIDE)).save(server.base / "input" / graph["LoadImage"]["image"])
    pictures = []
    for scale in (1.5, 3.0):
        graph["MindEditEditSampler"]["image_guidance_scale"] = scale
        pictures += server.pictures(server.run_well(graph.prompt), graph.id("SaveImage"))
    assert pictures[0].shape == (SIDE, SIDE - 30, 3)
    assert (pictures[0] != pictures[1]).mean() > 0.1  # the picture guides


def test_the_whole_graph_edits_a_photograph_at_full_size(server, painter, full_mllm, one_step):
    """Every node at full size, the insight on: SD1.5-inpainting, ip-adapter_sd15, LLaVA-OneVision 0.5B, one step."""
    photograph = Image.fromarray(skimage.data.coffee()).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[200:600, 300:900] = True
    show(server, one_step, photograph, mask)
    one_step["MindEditMLLMLoader"]["adapter"] = "random.safetensors"
    run = server.run_well(one_step.prompt)
    (picture,) = server.pictures(run, one_step.id("SaveImage"))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    changed = (picture != np.asarray(photograph)).any(-1)
    assert not changed[~mask].any() and changed[mask].mean() > 0.9
    assert "the insight is off" not in str(run.outputs[one_step.id("MindEditInsightEmbedding")])
