"""What make_workflows.py asks a user to download: each file has a place of its own, and its loader names it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "host" / "make_workflows.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mindedit_make_workflows", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def downloads(script):
    """(template, node, entry of its models list)"""
    return [
        (name, node, model)
        for name, layout in script.LAYOUTS.items()
        for node in layout.nodes.values()
        for model in node.models
    ]


def test_no_download_replaces_another(downloads):
    places = {}
    for _, _, model in downloads:
        places.setdefault((model["directory"], model["name"]), set()).add(model["url"])
    assert len(places) > 3 and all(len(urls) == 1 for urls in places.values())


def test_a_loader_names_its_file_as_the_host_lists_it(downloads):
    """Without it the frontend offers no download: it matches names with the values of the node's widgets."""
    for name, node, model in downloads:
        assert model["name"] in node.widgets.values(), name


def test_the_note_says_where_every_file_goes(script, downloads):
    for name, _, model in downloads:
        folder, _, file = f"models/{model['directory']}/{model['name']}".rpartition("/")
        assert f"[{file}]({model['url']})" in (text := script.LAYOUTS[name].nodes["note"].widgets["text"]), name
        assert f"| `{folder}` |" in text, name
