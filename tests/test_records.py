"""build/slow-tests.json and build/host-tests.json say what ran, on which commit; without a ComfyUI the skip is loud."""

import json
import os
import shutil
import subprocess
import sys

import pytest

TESTS = """
import pytest
@pytest.mark.slow
def test_good(): pass
@pytest.mark.slow
def test_bad(): assert False
@pytest.mark.slow
def test_skipped(): pytest.skip("why not")
@pytest.mark.slow
def test_broken_setup(missing_fixture): pass
def test_quick(): pass
"""
HOST_TESTS = """
def test_host(comfyui_path, host_facts):
    host_facts["host_version"] = "1.2.3"
"""


@pytest.fixture
def project(tmp_path, root):
    """A small repository with our conftest, one commit, and tests of both kinds."""
    for name, text in {
        "tests/test_x.py": TESTS,
        "tests/host/test_h.py": HOST_TESTS,
        ".gitignore": "build\n*.pyc\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(root / "tests" / "conftest.py", tmp_path / "tests")
    shutil.copy(root / "pyproject.toml", tmp_path)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def run(project, root, *words, **environment):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False).stdout


def test_a_slow_run_is_recorded_with_its_commit(project, root):
    out = run(project, root, "-m", "slow", "tests/test_x.py")
    record = json.loads((project / "build" / "slow-tests.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    assert record["commit"] == head.stdout.strip() and record["dirty"] is False
    assert record["counts"] == {"passed": 1, "failed": 2, "skipped": 1}
    assert record["selection"] == "-p no:cacheprovider -m slow tests/test_x.py" and record["duration"] >= 0
    assert "build/slow-tests.json" in out and not (project / "build" / "host-tests.json").exists()


def test_a_changed_tree_is_said(project, root):
    (project / "tests" / "test_x.py").write_text(TESTS + "\n")
    run(project, root, "-m", "slow", "tests/test_x.py")
    assert json.loads((project / "build" / "slow-tests.json").read_text())["dirty"] is True


def test_a_host_run_is_recorded_with_its_facts(project, root):
    host = project / "build" / "ComfyUI"
    (host / "comfy").mkdir(parents=True)
    (host / "main.py").write_text("")
    run(project, root, "tests/host", COMFYUI_PATH=str(host))
    record = json.loads((project / "build" / "host-tests.json").read_text())
    assert record["counts"] == {"passed": 1, "failed": 0, "skipped": 0} and record["host_version"] == "1.2.3"


def test_without_a_comfyui_the_skip_is_loud_and_nothing_is_recorded(project, root):
    out = run(project, root, "tests/host", COMFYUI_PATH=str(project / "nowhere"))
    assert "ALL 1 HOST TESTS SKIPPED: no ComfyUI found: set COMFYUI_PATH" in out
    assert not (project / "build" / "host-tests.json").exists()


def test_a_quick_run_records_nothing(project, root):
    run(project, root, "-m", "not slow", "tests/test_x.py")
    assert not (project / "build").exists()
