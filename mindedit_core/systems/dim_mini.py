"""DIM-mini: Draw-In-Mind (arXiv 2509.01986) in small, trained by this repository's recipes on its own world.

A tiny Qwen2.5-VL (frozen), the MLP, a tiny SANA on the mini's autoencoder; all of the classes that full size uses.
"""

from __future__ import annotations

from pathlib import Path

from ..backbones.qwen2_5_vl import Qwen25VL
from ..checkpoint import read_metadata
from ..contracts import PaintSettings
from ..designers.blueprint import BlueprintDesigner
from ..model_files import DIM_FILES, DIM_FOLDER, MINI_FOLDER, TOKENIZER, load_model, require_mini
from ..painters.sana import SanaPainter
from . import System
from .dim_files import load_dim

SETTINGS = PaintSettings(steps=10, guidance_scale=2.0)


def load(folder: str | Path = DIM_FOLDER) -> System:
    """Everything in memory, on the CPU, in float32; the autoencoder is the mini's unless the folder has its own."""
    folder = require_mini(Path(folder), DIM_FILES)
    own = folder / "autoencoder.safetensors"
    vae = load_model(own if own.is_file() else MINI_FOLDER / own.name)
    mllm, parts = Qwen25VL.from_folder(folder), load_dim(folder / "dim.safetensors")
    painter = SanaPainter(parts.transformer, vae, parts.null_tokens, parts.schedule)
    provenance = {name: read_metadata(folder / name) for name in DIM_FILES if name != TOKENIZER}
    designer = BlueprintDesigner(mllm, "mini")
    return System("dim-mini", mllm, designer, parts.projector, painter, SETTINGS, provenance, maskless_strength=1.0)
