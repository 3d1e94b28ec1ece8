"""Painters: picture, plan and condition -> picture. One file and one line here make a new one."""

from __future__ import annotations

from typing import Any

from ..registry import lookup

PAINTERS = {"sana": ".sana:SanaPainter", "unet": ".unet:UNetPainter"}


def painter(name: str) -> Any:
    """The painter class called `name`; an unknown name lists the known ones."""
    return lookup(PAINTERS, name, __name__, "painter")
