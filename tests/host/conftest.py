"""One ComfyUI server for all tests of this folder, with the pack installed as a user would."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from mindedit_core.inventory import find_comfyui
from mindedit_core.model_files import DIM_FILES, DIM_FOLDER, MINI_FILES, MINI_FOLDER
from mindedit_core.systems.tiny_dim import save_tiny_dim

HERE = Path(__file__).parent


def neighbour(name: str):
    """A module beside this file: `tests` is no package, as ComfyUI has a top-level `tests` of its own."""
    full = f"mindedit_host_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


def pytest_terminal_summary(terminalreporter):
    plus, comfyui = neighbour("ipadapter_plus"), find_comfyui()
    if comfyui is not None and plus.find(comfyui) is None:
        terminalreporter.line(plus.MISSING, yellow=True)


@pytest.fixture(scope="session")
def ipadapter_plus(comfyui_path, host_facts):
    """The folder of ComfyUI_IPAdapter_plus, which is not part of this repository."""
    plus = neighbour("ipadapter_plus")
    folder = plus.find(comfyui_path)
    host_facts["ipadapter_plus"] = "not found" if folder is None else folder.name
    if folder is None:
        pytest.skip(plus.MISSING)
    return folder


@pytest.fixture(scope="session")
def client():
    """The module comfy_client."""
    return neighbour("comfy_client")


@pytest.fixture(scope="session")
def graph_class():
    """The class Graph."""
    return neighbour("prompt_graph").Graph


@pytest.fixture(scope="session")
def tiny_llava():
    """The module tiny_llava."""
    return neighbour("tiny_llava")


@pytest.fixture
def mini(graph_class, root):
    """The mini's template as an API prompt, four steps: `mini["MindEditEditSampler"]["seed"] = 1`."""
    graph = graph_class.load(root / "workflows" / "api" / "mind_edit_mini.json")
    graph["MindEditEditSampler"]["steps"] = 4
    return graph


@pytest.fixture
def dim(graph_class, root):
    """The template of dim-mini as an API prompt, four steps."""
    path = root / "workflows" / "api" / "dim_mini.json"
    if not path.is_file():
        pytest.skip("dim-mini has no template yet: it comes with its weights")
    graph = graph_class.load(path)
    graph["MindEditEditSampler"]["steps"] = 4
    return graph


@pytest.fixture(scope="session")
def page(server):
    """The server's own frontend in a headless Chromium."""
    chromium = neighbour("chromium")
    path = chromium.find_chromium()
    if path is None:
        pytest.skip("no Chromium found: install one, or set CHROMIUM_PATH")
    with chromium.Chromium(path) as tab:
        yield chromium.Frontend(tab, server.address)


@pytest.fixture(scope="session")
def comfyui_python(comfyui_path, client) -> str:
    python = client.find_python(comfyui_path)
    if python is None:
        pytest.skip(f"found ComfyUI at {comfyui_path} but no Python that can run it: set COMFYUI_PYTHON")
    return python


@pytest.fixture(scope="session")
def mini_folder(root, tiny_folder) -> Path:
    """Weights that the server runs on: MINDEDIT_MINI_DIR, the trained mini, or random tiny parts in its layout."""
    named = os.environ.get("MINDEDIT_MINI_DIR")
    is_trained = all((MINI_FOLDER / name).is_file() for name in MINI_FILES)
    return Path(named) if named else MINI_FOLDER if is_trained else tiny_folder


@pytest.fixture(scope="session")
def dim_folder(tmp_path_factory) -> Path:
    """Weights of dim-mini that the server runs on: MINDEDIT_DIM_DIR, the trained ones, or random tiny parts."""
    named = os.environ.get("MINDEDIT_DIM_DIR")
    is_trained = all((DIM_FOLDER / name).is_file() for name in DIM_FILES)
    return Path(named) if named else DIM_FOLDER if is_trained else save_tiny_dim(tmp_path_factory.mktemp("dim"))


@pytest.fixture(scope="session")
def server(comfyui_path, comfyui_python, root, mini_folder, dim_folder, tmp_path_factory, host_facts, client):
    base = tmp_path_factory.mktemp("comfyui")
    weights = {"mini": mini_folder, "dim": dim_folder}
    with client.ComfyServer(comfyui_path, comfyui_python, root, weights, base) as running:
        system = running.get("/system_stats")["system"]
        host_facts["host_version"] = system["comfyui_version"]
        host_facts["host_torch"] = system["pytorch_version"]
        host_facts["weights"] = "trained" if mini_folder.is_relative_to(root) else mini_folder.name
        yield running
