"""The house: imports only go down. Read from the source by AST, so that nothing has to be imported to check it.

0 blueprint, checkpoint, contracts, registry, tensors
1 attention, blueprint_parser, dim/, hf_configs, kinds, losses, metrics, pickles, pictures, prompts, regions, scenes/,
  streamed
2 model_files, backbones/, bridges/, designers/, painters/      3 systems/, pipeline, hosts/
4 __init__, __main__, nodes/, train/ and the root
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("blueprint", "checkpoint", "contracts", "registry", "tensors"),
    (
        *("attention", "blueprint_parser", "dim", "hf_configs", "kinds", "losses", "metrics", "pickles", "pictures"),
        *("prompts", "regions", "scenes", "streamed"),
    ),
    ("model_files", "backbones", "bridges", "designers", "painters"),
    ("systems", "pipeline", "inventory", "hosts"),
    ("__init__", "__main__", "nodes", "train", "root"),
)
FLOOR = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
OURS = ("mindedit_core", "nodes", "train")
HOST = ("comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_version")
HOST += ("app", "execution", "folder_paths", "latent_preview", "node_helpers", "server")
BANNED = {  # floor -> packages that never come in there
    0: ("diffusers", "numpy", "PIL", "transformers", "torchvision"),
    1: ("diffusers", "transformers", "torchvision"),
    2: ("torchvision",),
    3: ("torchvision",),
    4: (),
}


class Import(NamedTuple):
    """One import: who, where, what. level: leading dots."""

    unit: str
    path: Path
    line: int
    level: int
    name: str


# Reading -------------------------------------------------------------------------------------------------------------


def sources(root: Path) -> Iterator[Path]:
    yield from (path for path in [root / "__init__.py"] if path.exists())
    for folder in OURS:
        yield from sorted((root / folder).rglob("*.py"))


def unit_of(parts: tuple[str, ...]) -> str:
    """("mindedit_core", "bridges", "ip_adapter") -> "bridges"; ("nodes", "schema") -> "nodes"; () -> "root"."""
    if not parts:
        return "root"
    if parts[0] != "mindedit_core":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def module_parts(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file, inside functions too, and import_module("a.constant")."""
    unit = unit_of(module_parts(path, root))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(unit, path, node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _import_from(unit, path, node)
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and isinstance(node.args[0], ast.Constant):
            name = node.args[0].value
            yield Import(unit, path, node.lineno, len(name) - len(name.lstrip(".")), name.lstrip("."))


def _import_from(unit: str, path: Path, node: ast.ImportFrom) -> Iterator[Import]:
    """`from . import a, b` names modules, and so may `from .. import a`; `from .a import b` names one."""
    base = node.module or ""
    if node.level and not base:
        yield from (Import(unit, path, node.lineno, node.level, alias.name) for alias in node.names)
    else:
        yield Import(unit, path, node.lineno, node.level, base)


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


# Judging -------------------------------------------------------------------------------------------------------------


def offences(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        unit = unit_of(module_parts(path, root))
        where = path.relative_to(root).as_posix()
        if unit not in FLOOR:
            found.append(f"{where}: no floor: {unit} is on none, see design")
            continue
        for each in imports(path, root):
            found += [f"{where}:{each.line}: {what}" for what in judge(each, root)]
        if unit != "train":
            found += [f"{where}:{line}: sys.path is touched" for line in _sys_path_lines(path)]
    return found


def judge(each: Import, root: Path) -> list[str]:
    if each.level:
        return judge_ours(each, _target(each, root))
    top = each.name.partition(".")[0]
    if top in OURS:
        if each.unit == "train" and top in ("mindedit_core", "train"):
            return judge_ours(each, tuple(each.name.split(".")))
        return [f"absolute: import {each.name}"]
    if top in HOST:
        return judge_host(each, top)
    banned = top in BANNED[FLOOR[each.unit]]
    return [f"floor {FLOOR[each.unit]} imports {top}"] if banned else []


def _target(each: Import, root: Path) -> tuple[str, ...]:
    """Absolute parts of a relative import. `from . import x` in a/__init__.py and in a/b.py both mean a.x."""
    package = each.path.relative_to(root).parent.parts
    base = package[: len(package) - (each.level - 1)]
    return (*base, *filter(None, each.name.split(".")))


def judge_ours(each: Import, target: tuple[str, ...]) -> list[str]:
    mine, theirs = each.unit, unit_of(target)
    if theirs not in FLOOR:  # `from .. import name`: a name of mindedit_core/__init__
        theirs = "__init__"
    if mine == theirs:
        return []
    if (mine, theirs) in {("root", "nodes"), ("train", "__init__")}:
        return []
    if FLOOR[theirs] > FLOOR[mine]:
        return [f"upward: {mine} (floor {FLOOR[mine]}) imports {theirs} (floor {FLOOR[theirs]})"]
    if FLOOR[theirs] == FLOOR[mine]:
        return [f"sideways: {mine} imports {theirs}, both on floor {FLOOR[mine]}"]
    return []


def judge_host(each: Import, top: str) -> list[str]:
    in_host_file = each.unit == "hosts" and each.path.name.startswith("comfy")
    in_node = each.unit == "nodes" and top == "comfy_api"
    return (
        [] if in_host_file or in_node else [f"comfy: {each.unit} imports {each.name}; that belongs in hosts/comfy*.py"]
    )


def _sys_path_lines(path: Path) -> list[int]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    attributes = (node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "path")
    return [node.lineno for node in attributes if getattr(node.value, "id", "") == "sys"]


# The laws ------------------------------------------------------------------------------------------------------------


def test_imports_only_go_down():
    assert offences(ROOT) == []


def test_something_was_read():
    found = [each for path in sources(ROOT) for each in imports(path, ROOT)]
    assert len(found) > 50 and {"contracts", "pipeline", "systems"} <= {each.unit for each in found}


HOUSE = {
    "__init__.py": "import sys\nif 'comfy' in sys.modules:\n    from .nodes import comfy_entrypoint\n",
    "nodes/__init__.py": "from comfy_api.latest import io\nfrom .loader import Loader\n",
    "nodes/loader.py": "def f():\n    from ..mindedit_core.hosts import comfy_ui\n",
    "mindedit_core/__init__.py": "from importlib import import_module\n",
    "mindedit_core/contracts.py": "import torch\n",
    "mindedit_core/metrics.py": "from .contracts import Plan\n",
    "mindedit_core/bridges/a.py": "from ..contracts import Plan\nfrom .b import B\nimport diffusers\n",
    "mindedit_core/bridges/b.py": "from .. import contracts\n",
    "mindedit_core/painters/p.py": "import torch\n",
    "mindedit_core/pipeline.py": "from .bridges import a\n",
    "mindedit_core/systems/mini.py": "from . import System\nfrom ..bridges.a import A\n",
    "mindedit_core/hosts/comfy_ui.py": "import comfy.utils\nimport folder_paths\n",
    "mindedit_core/hosts/plain.py": "import torch\n",
    "mindedit_core/__main__.py": "from .pipeline import edit\n",
    "train/a.py": "from mindedit_core import edit\nfrom mindedit_core.bridges.a import A\nfrom train import b\n",
    "train/b.py": "import accelerate\n",
}


def build(folder: Path, **extra: str) -> Path:
    for name, text in {**HOUSE, **extra}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HOUSE.get(name, "") + text if name in extra else text, encoding="utf-8")
    return folder


def test_a_sound_house_has_no_offence(tmp_path):
    assert offences(build(tmp_path)) == []


@pytest.mark.parametrize(
    ("path", "text", "word"),
    [
        (
            "mindedit_core/metrics.py",
            "from .pipeline import edit",
            "upward: metrics (floor 1) imports pipeline (floor 3)",
        ),
        ("mindedit_core/bridges/a.py", "def f():\n    from ..systems.mini import load", "upward: bridges"),
        ("mindedit_core/pipeline.py", "from ..nodes.loader import Loader", "upward: pipeline"),
        ("mindedit_core/contracts.py", "from . import edit", "upward: contracts"),
        ("mindedit_core/hosts/plain.py", "import_module('..__main__', __package__)", "upward: hosts"),
        ("mindedit_core/bridges/a.py", "from ..painters.p import P", "sideways: bridges imports painters"),
        ("mindedit_core/contracts.py", "from .tensors import to_rgb", "sideways: contracts imports tensors"),
        ("mindedit_core/hosts/comfy_ui.py", "from ..systems import mini", "sideways: hosts imports systems"),
        ("nodes/loader.py", "from ..train.a import main", "sideways: nodes imports train"),
        ("mindedit_core/__main__.py", "from ..nodes import loader", "sideways: __main__ imports nodes"),
        ("nodes/loader.py", "from mindedit_core.contracts import Plan", "absolute: import mindedit_core.contracts"),
        ("nodes/loader.py", "import nodes", "absolute: import nodes"),
        ("mindedit_core/pipeline.py", "import mindedit_core.bridges", "absolute: import mindedit_core.bridges"),
        ("train/a.py", "from nodes.loader import Loader", "absolute: import nodes.loader"),
        ("mindedit_core/bridges/a.py", "import comfy.model_patcher", "comfy: bridges imports comfy.model_patcher"),
        ("mindedit_core/hosts/plain.py", "from comfy import utils", "comfy: hosts imports comfy"),
        ("nodes/loader.py", "import folder_paths", "comfy: nodes imports folder_paths"),
        ("train/a.py", "import comfy", "comfy: train imports comfy"),
        ("__init__.py", "import folder_paths", "comfy: root imports folder_paths"),
        ("mindedit_core/contracts.py", "import numpy", "floor 0 imports numpy"),
        ("mindedit_core/metrics.py", "import diffusers", "floor 1 imports diffusers"),
        ("mindedit_core/bridges/a.py", "from torchvision import io", "floor 2 imports torchvision"),
        ("nodes/loader.py", "import sys\nsys.path.insert(0, '.')", "sys.path is touched"),
        ("mindedit_core/utils.py", "import torch", "no floor: utils"),
    ],
)
def test_a_seeded_offence_is_found(tmp_path, path, text, word):
    found = offences(build(tmp_path, **{path: text + "\n"}))
    assert len(found) == 1 and found[0].startswith(path) and word in found[0]
