"""Systems: which parts, sizes and files make a paper's system. One file and one line here make a new one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contracts import Bridge, Designer, Misfit, MLLM, Painter, require_fit
from ..registry import lookup

SYSTEMS = {"mini": ".mini:load", "mind_edit": ".mind_edit:load"}
