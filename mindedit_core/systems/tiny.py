"""Random tiny parts of the mini's own classes: for tests and for trying a graph without trained weights.

They paint noise, but through the same code, file layout and metadata as the trained ones. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.adapter_files import save_adapter
from ..backbones.lora import Adapter, LoraPair
from ..backbones.mini_config import mini_config
from ..backbones.mini_tokenizer import build_tokenizer, save_tokenizer
from ..backbones.vision_head import VisionHead
from ..checkpoint import save_checkpoint
from ..model_files import save_model

LATENT_CHANNELS = 16  # the mini's autoencoder: f16, float[B, 16, h, w]
PIXELS = 128
CLIP_SPACE = "tiny-clip"
CLIP_WIDTH = 24  # of the embedding space; unequal to every other width here, so that a mix-up cannot pass
TEXT_WIDTH = 32
IMAGE_TOKENS = 4  # base IP-Adapter
LORA_RANK = 2
WORDS = (
    "make the small red cat at bottom left blue and remove add big tree grass sky background , . : rewrite optimized "
)
WORDS += "instruction region image"


def tiny_parts(seed: int = 0) -> dict[str, Any]:
    """{"mllm", "clip", "autoencoder", "unet", "unet_inpaint": modules in eval mode, "ip_adapter": state dict,
    "mind_edit": Adapter, "tokenizer": PreTrainedTokenizerFast}, float32; the same seed gives the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        parts: dict[str, Any] = {"tokenizer": tokenizer, "mllm": tiny_mllm(tokenizer), "clip": tiny_clip(tokenizer)}
        parts["autoencoder"] = tiny_autoencoder()
        parts["unet"] = tiny_unet(LATENT_CHANNELS)
        parts["unet_inpaint"] = tiny_unet(2 * LATENT_CHANNELS + 1)
        parts["ip_adapter"] = tiny_ip_adapter(parts["unet"])
        parts["mind_edit"] = tiny_mind_edit(parts["mllm"])
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return parts


def tiny_tokenizer():
    """Byte-level BPE over a few words of the world."""
    return build_tokenizer([WORDS], vocab_size=512)


def tiny_mllm(tokenizer: Any, text_layers: int = 2) -> nn.Module:
    """A LLaVA-OneVision of the mini's shape, narrower and shallower: 126 px tiles cut into 3 x 3 patches."""
    from transformers import LlavaOnevisionForConditionalGeneration

    size = {"hidden_size": 36, "intermediate_size": 48, "heads": 3}
    depth = {"text_layers": text_layers, "vision_layers": 1}
    return LlavaOnevisionForConditionalGeneration(mini_config(tokenizer, **size, **depth, patch=42))


def tiny_clip(tokenizer: Any) -> nn.Module:
    """A CLIPModel whose text model is pooled at the tokenizer's end token."""
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": TEXT_WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**size, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    vision = {**size, "image_size": PIXELS, "patch_size": 32}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP_WIDTH))


def tiny_autoencoder() -> nn.Module:
    """An AutoencoderDC of factor 16, the first halving done by its patchifying input."""
    from diffusers import AutoencoderDC

    channels, layers, scales = (8, 8, 16, 16, 32), (0, 1, 1, 1, 1), ((),) * 5
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        scaling_factor=0.5,
    )


def tiny_unet(in_channels: int) -> nn.Module:
    """One level with cross-attention down, in the middle and up, as the mini's."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(32,),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=32,  # as SD1.5, and the only number that ComfyUI's UNetModel knows
    )


def tiny_ip_adapter(unet: nn.Module) -> dict[str, Tensor]:
    """State dict in the layout of h94/IP-Adapter's base models; k is odd and counts `unet.attn_processors` in order."""
    proj = nn.Linear(CLIP_WIDTH, IMAGE_TOKENS * TEXT_WIDTH)
    norm = nn.LayerNorm(TEXT_WIDTH)
    tensors = {f"image_proj.proj.{key}": value for key, value in proj.state_dict().items()}
    tensors |= {f"image_proj.norm.{key}": value for key, value in norm.state_dict().items()}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            for side in ("k", "v"):
                shape = getattr(attention, f"to_{side}").weight.shape
                tensors[f"ip_adapter.{number}.to_{side}_ip.weight"] = 0.2 * torch.randn(shape)
    return tensors


def tiny_mind_edit(mllm: nn.Module) -> Adapter:
    """A random LoRA on q_proj and v_proj of every text layer, and a random VisionHead."""
    text = mllm.config.text_config
    head = VisionHead(text.hidden_size, CLIP_WIDTH, width=40)
    config = {
        "mllm": "tiny",
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "layer": text.num_hidden_layers - 1,
        "clip_space": {"name": CLIP_SPACE, "dim": CLIP_WIDTH},
        "prompt": "mini",
        "rank": LORA_RANK,
        "alpha": float(LORA_RANK),
        "vision_head": head.sizes,
    }
    pairs = {
        name: LoraPair(*_random_pair(module), float(LORA_RANK))
        for name, module in mllm.named_modules()
        if name.startswith("model.language_model.") and name.endswith(("q_proj", "v_proj"))
    }
    return Adapter("tiny", config, pairs, head.eval().requires_grad_(False))


def _random_pair(module: nn.Linear) -> tuple[Tensor, Tensor]:
    return 0.1 * torch.randn(LORA_RANK, module.in_features), 0.1 * torch.randn(module.out_features, LORA_RANK)


def save_tiny(folder: str | Path, seed: int = 0, parts: Mapping[str, Any] | None = None) -> Path:
    """Write tiny parts as a complete folder in the mini's layout, fp16 with metadata, for `load_system(folder)`."""
    folder, parts = Path(folder), parts or tiny_parts(seed)
    provenance = {"recipe": "tiny, random", "seed": seed, "steps": 0, "data": "none"}
    for name in ("mllm", "clip", "autoencoder", "unet", "unet_inpaint"):
        save_model(folder / f"{name}.safetensors", name, parts[name], provenance)
    adapter = parts["mind_edit"]
    save_adapter(
        folder / "mind_edit.safetensors", adapter.pairs, adapter.head, adapter.config, torch.float16, **provenance
    )
    space = {"config": {"clip_space": {"name": CLIP_SPACE, "dim": CLIP_WIDTH}}}
    metadata = {"component": "ip_adapter", "class": "IPAdapter", **space, **provenance}
    save_checkpoint(folder / "ip_adapter.safetensors", parts["ip_adapter"], metadata, torch.float16)
    save_tokenizer(parts["tokenizer"], folder / "tokenizer.json")
    return folder
