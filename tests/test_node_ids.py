"""Names that saved workflows depend on equal the committed list, and that list has only ever grown at its ends.

`python tests/golden/make_node_ids.py` writes the list from a running ComfyUI; tests/host compares it with /object_info.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "node_ids.json"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
PROMPTS = sorted((ROOT / "workflows" / "api").glob("*.json"))


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def declared() -> dict:
    """NODES of nodes/sockets.py, which imports nothing of the host."""
    spec = importlib.util.spec_from_file_location("mindedit_sockets", ROOT / "nodes" / "sockets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODES


def older_lists() -> list[dict]:
    """Every version of the list that git knows."""
    path = GOLDEN.relative_to(ROOT).as_posix()
    log = ["git", "-C", str(ROOT), "log", "--format=%H", "--", path]
    commits = subprocess.run(log, capture_output=True, text=True, check=False).stdout.split()
    show = [subprocess.run(["git", "-C", str(ROOT), "show", f"{c}:{path}"], capture_output=True) for c in commits]
    return [json.loads(done.stdout) for done in show if done.returncode == 0]


def names(sockets: list) -> tuple:
    return tuple(socket[0] for socket in sockets)


def test_the_declared_nodes_are_the_published_ones():
    published = load(GOLDEN)
    assert set(declared()) == set(published)
    for node, sockets in declared().items():
        assert sockets.inputs == names(published[node]["inputs"]), node
        assert len(sockets.outputs) == len(published[node]["outputs"]), node


def test_the_list_has_only_ever_been_appended_to():
    now = load(GOLDEN)
    for old in older_lists():
        for node, sockets in old.items():
            for side in ("inputs", "outputs"):
                kept = now[node][side][: len(sockets[side])]
                assert kept == sockets[side], f"{node}.{side}: append at the end, never rename, retype or reorder"


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.name)
def test_every_prompt_names_known_nodes_and_inputs(path):
    published = load(GOLDEN)
    for node in load(path).values():
        if node["class_type"].startswith("MindEdit"):
            known = names(published[node["class_type"]]["inputs"])
            assert set(node["inputs"]) <= set(known), node["class_type"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_template_can_be_resolved_on_another_machine(path):
    template = load(path)
    assert template["version"] == 0.4
    for node in template["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        ours = node["type"].startswith("MindEdit")
        assert node["properties"]["cnr_id"] == ("mindedit" if ours else "comfy-core"), node["type"]
        assert node["properties"]["ver"], node["type"]
        assert not any(isinstance(value, str) and value.startswith("/") for value in node.get("widgets_values", []))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_template_has_a_picture_a_note_and_a_prompt(path):
    types = [node["type"] for node in load(path)["nodes"]]
    assert path.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    assert "MarkdownNote" in types
    assert (path.parent / "api" / path.name).is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_widgets_of_a_template_are_the_published_ones_in_order(path):
    published = load(GOLDEN)
    for node in load(path)["nodes"]:
        if node["type"] in published:
            for socket, name in zip_longest(node["inputs"], ordered_as_drawn(published[node["type"]]["inputs"])):
                assert socket and socket["name"] == name, node["type"]


def ordered_as_drawn(sockets: list) -> list[str]:
    """The frontend lists link sockets first, then those of widgets."""
    widgets = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
    return [s[0] for s in sockets if s[1] not in widgets] + [s[0] for s in sockets if s[1] in widgets]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_model_file_of_a_template_says_where_it_is_found(path):
    """The host offers to download what `properties.models` names: the widget's value, a folder key, an address."""
    for node in load(path)["nodes"]:
        files = {value for value in node.get("widgets_values", []) if str(value).endswith(".safetensors")}
        models = node["properties"].get("models", []) if node["type"] != "MarkdownNote" else []
        assert {model["name"] for model in models} == files, node["type"]
        for model in models:
            file = model["name"].rpartition("/")[2]  # before it, a folder of its own: two files have one name
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{file}")
            assert model["directory"] in {"checkpoints", "diffusion_models", "ipadapter"}
