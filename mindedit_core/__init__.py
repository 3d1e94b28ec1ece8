"""MindEdit's headless core: `from mindedit_core import load_system, edit`. Nothing heavy is imported until used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "edit": ".pipeline",
    "EditResult": ".pipeline",
    "load_system": ".systems",
    "System": ".systems",
    **dict.fromkeys(
        ("CapturedStates", "Condition", "Insight", "Interrupted", "Misfit", "PaintSettings", "Plan", "Region"),
        ".contracts",
    ),
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"mindedit_core has no {name!r}; public names: {', '.join(sorted(_PUBLIC))}")
    return getattr(import_module(_PUBLIC[name], __name__), name)
