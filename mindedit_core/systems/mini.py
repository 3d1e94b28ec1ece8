"""The mini: MIND-Edit (arXiv 2505.19149) in small, trained by this repository's recipes on its own world.

Every part is of the same class as at full size and goes through the same code. `weights/mini/` holds FILES, all fp16:
an MLLM with LoRA and VisionHead, a CLIP, one autoencoder, two UNets (img2img and inpainting), one base IP-Adapter.
"""

from __future__ import annotations

from pathlib import Path

from ..backbones.llava_onevision import LlavaOnevision
from ..backbones.mini_tokenizer import load_tokenizer
from ..bridges.ip_adapter import IPAdapter
from ..checkpoint import CheckpointError, read_metadata
from ..contracts import PaintSettings
from ..designers.self_mllm import SelfMLLM
from ..model_files import load_model
from ..painters.unet import UNetPainter
from . import System

FOLDER = Path(__file__).resolve().parents[1] / "weights" / "mini"
MODELS = ("mllm", "clip", "autoencoder", "unet", "unet_inpaint")
ADAPTERS = ("mind_edit", "ip_adapter")
TOKENIZER = "tokenizer.json"
FILES = (*(f"{name}.safetensors" for name in (*MODELS, *ADAPTERS)), TOKENIZER)
SETTINGS = PaintSettings(steps=20, guidance_scale=3.0)


def missing_files(folder: Path = FOLDER) -> list[str]:
    return [name for name in FILES if not (folder / name).is_file()]


def load(folder: str | Path = FOLDER) -> System:
    """Everything in memory, ready on the CPU in float32 (half precision is a hundred times slower there)."""
    folder = Path(folder)
    if missing := missing_files(folder):
        raise CheckpointError(
            f"a mini needs {len(FILES)} files in {folder}, missing: {', '.join(missing)}; "
            "fetch them from the repository (they are tracked by git), or train them with the recipes in train/"
        )
    models = {name: load_model(folder / f"{name}.safetensors") for name in MODELS}
    tokenizer = load_tokenizer(folder / TOKENIZER)
    adapter = folder / "mind_edit.safetensors"
    mllm = LlavaOnevision(models["mllm"], tokenizer, template="mini", adapter=adapter, mllm_id="mini")
    bridge = IPAdapter.from_file(folder / "ip_adapter.safetensors").eval().requires_grad_(False)
    unets = models["unet"], models["unet_inpaint"]
    painter = UNetPainter(*unets, models["autoencoder"], models["clip"], tokenizer, bridge)
    provenance = {name: read_metadata(folder / name) for name in FILES if name != TOKENIZER}
    return System("mini", mllm, SelfMLLM(mllm), bridge, painter, SETTINGS, provenance)
