"""The full-size template, with files of random weights in the published layouts: as published, but noise comes out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
MLLM_FOLDER = "llava-onevision-qwen2-0.5b-ov-hf"
SIDE = 256  # pixels: full size is shown elsewhere, here the template


@pytest.fixture(scope="module")
def models(server):
    """models/ with the checkpoint and IP-Adapter at full size; the MLLM, whose size is shown elsewhere, is tiny."""
    from mindedit_core.systems.tiny import tiny_mllm, tiny_tokenizer

    folder, tokenizer = server.base / "models", tiny_tokenizer()
    command = [server.python, str(HERE / "make_full_size.py"), str(server.comfyui), str(folder)]
    subprocess.run(command, cwd=server.base, check=True, capture_output=True)
    tiny_mllm(tokenizer).save_pretrained(folder / "LLM" / MLLM_FOLDER)
    tokenizer.save_pretrained(folder / "LLM" / MLLM_FOLDER)
    example = Image.open(server.comfyui / "input" / "example.png").convert("RGB")
    example.resize((SIDE, SIDE)).save(server.base / "input" / "example.png")
    return folder


def test_the_template_of_sd15_runs(server, models, graph_class, root):
    graph = graph_class.load(root / "workflows" / "api" / "mind_edit_sd15.json")
    graph["MindEditEditSampler"]["steps"] = 1
    graph["MindEditInstructionOptimizer"]["max_new_tokens"] = 8
    square = graph.add("SolidMask", value=1.0, width=SIDE, height=SIDE)  # the picture itself comes without alpha
    graph["MindEditEditSampler"]["mask"] = [square, 0]
    run = server.run_well(graph.prompt)
    (picture,) = server.pictures(run, graph.id("SaveImage"))
    assert picture.shape == (SIDE, SIDE, 3)
    assert "the insight is off" in run.outputs[graph.id("MindEditInsightEmbedding")]["text"][0]
