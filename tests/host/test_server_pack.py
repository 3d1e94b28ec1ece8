"""The pack as a real ComfyUI sees it: loaded without complaint, cheap, described, and named as published."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MOST_SECONDS = 0.3  # of processor time, beyond what the host has imported anyway


@pytest.fixture(scope="module")
def object_info(server):
    return {name: info for name, info in server.get("/object_info").items() if name.startswith("MindEdit")}


@pytest.fixture(scope="module")
def probe(server):
    """What importing the pack does, measured in a process of its own."""
    command = [server.python, str(HERE / "import_probe.py"), str(server.comfyui), str(server.pack)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=server.base, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_log_has_no_complaint_about_the_pack(server, client):
    lines = [line for line in server.log().splitlines() if client.PACK_FOLDER in line or "MindEdit" in line]
    assert lines, "the pack is not in the list of import times"
    assert "Error while calling comfy_entrypoint" not in server.log()
    assert not [line for line in lines if "FAILED" in line or "Cannot import" in line or "WARNING" in line]


def test_node_ids_sockets_and_widget_order_are_the_published_ones(object_info, client, root):
    published = json.loads((root / "tests" / "golden" / "node_ids.json").read_text(encoding="utf-8"))
    assert client.names_of(object_info) == published


def test_every_input_and_output_has_a_tooltip(object_info):
    for name, info in object_info.items():
        for group in info["input"].values():
            for socket, spec in group.items():
                if group is not info["input"].get("hidden"):
                    assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{socket}"
        assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"]), name
        assert info["description"] and info["category"] == "MindEdit", name


def test_importing_the_pack_is_cheap(probe):
    assert probe["seconds"] < MOST_SECONDS


def test_importing_the_pack_opens_no_socket_and_writes_nothing(probe):
    assert probe["events"] == []


def test_importing_the_pack_allocates_no_tensor(probe):
    assert probe["tensors"] == 0


def test_importing_the_pack_imports_only_itself(probe, client):
    foreign = {name for name in probe["modules"] if client.PACK_FOLDER.replace(".", "_x_") not in name}
    assert not foreign & {"diffusers", "peft", "accelerate", "mindedit_core"}
    assert not probe["sys_path"]


def test_templates_are_listed_with_their_thumbnails(server, client, root):
    templates = server.get("/workflow_templates")[client.PACK_FOLDER]
    assert "mind_edit_mini" in templates
    assert sorted(templates) == sorted(path.stem for path in (root / "workflows").glob("*.json"))
    for name in templates:
        place = f"/api/workflow_templates/{client.PACK_FOLDER}/{name}"
        assert server.get(f"{place}.json")["version"] == 0.4
        assert server.get_bytes(f"{place}.jpg")[:3] == b"\xff\xd8\xff"
