"""The mini: MIND-Edit (arXiv 2505.19149) in small, trained by this repository's recipes on its own world.

Every part is of the class that full size uses and goes through the same code: an MLLM with LoRA and VisionHead, a CLIP,
an autoencoder, two UNets (img2img and inpainting), a base IP-Adapter. `model_files.MINI_FILES` names the files.
"""

from __future__ import annotations

from pathlib import Path

from ..backbones.llava_onevision import LlavaOnevision
from ..backbones.mini_tokenizer import load_tokenizer
from ..bridges.ip_adapter import IPAdapter
from ..checkpoint import read_metadata
from ..contracts import PaintSettings
from ..designers.self_mllm import SelfMLLM
from ..model_files import MINI_FILES, MINI_FOLDER, TOKENIZER, load_model, require_mini
from ..painters.unet import UNetPainter
from ..prompts import token_counter
from . import System

SETTINGS = PaintSettings(steps=10, guidance_scale=3.0)


def load(folder: str | Path = MINI_FOLDER) -> System:
    """Everything in memory, on the CPU, in float32 (half precision is a hundred times slower there)."""
    folder = require_mini(Path(folder))
    mllm = LlavaOnevision.from_folder(folder, adapter=folder / "mind_edit.safetensors")
    bridge = IPAdapter.from_file(folder / "ip_adapter.safetensors").eval().requires_grad_(False)
    parts = (load_model(folder / f"{name}.safetensors") for name in ("unet", "unet_inpaint", "autoencoder", "clip"))
    tokenizer = load_tokenizer(folder / TOKENIZER)
    painter = UNetPainter(*parts, tokenizer, bridge)
    designer = SelfMLLM(mllm, token_counter(tokenizer))
    provenance = {name: read_metadata(folder / name) for name in MINI_FILES if name != TOKENIZER}
    return System("mini", mllm, designer, bridge, painter, SETTINGS, provenance)
