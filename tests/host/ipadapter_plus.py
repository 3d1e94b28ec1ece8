"""Where ComfyUI_IPAdapter_plus is, for the tests that run beside it. Nothing of it is in this repository (GPL-3.0).

IPADAPTER_PLUS_PATH names a checkout of github.com/cubiq/ComfyUI_IPAdapter_plus; else the custom_nodes folder of the
ComfyUI that the tests use is looked into. Without one those tests are skipped, and the summary of the run says so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

VARIABLE = "IPADAPTER_PLUS_PATH"
MISSING = (
    "ComfyUI_IPAdapter_plus was not found, so nothing was run beside it: clone github.com/cubiq/ComfyUI_IPAdapter_plus "
    f"and set {VARIABLE} to that folder, or put it into the custom_nodes of your ComfyUI"
)


def find(comfyui: Path) -> Path | None:
    """Its folder, or None."""
    named = os.environ.get(VARIABLE)
    places = [Path(named).expanduser()] if named else sorted((comfyui / "custom_nodes").glob("*[iI][pP][aA]dapter*"))
    return next((place for place in places if (place / "IPAdapterPlus.py").is_file()), None)


def load(folder: Path) -> ModuleType:
    """The pack as the host loads it: by path, under a name of its own."""
    name = "mindedit_tests_ipadapter_plus"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
