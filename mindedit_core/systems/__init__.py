"""Systems: which parts and which files make a paper's system. One file and one line here make a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import MLLM, Bridge, Designer, Painter, PaintSettings
from ..registry import lookup
from .description import system_of

SYSTEMS = {
    "mini": ".mini:load",
    "mind_edit": ".mind_edit:load",
    "dim-mini": ".dim_mini:load",
    "dim": ".dim:load",
}


@dataclass(frozen=True)
class System:
    """Parts that fit. settings: the system's own defaults; provenance: file -> metadata of its weights

    maskless_strength: where the painter starts from the source if there is no mask
    """

    name: str
    mllm: MLLM
    designer: Designer
    bridge: Bridge
    painter: Painter
    settings: PaintSettings = field(default_factory=PaintSettings)
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    maskless_strength: float = 0.85

    def settings_for(self, mask: Tensor | None) -> PaintSettings:
        """The system's defaults for this mask; without one, enough of the source is kept that it can be recognised."""
        if mask is not None:
            return self.settings.but(mask=mask)
        return self.settings.but(strength=min(self.settings.strength, self.maskless_strength))

    def to(self, device: str | torch.device) -> System:
        """The same system with its models there. Pictures may stay where they are."""
        for part in (self.mllm, self.bridge, self.painter):
            models = [part] if isinstance(part, nn.Module) else vars(part).values()
            for model in (model for model in models if isinstance(model, nn.Module)):
                model.to(device)
        return self


def usual_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_system(name_or_folder: str | Path) -> System:
    """A system by its name in SYSTEMS, or from a folder: one with a system.json, or one in a mini's layout.

    Raises ValueError for an unknown name, CheckpointError naming every file that is missing and where it goes.
    """
    name = str(name_or_folder)
    if name in SYSTEMS:
        return lookup(SYSTEMS, name, __name__, "system")()
    folder = Path(name_or_folder)
    if folder.is_dir():
        kind = system_of(folder)
        return lookup(SYSTEMS, kind, __name__, "system")(folder)
    raise ValueError(f"unknown system {name!r}; have {', '.join(sorted(SYSTEMS))}, or give the folder of one")
