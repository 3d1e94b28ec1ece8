"""Tests in ComfyUI's own Python, without a server: `tests/host/test_inside_comfyui.py` runs this folder there.

By hand: COMFYUI_INSIDE=~/ComfyUI PYTHON_OF_COMFYUI -m pytest tests/host/inside
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def only_models(folder: Path) -> Iterator[Path]:
    """The host with `folder` as its models folder, and folder keys as at its start."""
    import folder_paths

    from mindedit_core.hosts.comfy_folders import WHAT

    known = {key: value for key, value in folder_paths.folder_names_and_paths.items() if key not in WHAT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "folder_names_and_paths", known)
        patch.setattr(folder_paths, "models_dir", str(folder))
        patch.setattr(folder_paths, "filename_list_cache", {})
        yield folder


@pytest.fixture
def unregistered_models(tmp_path):
    """An empty models folder that our folder keys are yet to be added to."""
    with only_models(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def module_models(tmp_path_factory):
    """A models folder for the tests of a module, ours among its keys."""
    from mindedit_core.hosts.comfy_folders import register

    with only_models(tmp_path_factory.mktemp("models")) as folder:
        register()
        yield folder


@pytest.fixture(autouse=True)
def as_the_host_runs():
    """The host executes every node under inference mode."""
    import torch

    with torch.inference_mode():
        yield
