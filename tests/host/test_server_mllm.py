"""MLLM Loader in a real ComfyUI: its adapter is swapped without a second look at the model's files.

That no file is read is seen from outside: between two runs the shards become garbage of the same name, size and time.
"""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

LOADER, ADAPTER = "MindEditMLLMLoader", "MindEditMLLMAdapter"
OPTIMIZER, EMBEDDING, SAMPLER = "MindEditInstructionOptimizer", "MindEditInsightEmbedding", "MindEditEditSampler"
NAME, A, B = "the-mini-as-published", "lora_a.safetensors", "lora_b.safetensors"
GARBAGE = "not a complete safetensors file"


@pytest.fixture(scope="module")
def folder(server, mini_folder, tiny_llava):
    """models/LLM: the mini's MLLM, bf16 in shards; models/mindedit: its adapter, and one with its LoRA turned."""
    from mindedit_core.backbones import adapter_files
    from mindedit_core.backbones.llava_onevision import LlavaOnevision

    mllm = LlavaOnevision.from_folder(mini_folder)
    place = server.base / "models" / "LLM" / NAME
    tiny_llava.write_llava(place, {"mllm": mllm.model, "tokenizer": mllm.tokenizer}, shard="1MB")
    adapters = server.base / "models" / "mindedit"
    adapters.mkdir(parents=True, exist_ok=True)
    shutil.copy(mini_folder / "mind_edit.safetensors", adapters / A)
    own = adapter_files.read_adapter(adapters / A)
    turned = {module: replace(pair, alpha=-pair.alpha) for module, pair in own.pairs.items()}
    adapter_files.save_adapter(adapters / B, turned, own.head, own.config)
    return place


@pytest.fixture
def unreadable(folder):
    """`unreadable()` makes garbage of every shard, of the same name, size and time; the shards come back afterwards."""
    kept = folder.with_name("kept")

    def spoil():
        shutil.copytree(folder, kept)
        for shard in folder.glob("*.safetensors"):
            put(b"\xff" * shard.stat().st_size, shard)

    yield spoil
    for shard in kept.glob("*.safetensors"):
        put(shard.read_bytes(), folder / shard.name)
    shutil.rmtree(kept, ignore_errors=True)


def put(content: bytes, path) -> None:
    """In place of a file, as another inode: what is mapped into memory stays as it was."""
    stat, part = path.stat(), path.with_suffix(".part")
    part.write_bytes(content)
    os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(part, path)


@pytest.fixture
def graph(mini, folder):
    """The mini's template with an MLLM Loader of that folder."""
    loader = mini.add(LOADER, model=NAME, adapter=A)
    mini[OPTIMIZER]["mllm"] = mini[EMBEDDING]["mllm"] = [loader, 0]
    mini.latent = mini.add("SaveLatent", samples=mini.link(SAMPLER, 1), filename_prefix="swap")
    return mini


def paint(server, graph, **widgets):
    graph[LOADER].update(widgets)
    return server.latent(server.run_well(graph.prompt), graph.latent)


def forget(server) -> None:
    server.post("/free", {"unload_models": True, "free_memory": True})


def reads(server) -> int:
    return sum(f"reading {server.base / 'models' / 'LLM' / NAME}" in line for line in server.log().splitlines())


def test_swapping_the_adapter_does_not_read_the_model_again(server, graph, unreadable):
    """A, B, A, none, A: the same pictures again, bit for bit, from weights that are nowhere but in memory."""
    forget(server)
    before = reads(server)
    first = paint(server, graph, adapter=A)
    unreadable()
    second, again = paint(server, graph, adapter=B), paint(server, graph, adapter=A)
    assert np.array_equal(first, again)
    assert not np.allclose(first, second, atol=1e-3)
    half = paint(server, graph, lora_strength=0.5)
    assert not np.allclose(half, first, atol=1e-3) and not np.allclose(half, second, atol=1e-3)
    graph[LOADER].update(adapter="none", lora_strength=1.0)
    assert server.run(graph.prompt).end == "execution_success"
    assert np.array_equal(first, paint(server, graph, adapter=A))
    assert reads(server) == before + 1
    forget(server)
    run = server.run(graph.prompt)
    assert run.message.startswith("MLLM Loader, ") and GARBAGE in run.message, "the shards could still be read"


def test_two_loaders_with_two_adapters_share_one_model(server, graph):
    """Both in one prompt give what each gives alone, and the model is read once."""
    forget(server)
    alone = {name: paint(server, graph, adapter=name) for name in (B, A)}
    forget(server)
    before = reads(server)
    both = two_branches(graph, lambda both: both.add(LOADER, model=NAME, adapter=B))
    run = server.run_well(both.prompt)
    assert np.array_equal(server.latent(run, graph.latent), alone[A])
    assert np.array_equal(server.latent(run, both.second), alone[B])
    assert reads(server) == before + 1


def test_an_adapter_node_beside_the_loader_s_own(server, graph):
    alone = {name: paint(server, graph, adapter=name) for name in (B, A)}
    before = reads(server)
    both = two_branches(graph, lambda both: both.add(ADAPTER, mllm=both.link(LOADER), adapter=B, lora_strength=1.0))
    run = server.run_well(both.prompt)
    assert np.array_equal(server.latent(run, graph.latent), alone[A])
    assert np.array_equal(server.latent(run, both.second), alone[B])
    assert reads(server) == before


def two_branches(graph, second_mllm):
    """The graph with everything from the MLLM to the latent twice; `second_mllm(graph)` is where the second begins."""
    both = graph.copy()
    doubled = [OPTIMIZER, EMBEDDING, "MindEditIPAdapterBridge", SAMPLER, "SaveLatent"]
    ids = {both.id(kind): both.add(kind, **copy.deepcopy(both[kind])) for kind in doubled}
    mllm = second_mllm(both)
    for new in ids.values():
        inputs = both.prompt[new]["inputs"]
        for name, value in inputs.items():
            if isinstance(value, list) and value[0] in ids:
                inputs[name] = [ids[value[0]], value[1]]
        if "mllm" in inputs:
            inputs["mllm"] = [mllm, 0]
    both.second = ids[graph.latent]
    return both


def test_the_loader_says_what_it_computes_in_and_why(server, graph):
    forget(server)  # it speaks when it loads
    node, said = graph.id(LOADER), {}
    for dtype in ("auto", "fp32", "bf16", "fp16"):
        graph[LOADER]["dtype"] = dtype
        said[dtype] = server.run_well(graph.prompt).texts[node][-1]
    assert all("parameters, weights kept in bf16, computed in " in text for text in said.values())
    assert "computed in fp32: a CPU" in said["auto"] and "computed in bf16: as chosen" in said["bf16"]
    assert "computed in fp32: fp16 was chosen, which a CPU" in said["fp16"]


def test_bf16_changes_little_and_fp16_is_fp32_here(server, graph):
    auto = paint(server, graph)
    assert np.array_equal(auto, paint(server, graph, dtype="fp32"))
    assert np.array_equal(auto, paint(server, graph, dtype="fp16"))
    assert not np.array_equal(auto, paint(server, graph, dtype="bf16"))


@pytest.mark.parametrize("adapter", [A, "none"])
def test_a_prompt_of_the_first_version_still_runs(server, graph, adapter):
    """API prompts that know neither dtype nor strength."""
    assert set(graph[LOADER]) == {"model", "adapter"}
    graph[LOADER]["adapter"] = adapter
    assert server.run(graph.prompt).end == "execution_success"
