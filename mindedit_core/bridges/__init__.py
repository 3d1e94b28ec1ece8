"""Bridges: insight -> condition. One file and one line here make a new one."""

from __future__ import annotations

from typing import Any

from ..registry import lookup

BRIDGES = {"ip_adapter": ".ip_adapter:IPAdapter", "mlp": ".mlp:MLPProjector", "text_only": ".text_only:TextOnly"}


def bridge(name: str) -> Any:
    """The bridge class called `name`; an unknown name lists the known ones."""
    return lookup(BRIDGES, name, __name__, "bridge")
