"""SANA and its autoencoder, built from tensors: strictly, and mapped where they are kept as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_strict

EFFICIENT = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
DC_AE: dict[str, Any] = {  # mit-han-lab/dc-ae-f32c32-sana: the autoencoder of every published SANA
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": EFFICIENT,
    "decoder_block_types": EFFICIENT,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
    "scaling_factor": 0.41407,
}


def empty_sana(config: Mapping[str, Any]) -> nn.Module:
    """A SanaTransformer2DModel to be filled: without memory, unless it has a table of positions, which it computes."""
    from diffusers import SanaTransformer2DModel

    device = "meta" if config.get("interpolation_scale") is None else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return SanaTransformer2DModel.from_config(dict(config))


def load_sana(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype | None = torch.float32
) -> nn.Module:
    """The transformer with these tensors, frozen. dtype: None keeps theirs

    Raises CheckpointError naming the first key that is missing, too many, or of another size.
    """
    cast = {key: tensor if dtype is None else tensor.to(dtype) for key, tensor in tensors.items()}
    return load_strict(empty_sana(config), cast, f"{name} (SANA)", assign=True).eval().requires_grad_(False)


def load_dc_ae(tensors: Mapping[str, Tensor], name: str, config: Mapping[str, Any] = DC_AE) -> nn.Module:
    """The AutoencoderDC with these tensors, float32, frozen. Raises CheckpointError if they are another's."""
    from diffusers import AutoencoderDC

    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderDC.from_config(dict(config))
    return load_strict(vae, tensors, f"{name} (DC-AE)").eval().requires_grad_(False)
