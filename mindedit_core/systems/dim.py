"""Draw-In-Mind (arXiv 2509.01986) at full size: Qwen2.5-VL, its MLP and SANA1.5, from your disk.

A folder is such a system when it holds a system.json; paths in it are relative to the folder:

    {"system": "dim",
     "mllm": "Qwen2.5-VL-3B-Instruct",         folder as published; without weights in it, the painter's copy is used
     "painter": "DIM-4.6B-Edit/model.safetensors",     as published, or made of it by `mindedit convert dim`
     "vae": "dc-ae-f32c32-sana-1.1-diffusers",         may be left out where the painter's file holds it
     "designer": "self",                       or "verbatim", or {"base_url": "http://...", "model": "..."}
     "share_prefix": true,                     false: the designer sees the picture's own aspect, as published
     "flow_shift": 3.0,                        of the noise levels
     "settings": {"steps": 30}}                PaintSettings; what is left out is as published, but for the framing: the
                                               whole picture in place of its square centre ({"framing": "crop"})

Blueprints are kept in the folder's `blueprints`: the same picture and wish are not designed twice.
Weights' licences are their owners': DIM-4.6B is CC BY-NC 4.0, Qwen2.5-VL-3B Qwen Research, SANA1.5 NVIDIA's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backbones.qwen2_5_vl import Qwen25VL
from ..contracts import PaintSettings
from ..designers import designer as designer_class
from ..designers.cache import CachedDesigner
from . import System
from .description import read_description
from .dim_files import load_painter

REQUIRED = ("system", "mllm", "painter")
OPTIONAL = ("vae", "designer", "share_prefix", "flow_shift", "settings")
SETTINGS = PaintSettings(steps=30, guidance_scale=7.5, seed=233)  # as published


def load(folder: str | Path | None = None) -> System:
    """The system that `folder`/system.json describes, on the CPU, in the dtypes of its files (float16 as float32).

    Raises CheckpointError for what is missing, Misfit for a painter that sees no picture.
    """
    said = read_description(folder, REQUIRED, OPTIONAL, __doc__)
    path = Path(folder) / said["painter"]
    own_weights = any((Path(folder) / said["mllm"]).glob("*.safetensors"))
    mllm = Qwen25VL.from_folder(Path(folder) / said["mllm"], embedded=None if own_weights else path)
    vae = Path(folder) / said["vae"] if "vae" in said else None
    projector, painter = load_painter(path, vae, said.get("flow_shift"))
    settings = SETTINGS.but(**said.get("settings", {}))
    designer = _designer(said, mllm, Path(folder) / "blueprints")
    return System("dim", mllm, designer, projector, painter, settings, maskless_strength=1.0)


def _designer(said: dict[str, Any], mllm: Qwen25VL, kept: Path) -> Any:
    """said: system.json;  kept: folder for its blueprints"""
    who = said.get("designer", "self")
    if who == "verbatim":
        return designer_class("verbatim")()
    own = {"share_prefix": said.get("share_prefix", True)}
    designer = designer_class("blueprint")(mllm, **own) if who == "self" else designer_class("endpoint")(**who)
    return CachedDesigner(designer, kept, designer.identity)
