"""What the package says about itself, and that the root imports nothing unless it is hosted."""

import json
import os
import re
import subprocess
import sys

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def lines(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_requirements_equal_the_projects_dependencies(root, project):
    assert lines(root / "requirements.txt") == project["project"]["dependencies"]


def test_dependencies_have_lower_bounds_only_and_leave_the_host_its_own(project):
    for requirement in project["project"]["dependencies"]:
        name, bound = re.fullmatch(r"([a-z-]+)>=([\d.]+)", requirement).groups()
        assert bound and name not in ("torch", "torchvision", "torchaudio", "numpy", "pillow")


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-4x.txt"])
def test_tested_versions_satisfy_the_bounds(root, project, name):
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in lines(root / name))
    groups = project["project"]["optional-dependencies"].values()
    for text in [*project["project"]["dependencies"], *(text for group in groups for text in group)]:
        requirement = Requirement(text)
        if requirement.name in pins:
            assert requirement.specifier.contains(pins[requirement.name]), text
    assert pins["torch"] == "2.13.0" and {"transformers", "diffusers"} <= set(pins)


def test_doctor_knows_the_same_bounds(project):
    from mindedit_core.inventory import FLOORS

    assert project["project"]["dependencies"] == [f"{name}>={least}" for name, least in FLOORS.items()]


def test_the_versions_agree(root, project):
    import mindedit_core

    version = project["project"]["version"]
    assert version == mindedit_core.__version__ and f"## {version}" in (root / "CHANGELOG.md").read_text(
        encoding="utf-8"
    )


def test_comfy_section_is_what_the_registry_reads(project):
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "comfyui" not in project["project"]["name"].lower()


def test_the_licence_is_the_whole_text(root):
    text = (root / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "9. Accepting Warranty or Additional Liability" in text and len(text) > 11_000


def test_continuous_integration_calls_make_test(root):
    run = root / ".ci" / "run"
    assert os.access(run, os.X_OK) and "make test" in run.read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["mindedit", "ComfyUI-MindEdit", "My.Edit 2"])
def test_the_root_imports_nothing_unless_hosted(root, tmp_path, folder):
    code = (
        "import importlib.util, json, sys\n"
        "name = sys.argv[1].replace('.', '_x_')\n"
        "spec = importlib.util.spec_from_file_location(name, sys.argv[1] + '/__init__.py')\n"
        "sys.modules[name] = module = importlib.util.module_from_spec(spec)\n"
        "before = set(sys.modules)\n"
        "spec.loader.exec_module(module)\n"
        "print(json.dumps([sorted(set(sys.modules) - before), hasattr(module, 'comfy_entrypoint')]))"
    )
    place = tmp_path / folder
    place.symlink_to(root)
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], False]


def test_no_machine_path_is_in_the_tracked_files(root):
    pattern = r"(^|[^A-Za-z0-9_.])/(home|Users|work|root|tmp)/[a-z]"
    arguments = ["git", "-C", str(root), "grep", "-nIE", pattern, "--", ".", ":!tests/test_packaging.py"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "module", ["mindedit_core.painters.unet", "nodes.schema", "train.unet", "tests.core.test_main"]
)
def test_a_warning_from_our_own_lines_is_a_failure(module):
    code = compile("import warnings; warnings.warn('ours')", "ours.py", "exec")
    with pytest.raises(UserWarning, match="ours"):
        exec(code, {"__name__": module})  # noqa: S102 -- a module of that name, one line long
