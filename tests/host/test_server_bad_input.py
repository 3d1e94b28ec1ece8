"""What users do wrong: every message names node and socket, what came and what to do; and the next run works."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

SAMPLER = "MindEditEditSampler"
OPTIMIZER = "MindEditInstructionOptimizer"
BRIDGE = "MindEditIPAdapterBridge"


def failure(server, graph) -> str:
    """The message the user sees; the frontend marks the node."""
    run = server.run(graph.prompt)
    assert run.error is not None, "it ran"
    return run.message


@pytest.fixture(autouse=True)
def the_next_run_works(server, graph_class, root):
    """After every bad input the untouched template still paints."""
    yield
    graph = graph_class.load(root / "workflows" / "api" / "mind_edit_mini.json")
    graph[SAMPLER]["steps"] = 2
    server.run_well(graph.prompt)


@pytest.mark.parametrize("instruction", ["", "  \n "])
def test_an_empty_instruction(server, mini, instruction):
    mini[OPTIMIZER]["instruction"] = instruction
    message = failure(server, mini)
    assert message.startswith("Instruction Optimizer, instruction: ") and "empty" in message


def test_an_instruction_of_10000_characters(server, mini):
    mini[OPTIMIZER]["instruction"] = "make it red " * 834
    message = failure(server, mini)
    assert message.startswith("Instruction Optimizer, instruction: ") and "10007" in message and "shorten" in message


def test_something_that_is_no_mllm(server, mini):
    mini[OPTIMIZER]["mllm"] = mini.link("MindEditMiniLoader", 2)
    message = failure(server, mini)
    assert message.startswith("Instruction Optimizer, mllm: ") and "MLLM Loader" in message


# Files


def put_adapter(server, mini_folder, name, change) -> str:
    """A copy of the mini's IP-Adapter in models/ipadapter, changed by `change(tensors, metadata)`."""
    source, folder = mini_folder / "ip_adapter.safetensors", server.base / "models" / "ipadapter"
    folder.mkdir(parents=True, exist_ok=True)
    tensors, metadata = load_file(source), read_header(source)
    change(tensors, metadata)
    save_file(tensors, folder / name, {"mindedit": json.dumps(metadata)})
    return name


def read_header(path) -> dict:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["mindedit"])


def use_file(mini, name) -> None:
    del mini[BRIDGE]["ipadapter"]
    mini[BRIDGE]["adapter"] = name


def test_an_adapter_for_another_model(server, mini, mini_folder):
    def widen(tensors, metadata):
        for key, value in tensors.items():
            if key.startswith("ip_adapter."):
                tensors[key] = np.concatenate([value, value], axis=1)  # tokens twice as wide: another base model
            elif key.startswith("image_proj."):
                tensors[key] = np.concatenate([value, value]) if "proj.proj" in key or "norm" in key else value

    use_file(mini, put_adapter(server, mini_folder, "other_model.safetensors", widen))
    message = failure(server, mini)
    assert message.startswith("IP-Adapter Bridge, model, insight, adapter, start and end: this IP-Adapter (")
    assert "other_model.safetensors" in message and "for tokens of 192; choose an IP-Adapter made for" in message


def test_an_insight_of_another_clip_space(server, mini, mini_folder):
    def rename(tensors, metadata):
        metadata["config"]["clip_space"]["name"] = "some other CLIP"

    use_file(mini, put_adapter(server, mini_folder, "other_space.safetensors", rename))
    message = failure(server, mini)
    assert message.startswith("IP-Adapter Bridge, ") and "some other CLIP" in message


def refused(server, mini, client) -> str:
    """Why the prompt was not even queued."""
    with pytest.raises(client.Refused) as reason:
        server.run(mini.prompt)
    return reason.value.details


def test_a_truncated_adapter(server, mini, mini_folder, client):
    folder = server.base / "models" / "ipadapter"
    folder.mkdir(parents=True, exist_ok=True)
    content = (mini_folder / "ip_adapter.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    use_file(mini, "truncated.safetensors")
    details = refused(server, mini, client)
    assert "truncated.safetensors" in details and "not a complete safetensors file" in details


def test_a_file_that_is_no_adapter(server, mini, mini_folder, client):
    folder = server.base / "models" / "ipadapter"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(mini_folder / "autoencoder.safetensors", folder / "not_an_adapter.safetensors")
    use_file(mini, "not_an_adapter.safetensors")
    details = refused(server, mini, client)
    assert "not_an_adapter.safetensors" in details and "found a checkpoint of kind 'autoencoder'" in details


def test_a_pickled_adapter(server, mini, client):
    folder = server.base / "models" / "ipadapter"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"image_proj": {}, "ip_adapter": {}}, folder / "ip-adapter_sd15.bin")
    use_file(mini, "ip-adapter_sd15.bin")
    details = refused(server, mini, client)
    assert "is a pickle" in details and f"mindedit convert ip-adapter {folder / 'ip-adapter_sd15.bin'}" in details


def test_an_adapter_file_that_is_not_there(server, mini, client):
    use_file(mini, "ip-adapter_of_somebody_else.safetensors")
    with pytest.raises(client.Refused) as refused:
        server.run(mini.prompt)
    assert "ip-adapter_of_somebody_else.safetensors" in refused.value.details
    assert str(server.base / "models" / "ipadapter") in refused.value.details


