"""What every test may ask for (a seeded generator, tiny parts, a ComfyUI, the hosted pack), and the record of a run.

`build/host-tests.json` and `build/slow-tests.json` are written whenever tests of that kind ran:
{"commit", "dirty", "counts": {"passed", "failed", "skipped"}, "duration", "selection", ...facts}.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from mindedit_core.inventory import find_comfyui
from mindedit_core.model_files import MINI_FILES
from mindedit_core.model_files import MINI_FOLDER as WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
NO_HOST = "no ComfyUI found: set COMFYUI_PATH, or stand in its custom_nodes, or have one at ~/ComfyUI"


# Fixtures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh CPU generator with seed 0: no test shares randomness with another."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_parts() -> dict:
    """`systems.tiny.tiny_parts()`, shared by the whole run: copy a part before changing it."""
    from mindedit_core.systems.tiny import tiny_parts

    return tiny_parts()


@pytest.fixture(scope="session")
def tiny_folder(tiny_parts, tmp_path_factory) -> Path:
    """Tiny parts as a folder in the mini's layout."""
    from mindedit_core.systems.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"), parts=tiny_parts)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """Where a ComfyUI is; without one the test is skipped, aloud."""
    path = find_comfyui()
    if path is None:
        pytest.skip(NO_HOST)
    return path


@pytest.fixture(scope="session")
def pack(comfyui_path):
    """The root package, loaded by path under a module name as ComfyUI gives it; the host's modules importable (CPU)."""
    sys.path.insert(0, str(comfyui_path))  # before our root: `import nodes` is the host's, never ours
    from comfy.cli_args import args

    args.cpu = True
    name = str(ROOT).replace(".", "_x_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def host_facts(pytestconfig) -> dict:
    """Facts for build/host-tests.json, such as host_version."""
    return pytestconfig.stash[RECORDS]["host"].facts


# Selection -----------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items):
    host_missing, mini_missing = find_comfyui() is None, not all((WEIGHTS / name).is_file() for name in MINI_FILES)
    for item in items:
        if (ROOT / "tests" / "host") in item.path.parents:
            item.add_marker("host")
        if host_missing and item.get_closest_marker("host"):
            item.add_marker(pytest.mark.skip(reason=NO_HOST))
        if mini_missing and item.get_closest_marker("weights"):
            item.add_marker(pytest.mark.skip(reason=f"the trained mini is not in {WEIGHTS.relative_to(ROOT)}"))


# The record of a run -------------------------------------------------------------------------------------------------


class Record:
    """Outcomes of the tests of one kind."""

    def __init__(self) -> None:
        self.counts = Counter(passed=0, failed=0, skipped=0)
        self.duration = 0.0
        self.facts: dict = {}

    def add(self, report) -> None:
        self.duration += report.duration
        failed_outside = report.when != "call" and report.failed
        skipped_outside = report.when == "setup" and report.skipped
        if report.when == "call" or failed_outside or skipped_outside:
            self.counts[report.outcome] += 1


RECORDS = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[RECORDS] = {"host": Record(), "slow": Record()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    for kind, record in item.config.stash[RECORDS].items():
        if item.get_closest_marker(kind):
            record.add(report)
    return report


def pytest_terminal_summary(terminalreporter, config):
    for kind, record in config.stash[RECORDS].items():
        if record.counts["passed"] + record.counts["failed"]:
            path = write_record(kind, record, config)
            terminalreporter.line(f"{kind} tests: {dict(record.counts)} -> {path.relative_to(ROOT)}")
        elif record.counts["skipped"]:
            reason = NO_HOST if kind == "host" and find_comfyui() is None else "see above"
            terminalreporter.line(f"ALL {record.counts['skipped']} {kind.upper()} TESTS SKIPPED: {reason}", yellow=True)


def write_record(kind: str, record: Record, config) -> Path:
    """build/{kind}-tests.json, naming the commit that was tested and whether the tree differed from it."""
    path = ROOT / "build" / f"{kind}-tests.json"
    path.parent.mkdir(exist_ok=True)
    content = {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "counts": dict(record.counts),
        "duration": round(record.duration, 1),
        "selection": " ".join(config.invocation_params.args),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **record.facts,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
