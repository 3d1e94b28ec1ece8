"""Plus and full-face adapters in a real ComfyUI: a head of states and its adapter, from files through the nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindedit_core.backbones import adapter_files
from mindedit_core.backbones.states_head import StatesHead
from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.checkpoint import read_metadata, save_checkpoint
from mindedit_core.model_files import load_model

BRIDGE, EMBEDDING, SAMPLER = "MindEditIPAdapterBridge", "MindEditInsightEmbedding", "MindEditEditSampler"
KINDS = {"plus": (16, {"width": 64, "heads": 1, "depth": 2}), "full-face": (None, {"inner": 64})}


@pytest.fixture(scope="module")
def states(mini_folder) -> tuple[int, int, str]:
    """(T, Dh, name) of the CLIP that belongs to the mini in use."""
    vision = read_metadata(mini_folder / "clip.safetensors")["config"]["vision_config"]
    space = read_metadata(mini_folder / "mind_edit.safetensors")["config"]["clip_space"]["name"]
    return 1 + (vision["image_size"] // vision["patch_size"]) ** 2, vision["hidden_size"], space


@pytest.fixture(scope="module")
def head(server, mini_folder, states) -> str:
    """models/mindedit/states.safetensors: the mini's LoRA and a random head of states."""
    tokens, width, space = states
    old = adapter_files.read_adapter(mini_folder / "mind_edit.safetensors")
    torch.manual_seed(0)
    new = StatesHead(old.config["hidden_size"], width, tokens=tokens, width=64)
    torch.nn.init.normal_(new.linear_out.weight)
    config = {**old.config, "clip_space": {"name": space, "dim": width}}
    path = server.base / "models" / "mindedit" / "states.safetensors"
    adapter_files.save_adapter(path, old.pairs, new, config, negative_image_embeds=torch.randn(tokens, width))
    return path.name


@pytest.fixture(scope="module")
def adapters(server, mini_folder, states) -> dict[str, str]:
    """models/ipadapter/KIND.safetensors for the mini's UNet."""
    _, width, space = states
    unet = load_model(mini_folder / "unet.safetensors")
    for kind, (tokens, sizes) in KINDS.items():
        torch.manual_seed(1)
        adapter = IPAdapter.for_unet(unet, width, tokens, space, kind, **sizes)
        metadata = {"component": "ip_adapter", "class": "IPAdapter", "config": adapter.config}
        save_checkpoint(server.base / "models" / "ipadapter" / f"{kind}.safetensors", adapter.state_dict(), metadata)
    return {kind: f"{kind}.safetensors" for kind in KINDS}


def use(mini, head: str | None, adapter: str):
    """The template with files in place of the built-in adapters."""
    del mini[BRIDGE]["ipadapter"]
    mini[BRIDGE]["adapter"] = adapter
    if head is not None:
        loader = mini.add("MindEditMLLMLoader", model="mini (built in)", adapter=head)
        mini["MindEditInstructionOptimizer"]["mllm"] = mini[EMBEDDING]["mllm"] = [loader, 0]
    return mini


@pytest.mark.parametrize("kind", KINDS)
def test_states_reach_the_painter_through_the_nodes(kind, server, mini, head, adapters, states):
    use(mini, head, adapters[kind])
    server.post("/free", {"unload_models": True, "free_memory": True})  # a cached node says nothing
    run = server.run_well(mini.prompt)
    (said,) = run.outputs[mini.id(EMBEDDING)]["text"]
    assert said == f"insight: 1 x {states[0]} x {states[1]}, {states[2]}"
    with_insight = server.pictures(run, mini.id("SaveImage"))[0]
    mini[BRIDGE]["insight_scale"] = 0.0
    without = server.pictures(server.run_well(mini.prompt), mini.id("SaveImage"))[0]
    assert with_insight.shape == without.shape and not np.array_equal(with_insight, without)


def test_a_global_insight_is_refused_by_a_plus_adapter(server, mini, adapters):
    run = server.run(use(mini, None, adapters["plus"]).prompt)
    assert run.error is not None
    assert run.message.startswith("IP-Adapter Bridge, model, insight, adapter, start and end: this IP-Adapter (")
    assert "reads the penultimate states" in run.message and "use a base IP-Adapter" in run.message


def test_the_node_lists_each_adapter_with_its_kind(server, adapters):
    tooltip = server.get(f"/object_info/{BRIDGE}")[BRIDGE]["input"]["required"]["adapter"][1]["tooltip"]
    assert "plus.safetensors: plus, tokens of " in tooltip and "full-face.safetensors: full-face, " in tooltip
