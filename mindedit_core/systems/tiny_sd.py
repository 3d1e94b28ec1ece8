"""Random tiny Stable Diffusions of the real classes, saved in diffusers' layout: for tests, nothing is downloaded.

    save_tiny_sd(folder, "sdxl", in_channels=8, scheduler=COSXL)

Blocks, conditioning and configuration are those of SD1.5 and of SDXL, the numbers of channels are not: small, and such
that ComfyUI's UNetModel has a counterpart (32 groups, whole multiples of the first width, 8 heads or heads of 64).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

WIDTH = 32  # of the first level
TEXT, TEXT_2 = 32, 48  # widths of the two text encoders; unequal, so that a mix-up cannot pass
SIZE_NUMBERS = 256  # of each of SDXL's six sizes, fixed in ComfyUI
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "prediction_type": "epsilon"}
COSXL = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 120.0, "sigma_data": 1.0}
COSXL |= {"prediction_type": "v_prediction", "sigma_schedule": "exponential"}
SCALES = {"sd15": 0.18215, "sdxl": 0.13025}  # of the published autoencoders


def tiny_sd_unet(base: str, in_channels: int) -> nn.Module:
    """base: "sd15" or "sdxl". Cross-attention where the published UNet has it; SDXL's is deeper further down."""
    from diffusers import UNet2DConditionModel

    shared = {"in_channels": in_channels, "out_channels": 4, "layers_per_block": 1, "sample_size": 8}
    if base == "sd15":
        return UNet2DConditionModel(
            **shared,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(WIDTH, 2 * WIDTH),
            attention_head_dim=8,
            cross_attention_dim=TEXT,
        )
    return UNet2DConditionModel(
        **shared,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(WIDTH, 2 * WIDTH),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=1,
        use_linear_projection=True,
        cross_attention_dim=TEXT + TEXT_2,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_NUMBERS,
        projection_class_embeddings_input_dim=TEXT_2 + 6 * SIZE_NUMBERS,
    )


def tiny_vae(base: str) -> nn.Module:
    """Eight pixels a latent cell, as the published ones."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=SCALES[base],
    )


def tiny_text_encoder(words: int, width: int, activation: str, projected: bool = False) -> nn.Module:
    """CLIP-L's part (quick_gelu), or with a projection bigG's (gelu)."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=activation,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def save_clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> int:
    """The files of a CLIPTokenizer that knows letters only; returns the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad, "model_max_length": 77}))
    return len(tokens)


def save_tiny_sd(
    folder: str | Path,
    base: str = "sd15",
    in_channels: int = 4,
    scheduler: Mapping[str, Any] = SCHEDULER,
    seed: int = 0,
    **saving: Any,
) -> Path:
    """Write a random Stable Diffusion. saving: options of `save_pretrained`, such as variant="fp16", max_shard_size."""
    folder = Path(folder)
    words = save_clip_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"unet": tiny_sd_unet(base, in_channels), "vae": tiny_vae(base)}
        parts["text_encoder"] = tiny_text_encoder(words, TEXT, "quick_gelu")
        if base == "sdxl":
            save_clip_tokenizer(folder / "tokenizer_2", pad="!")
            parts["text_encoder_2"] = tiny_text_encoder(words, TEXT_2, "gelu", projected=True)
    for name, part in parts.items():
        part = part.half() if saving.get("variant") == "fp16" else part
        part.save_pretrained(folder / name, **saving)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder
