"""The tests of `inside/`, run by ComfyUI's own Python in a process of their own, with the host's modules importable."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

FOLDER = "tests/host/inside"
FILES = ("test_adapter_patch", "test_edit_sampler", "test_folders", "test_managed_mllm", "test_mini_parts")


def test_every_file_of_the_folder_is_run(root):
    assert sorted(path.stem for path in (root / FOLDER).glob("test_*.py")) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_inside(name, root, comfyui_path, comfyui_python, host_facts):
    command = [comfyui_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"{FOLDER}/{name}.py"]
    done = run(command, root, comfyui_path)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    host_facts.setdefault("inside", {})[name] = counts
    assert done.returncode == 0 and counts.get("passed"), f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"


def run(command, root, comfyui_path):
    environment = {**os.environ, "COMFYUI_INSIDE": str(comfyui_path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
