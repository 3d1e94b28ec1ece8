"""MIND-Edit (arXiv 2505.19149) at full size: LLaVA-OneVision, Stable Diffusion, a base IP-Adapter, from your disk.

A folder is such a system when it holds a system.json; paths in it are relative to the folder:

    {"mllm": "llava-onevision-qwen2-0.5b-ov-hf",     folder as published (config.json, tokenizer, *.safetensors)
     "adapter": "mind_edit.safetensors",             LoRA and VisionHead for that MLLM; may be left out: text only
     "sd": "stable-diffusion-v1-5",                  folder in diffusers' layout: unet, vae, text_encoder, tokenizer
     "sd_inpaint": "stable-diffusion-inpainting",    the same with a 9-channel UNet; one of the two is enough
     "ip_adapter": "ip-adapter_sd15.safetensors",    base IP-Adapter of h94/IP-Adapter
     "clip_space": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",   what that IP-Adapter reads; may be left out
     "settings": {"steps": 25}}                      PaintSettings; may be left out
"""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

from ..backbones.llava_onevision import LlavaOnevision
from ..bridges.ip_adapter import IPAdapter
from ..contracts import PaintSettings
from ..designers.self_mllm import SelfMLLM
from ..model_files import load_published
from ..painters.unet import UNetPainter
from ..prompts import token_counter
from . import System
from .description import read_description

REQUIRED = ("mllm", "sd|sd_inpaint", "ip_adapter")
OPTIONAL = ("adapter", "clip_space", "settings")
PATHS = ("mllm", "adapter", "sd", "sd_inpaint", "ip_adapter")


def load(folder: str | Path | None = None) -> System:
    """The system that `folder`/system.json describes, on the CPU in float32."""
    said = read_description(folder, REQUIRED, OPTIONAL, __doc__)
    at = {name: Path(folder) / said[name] for name in PATHS if name in said}
    mllm = LlavaOnevision.from_folder(at["mllm"], adapter=at.get("adapter"))
    bridge = IPAdapter.from_file(at["ip_adapter"], said.get("clip_space")).eval().requires_grad_(False)
    painter = load_painter(at.get("sd"), at.get("sd_inpaint"), bridge)
    designer = SelfMLLM(mllm, token_counter(painter.tokenizer))
    return System("mind_edit", mllm, designer, bridge, painter, PaintSettings().but(**said.get("settings", {})))


def load_painter(sd: Path | None, sd_inpaint: Path | None, bridge: IPAdapter) -> UNetPainter:
    """Both UNets where both folders are named; VAE, text encoder and tokenizer are those of the first."""
    unets = [place and load_published("UNet2DConditionModel", place / "unet") for place in (sd, sd_inpaint)]
    shared = sd or sd_inpaint
    vae = load_published("AutoencoderKL", shared / "vae")
    text_encoder = load_published("CLIPTextModel", shared / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(shared / "tokenizer", local_files_only=True)
    return UNetPainter(*unets, vae, text_encoder, tokenizer, bridge)
