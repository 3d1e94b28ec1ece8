"""Tests in ComfyUI's own Python, without a server: `tests/host/test_inside_comfyui.py` runs this folder there.

By hand: COMFYUI_INSIDE=~/ComfyUI PYTHON_OF_COMFYUI -m pytest tests/host/inside
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HOST = os.environ.get("COMFYUI_INSIDE")
collect_ignore_glob = [] if HOST else ["test_*.py"]

if HOST:
    sys.path.insert(0, str(Path(HOST).expanduser()))  # before our root: `import nodes` is the host's
    sys.path.append(str(Path(__file__).parents[1]))  # what these tests share with those beside this folder
    from comfy.cli_args import args

    args.cpu = True


@pytest.fixture(scope="session", autouse=True)
def mini_folder(request):
    """The built-in mini is a tiny one, random parts in the same files, unless the environment names another."""
    from mindedit_core.hosts.comfy_folders import MINI_VARIABLE, register

    register()
    with pytest.MonkeyPatch.context() as patch:
        if MINI_VARIABLE not in os.environ:
            patch.setenv(MINI_VARIABLE, str(request.getfixturevalue("tiny_folder")))
        yield Path(os.environ[MINI_VARIABLE])


@pytest.fixture(autouse=True)
def as_the_host_runs():
    """The host executes every node under inference mode."""
    import torch

    with torch.inference_mode():
        yield
