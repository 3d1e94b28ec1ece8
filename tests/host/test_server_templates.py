"""Every template, opened in the real frontend: equal to its API prompt, tidy, and nothing missing."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
TITLE = 30  # pixels of a title bar, above a node's position
by_name = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@by_name
def test_the_frontend_converts_the_template_to_its_prompt(page, path):
    page.load(load(path))
    assert page.prompt() == load(path.parent / "api" / path.name)


@by_name
def test_no_node_of_the_template_is_missing_or_red(page, path):
    page.load(load(path))
    assert page.page.run("app.graph.nodes.filter(node => node.has_errors).map(node => node.type)") == []
    assert page.page.run("app.graph.nodes.length") == len(load(path)["nodes"])


@by_name
def test_no_two_nodes_overlap_and_every_node_is_in_its_group(page, path):
    page.load(load(path))
    page.page.run("new Promise(done => setTimeout(done, 300))")  # the canvas grows nodes that are too small
    sizes = "node.flags.collapsed ? [node._collapsed_width ?? 160, 0] : [...node.size]"
    nodes = page.page.run(f"app.graph.nodes.map(node => [node.type, ...node.pos, ...({sizes})])")
    boxes = {f"{kind}@{x},{y}": (x, y - TITLE, x + width, y + height) for kind, x, y, width, height in nodes}
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{one} overlaps {other}"
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in load(path)["groups"])]
    for name, box in boxes.items():
        inside = [g for g in groups if g[0] <= box[0] and g[1] <= box[1] and box[2] <= g[2] and box[3] <= g[3]]
        assert len(inside) == 1 or name.startswith("MarkdownNote"), f"{name} is in {len(inside)} groups"


def test_the_template_of_the_mini_runs_from_the_browser(page, server):
    """Opened and queued by the frontend itself, as the Run button does; nothing comes from the host's cache."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    page.load(load(ROOT / "workflows" / "mind_edit_mini.json"))
    done = len(server.get("/history"))
    page.page.run("app.queuePrompt(0, 1)")
    page.page.wait_for(f"fetch('/history').then(a => a.json()).then(all => Object.keys(all).length > {done})")
    page.page.wait_for("app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.length")
    shown = page.page.run(
        "app.graph.nodes.filter(n => n.type === 'MindEditInstructionOptimizer')"
        ".flatMap(n => n.widgets).filter(w => w.name === '$$node-text-preview').map(w => w.value)"
    )
    assert len(shown) == 1 and shown[0].strip()
    assert page.page.run("app.graph.nodes.find(n => n.type === 'SaveImage').imgs?.length") == 1
