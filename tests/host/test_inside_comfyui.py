"""The tests of `inside/`, run by ComfyUI's own Python in a process of their own, with the host's modules importable."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import skimage

FOLDER = "tests/host/inside"


def run(marks, root, comfyui_path, python):
    """What pytest printed, and its counts by outcome."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, FOLDER]
    environment = {**os.environ, "COMFYUI_INSIDE": str(comfyui_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("MINDEDIT_PHOTO", str(Path(skimage.__file__).parent / "data" / "coffee.png"))
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    assert done.returncode == 0 and counts.get("passed"), f"{done.stdout[-12000:]}\n{done.stderr[-2000:]}"
    return counts


def test_inside(root, comfyui_path, comfyui_python, host_facts):
    host_facts["inside"] = run("not slow", root, comfyui_path, comfyui_python)


@pytest.mark.slow
def test_inside_slow(root, comfyui_path, comfyui_python, host_facts):
    host_facts["inside_slow"] = run("slow", root, comfyui_path, comfyui_python)
