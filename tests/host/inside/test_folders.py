"""Model folders under ComfyUI: found, listed, and where a missing file goes; folders that are damaged say what is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import folder_paths
import pytest
import torch
from tiny_llava import write_llava  # tests/host, which conftest.py puts on the path

from mindedit_core.checkpoint import CheckpointError, save_checkpoint
from mindedit_core.hosts import comfy_folders
from mindedit_core.hosts.comfy_folders import DIM_MINI, MINI, NO_ADAPTER
from mindedit_core.hosts.comfy_mllm_loading import from_paths


@pytest.fixture
def models(unregistered_models):
    return unregistered_models


def put(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_registering_makes_no_folder_and_can_be_repeated(models):
    comfy_folders.register()
    comfy_folders.register()
    assert list(models.iterdir()) == []
    assert folder_paths.get_folder_paths("LLM") == [str(models / "LLM")]
    assert folder_paths.folder_names_and_paths["mindedit"] == ([str(models / "mindedit")], {".safetensors"})
    assert comfy_folders.list_mllms() == [MINI, DIM_MINI]
    assert comfy_folders.list_adapters() == [NO_ADAPTER, MINI]
    assert comfy_folders.list_ip_adapters() == [MINI]


def test_paths_and_extensions_of_others_are_kept(models, tmp_path):
    """extra_model_paths.yaml runs before packs load; IPAdapter_plus registers .bin files too."""
    folder_paths.add_model_folder_path("mindedit", str(tmp_path / "elsewhere"))
    folder_paths.folder_names_and_paths["ipadapter"] = ([str(tmp_path / "theirs")], {".bin", ".safetensors"})
    comfy_folders.register()
    assert folder_paths.get_folder_paths("mindedit") == [str(tmp_path / "elsewhere"), str(models / "mindedit")]
    assert folder_paths.folder_names_and_paths["ipadapter"][1] == {".bin", ".safetensors"}
    put(tmp_path / "elsewhere" / "head.safetensors")
    put(tmp_path / "elsewhere" / "README.md")
    put(tmp_path / "theirs" / "old.bin")
    put(tmp_path / "theirs" / "ip-adapter_sd15.safetensors")
    assert comfy_folders.list_adapters() == [NO_ADAPTER, MINI, "head.safetensors"]
    assert comfy_folders.list_ip_adapters() == [MINI, "ip-adapter_sd15.safetensors"]
    assert comfy_folders.resolve_adapter("head.safetensors") == tmp_path / "elsewhere" / "head.safetensors"


def test_folders_of_known_mllms_are_listed(models):
    comfy_folders.register()
    llm = models / "LLM"
    put(llm / "llava-onevision-0.5b" / "config.json", json.dumps({"model_type": "llava_onevision"}))
    put(llm / "org" / "llava-onevision-7b" / "config.json", json.dumps({"model_type": "llava_onevision"}))
    put(llm / "Florence-2" / "config.json", json.dumps({"model_type": "florence2"}))
    put(llm / "broken" / "config.json", "{")
    put(llm / ".cache" / "config.json", json.dumps({"model_type": "llava_onevision"}))
    assert comfy_folders.list_mllms() == [MINI, DIM_MINI, "llava-onevision-0.5b", "org/llava-onevision-7b"]
    assert comfy_folders.resolve_mllm("org/llava-onevision-7b") == llm / "org" / "llava-onevision-7b"


@pytest.mark.parametrize("choice", ["../../etc", "/etc", "Florence-2", "nothing"])
def test_a_value_that_is_not_in_the_list_is_refused_with_the_place(choice, models):
    comfy_folders.register()
    with pytest.raises(FileNotFoundError, match="is not there; put a LLaVA-OneVision or Qwen2.* folder .* under .*LLM"):
        comfy_folders.resolve_mllm(choice)
    with pytest.raises(FileNotFoundError, match="put an IP-Adapter, e.g. ip-adapter_sd15.safetensors"):
        comfy_folders.resolve_ip_adapter(f"{choice}.safetensors")


def test_a_fingerprint_follows_the_file(models):
    comfy_folders.register()
    path = put(models / "mindedit" / "head.safetensors", "one")
    before = comfy_folders.fingerprint("adapter", "head.safetensors")
    path.write_text("three")
    assert before != comfy_folders.fingerprint("adapter", "head.safetensors") != ""
    assert comfy_folders.fingerprint("adapter", "gone.safetensors") == ""
    assert comfy_folders.fingerprint("mini", MINI) == comfy_folders.fingerprint("mllm", MINI) != ""


def test_an_ip_adapter_is_listed_with_its_kind(models, mini_folder):
    """In the tooltip: the values themselves are the file names, which saved workflows hold."""
    comfy_folders.register()
    folder = models / "ipadapter"
    (folder / "old").mkdir(parents=True)
    shutil.copy(mini_folder / "ip_adapter.safetensors", folder / "a.safetensors")
    face = {"image_proj.norm.weight": torch.zeros(1), "ip_adapter.0.to_q_lora.down.weight": torch.zeros(1)}
    save_checkpoint(folder / "b.safetensors", face, {})
    torch.save({"image_proj": {}}, folder / "old" / "c.bin")
    (folder / "gone.safetensors").symlink_to(folder / "nowhere.safetensors")
    (folder / "gone.bin").symlink_to(folder / "nowhere.bin")
    put(folder / "empty.safetensors")
    put(folder / "empty.bin")
    assert {MINI, "a.safetensors", "b.safetensors"} < set(comfy_folders.list_ip_adapters())
    found = dict(line.split(": ", 1) for line in comfy_folders.found_ip_adapters())
    assert set(found) == {"a.safetensors", "b.safetensors", "empty.safetensors", "old/c.bin"}
    assert "not a complete safetensors file" in found["empty.safetensors"]
    assert found["a.safetensors"].startswith("base, ") and ", reads " in found["a.safetensors"]
    assert "FaceID" in found["b.safetensors"] and "mindedit convert ip-adapter" in found["old/c.bin"]
    for usable in (MINI, "a.safetensors"):
        comfy_folders.require_ip_adapter(usable)
    with pytest.raises(ValueError, match="b.safetensors: .* found a FaceID IP-Adapter"):
        comfy_folders.require_ip_adapter("b.safetensors")


@pytest.mark.parametrize(("kind", "word"), [("ipadapter", "convert ip-adapter "), ("mindedit", "convert ")])
def test_a_pickle_is_refused_with_the_command_to_run(kind, word, models):
    comfy_folders.register()
    (models / kind).mkdir()
    path = models / kind / "old.bin"
    torch.save({"a": torch.zeros(1)}, path)
    resolve = comfy_folders.RESOLVE["ip_adapter" if kind == "ipadapter" else "adapter"]
    with pytest.raises(
        FileNotFoundError, match=f"is a pickle.*`mindedit {word}{path} {path.with_suffix('.safetensors')}`"
    ):
        resolve("old.bin")
    path.write_text("no pickle at all")
    with pytest.raises(FileNotFoundError, match="'old.bin' is not there; put"):
        resolve("old.bin")


# A full-size MLLM's folder, small -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tiny_parts, tmp_path_factory):
    """A LLaVA-OneVision folder in the published layout, bf16 and sharded, as `save_pretrained` writes it."""
    return write_llava(tmp_path_factory.mktemp("published"), tiny_parts)


def test_a_published_folder_is_read_in_its_stored_dtype(published, generator):
    from mindedit_core.hosts.comfy_managed import unmanaged

    mllm = from_paths(published)
    assert {parameter.dtype for parameter in mllm.core.model.parameters()} == {torch.bfloat16}
    assert mllm.dtype == torch.float32 and not mllm.has_head
    assert unmanaged(mllm.patcher.model) == []
    plan = mllm.design(torch.rand(1, 90, 160, 3, generator=generator), "make it blue", max_new_tokens=4)
    assert plan.states.hidden.dtype == torch.float32
    assert mllm.count_tokens("a red cup") == 5  # CLIP's own: start, three words, end


def test_missing_shards_and_truncated_files_are_named(published, tmp_path):
    broken = shutil.copytree(published, tmp_path / "missing")
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of .* shards .* first: {shard.name}"):
        from_paths(broken)
    broken = shutil.copytree(published, tmp_path / "truncated")
    shard = sorted(broken.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        from_paths(broken)


def test_a_truncated_ip_adapter_is_named(mini_folder, tmp_path):
    from mindedit_core.hosts.comfy_adapter import load_adapter

    path = tmp_path / "cut.safetensors"
    path.write_bytes((mini_folder / "ip_adapter.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cut.safetensors .* not a complete safetensors file"):
        load_adapter(path)
    other = save_checkpoint(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(
        CheckpointError, match="other.safetensors: an IP-Adapter of the base, plus or full-face layout is needed, found"
    ):
        load_adapter(other)


# What a start costs ---------------------------------------------------------------------------------------------------


def test_importing_the_hosts_brings_in_nothing_heavy():
    """In a fresh process: no diffusers, no model code, no picture of the world is drawn."""
    hosts = "comfy_adapter, comfy_folders, comfy_managed, comfy_mini, comfy_mllm_loading, comfy_sampler, comfy_text"
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]; sys.path.append(sys.argv[2]);"
        f"from comfy.cli_args import args; args.cpu = True; from mindedit_core.hosts import {hosts};"
        "heavy = ('diffusers', 'mindedit_core.backbones.', 'mindedit_core.bridges.', 'mindedit_core.scenes');"
        "sys.stdout.write(' '.join(name for name in sys.modules if name.startswith(heavy)))"
    )
    host, ours = Path(folder_paths.__file__).parent, comfy_folders.MINI_FOLDER.parents[2]
    done = subprocess.run([sys.executable, "-c", code, host, ours], capture_output=True, text=True, check=True)
    assert done.stdout == ""
