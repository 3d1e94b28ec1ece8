"""Random tiny parts of Draw-In-Mind's classes: for tests and for trying a graph without trained weights.

Shapes are narrow and unequal, so that a mix-up cannot pass; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbones.mini_tokenizer import save_tokenizer
from ..backbones.qwen_mini import build_qwen_tokenizer, qwen_mini_config
from ..blueprint import SECTIONS
from ..dim.files import DimParts
from ..model_files import save_model
from ..painters.flow import FlowSchedule
from .dim_files import save_dim
from .tiny import LATENT_CHANNELS, WORDS, tiny_autoencoder

TOKEN_DIM = 40  # what the painter reads
NULL_TOKENS = 160
HEADINGS = f"{' : '.join(SECTIONS)} 1. 2. 3. 4. 5. design: system user assistant You are a helpful assistant."


def tiny_qwen_tokenizer() -> Any:
    """Qwen's special tokens and a few words of the world."""
    return build_qwen_tokenizer([WORDS, HEADINGS], vocab_size=640)


def tiny_qwen(tokenizer: Any) -> nn.Module:
    """A Qwen2.5-VL of 2 layers each, the first vision layer looking through windows of 2 x 2 tokens."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    sizes = {"hidden_size": 48, "intermediate_size": 64, "heads": 3, "text_layers": 2, "vision_layers": 2}
    config = qwen_mini_config(tokenizer, **sizes, full_attention=(1,), window=84)
    return Qwen2_5_VLForConditionalGeneration(config)


def tiny_sana(in_channels: int = 2 * LATENT_CHANNELS) -> nn.Module:
    """A SANA of 2 blocks in the published configuration but for its width: 7 heads of 32, and of 112 where it reads."""
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=7,
        attention_head_dim=32,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=112,
        cross_attention_dim=224,
        caption_channels=TOKEN_DIM,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
    )


def tiny_dim_parts(seed: int = 0, in_channels: int = 2 * LATENT_CHANNELS) -> dict[str, Any]:
    """{"tokenizer", "mllm", "projector", "transformer", "autoencoder", "null_tokens"}; a seed gives one set."""
    from ..bridges.mlp import MLPProjector

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_qwen_tokenizer()
        parts = {"tokenizer": tokenizer, "mllm": tiny_qwen(tokenizer)}
        parts["projector"] = MLPProjector(parts["mllm"].config.text_config.hidden_size, TOKEN_DIM, NULL_TOKENS)
        parts |= {"transformer": tiny_sana(in_channels), "autoencoder": tiny_autoencoder()}
        parts["null_tokens"] = torch.randn(NULL_TOKENS, TOKEN_DIM)
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return parts


def save_tiny_dim(folder: str | Path, seed: int = 0) -> Path:
    """Write tiny parts as a folder in dim-mini's layout, with an autoencoder of its own, for `load_system(folder)`."""
    folder, parts = Path(folder), tiny_dim_parts(seed)
    provenance = {"recipe": "tiny, random", "seed": seed, "steps": 0, "data": "none"}
    for name in ("mllm", "autoencoder"):
        save_model(folder / f"{name}.safetensors", name, parts[name], provenance)
    found = DimParts(parts["projector"], parts["transformer"], parts["null_tokens"], FlowSchedule())
    save_dim(folder / "dim.safetensors", found, torch.float16, **provenance)
    save_tokenizer(parts["tokenizer"], folder / "tokenizer.json")
    return folder