def with_loader(mini, model: str, adapter: str) -> str:
    loader = mini.add("MindEditMLLMLoader", model=model, adapter=adapter)
    mini[OPTIMIZER]["mllm"] = mini["MindEditInsightEmbedding"]["mllm"] = [loader, 0]
    return loader


def test_an_mllm_folder_that_is_not_there(server, mini, client):
    with_loader(mini, "llava-onevision-nowhere", "none")
    with pytest.raises(client.Refused) as refused:
        server.run(mini.prompt)
    assert "llava-onevision-nowhere" in refused.value.details and "models/LLM" in refused.value.details


def test_an_mllm_folder_with_missing_shards(server, mini):
    folder = server.base / "models" / "LLM" / "half-downloaded"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with_loader(mini, "half-downloaded", "none")
    message = failure(server, mini)
    assert message.startswith("MLLM Loader, ") and "model-00002-of-00002.safetensors" in message


def test_a_truncated_mind_edit_adapter(server, mini, mini_folder):
    folder = server.base / "models" / "mindedit"
    folder.mkdir(parents=True, exist_ok=True)
    content = (mini_folder / "mind_edit.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    with_loader(mini, "mini (built in)", "truncated.safetensors")
    message = failure(server, mini)
    assert message.startswith("MLLM Loader, ") and "truncated.safetensors" in message


# Handled, and said on the node


def test_without_a_head_the_insight_is_off_and_the_node_says_so(server, mini):
    with_loader(mini, "mini (built in)", "none")
    run = server.run_well(mini.prompt)
    (said,) = run.outputs[mini.id("MindEditInsightEmbedding")]["text"]
    assert "VisionHead" in said and "the insight is off" in said
    assert run.texts[mini.id("MindEditInsightEmbedding")] == [said]
    assert "text only" in run.outputs[mini.id(BRIDGE)]["text"][0]
    assert len(server.pictures(run, mini.id("SaveImage"))) == 1


def test_without_a_head_the_embeds_for_other_packs_are_blocked_with_the_reason(server, mini):
    with_loader(mini, "mini (built in)", "none")
    mini.add("PreviewAny", source=mini.link("MindEditInsightEmbedding", 1))
    message = failure(server, mini)
    assert "VisionHead" in message and "models/mindedit" in message


def pictures_with(server, mini, **inputs):
    """Source, result, and what the Edit Sampler said."""
    mini[SAMPLER] |= inputs
    source = mini.add("PreviewImage", images=mini[SAMPLER]["image"])
    run = server.run_well(mini.prompt)
    said = run.outputs.get(mini.id(SAMPLER), {}).get("text", [""])[0]
    return server.pictures(run, source)[0], server.pictures(run, mini.id("SaveImage"))[0], said


def test_an_empty_mask_returns_the_source(server, mini):
    empty = mini.add("SolidMask", value=0.0, width=128, height=128)
    before, after, said = pictures_with(server, mini, mask=[empty, 0])
    assert np.array_equal(before, after)
    assert "mask" in said and "empty" in said


def test_a_mask_of_another_size_is_fitted(server, mini):
    other = mini.add("SolidMask", value=1.0, width=64, height=32)
    before, after, said = pictures_with(server, mini, mask=[other, 0])
    assert after.shape == before.shape
    assert "64" in said and "32" in said


def test_a_picture_with_alpha(server, mini):
    empty = mini.add("SolidMask", value=0.0, width=128, height=128)
    rgba = mini.add("JoinImageWithAlpha", image=mini.link("MindEditSampleScene"), alpha=[empty, 0])
    for node in (OPTIMIZER, "MindEditInsightEmbedding", SAMPLER):
        mini[node]["image"] = [rgba, 0]
    run = server.run_well(mini.prompt)
    assert server.pictures(run, mini.id("SaveImage"))[0].shape == (128, 128, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (137, 61)])
def test_a_picture_of_an_odd_size(server, mini, width, height):
    picture = mini.add("EmptyImage", width=width, height=height, batch_size=1, color=0x4080C0)
    del mini[SAMPLER]["mask"]
    for node in (OPTIMIZER, "MindEditInsightEmbedding", SAMPLER):
        mini[node]["image"] = [picture, 0]
    run = server.run_well(mini.prompt)
    assert server.pictures(run, mini.id("SaveImage"))[0].shape == (height, width, 3)


# Interrupts


def test_an_interrupted_run_ends_at_once_and_loses_nothing(server, mini):
    latent = mini.add("SaveLatent", samples=mini.link(SAMPLER, 1), filename_prefix="edit")
    whole = server.latent(server.run_well(mini.prompt), latent)
    endless = mini.copy()
    endless[SAMPLER]["steps"] = 1000
    asked = []

    def interrupt(run, event):
        sampling = event["type"] == "progress" and event["data"]["max"] == 1000
        if sampling and event["data"]["value"] >= 2 and not asked:
            asked.append(server.post("/interrupt", {}))

    run = server.run(endless.prompt, on_event=interrupt)
    assert asked and run.end == "execution_interrupted"
    (interrupted,) = [event["data"] for event in run.events if event["type"] == run.end]
    assert interrupted["node_type"] == SAMPLER
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert np.array_equal(whole, server.latent(server.run_well(mini.prompt), latent))
