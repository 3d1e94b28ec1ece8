"""MIND-Edit (arXiv 2505.19149) at full size: LLaVA-OneVision, Stable Diffusion, an IP-Adapter, from your disk.

A folder is such a system when it holds a system.json; paths in it are relative to the folder:

    {"mllm": "llava-onevision-qwen2-0.5b-ov-hf",     folder as published (config.json, tokenizer, *.safetensors)
     "adapter": "mind_edit.safetensors",             LoRA and VisionHead for that MLLM; may be left out: text only
     "sd": "stable-diffusion-v1-5",                  in diffusers' layout: SD1.5, SDXL, InstructPix2Pix, CosXL-edit
     "sd_inpaint": "stable-diffusion-inpainting",    the same with a 9-channel UNet; one of the two is enough
     "ip_adapter": "ip-adapter_sd15.safetensors",    of h94/IP-Adapter: base, plus or full-face, as VisionHead says;
                                                     may be left out: the insight stays unused
     "clip_space": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",   what that IP-Adapter reads; may be left out
     "settings": {"steps": 25}}                      PaintSettings; may be left out
"""

from __future__ import annotations

from pathlib import Path

from ..backbones.llava_onevision import LlavaOnevision
from ..bridges.ip_adapter import IPAdapter
from ..bridges.text_only import TextOnly
from ..contracts import PaintSettings
from ..designers.self_mllm import SelfMLLM
from ..prompts import token_counter
from . import System
from .description import read_description
from .stable_diffusion import load_painter

REQUIRED = ("mllm", "sd|sd_inpaint")
OPTIONAL = ("system", "adapter", "ip_adapter", "clip_space", "settings")
PATHS = ("mllm", "adapter", "sd", "sd_inpaint", "ip_adapter")


def load(folder: str | Path | None = None) -> System:
    """The system that `folder`/system.json describes, on the CPU in float32."""
    said = read_description(folder, REQUIRED, OPTIONAL, __doc__)
    at = {name: Path(folder) / said[name] for name in PATHS if name in said}
    mllm = LlavaOnevision.from_folder(at["mllm"], adapter=at.get("adapter"))
    adapter = load_ip_adapter(at["ip_adapter"], said.get("clip_space")) if "ip_adapter" in at else None
    painter = load_painter(at.get("sd"), at.get("sd_inpaint"), adapter)
    designer = SelfMLLM(mllm, token_counter(painter.tokenizer))
    settings = PaintSettings().but(**said.get("settings", {}))
    maskless = 1.0 if painter.reads_source() else System.maskless_strength
    return System("mind_edit", mllm, designer, adapter or TextOnly(), painter, settings, maskless_strength=maskless)


def load_ip_adapter(path: Path, clip_space: str | None) -> IPAdapter:
    return IPAdapter.from_file(path, clip_space).eval().requires_grad_(False)
