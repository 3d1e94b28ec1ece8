"""The host's own UNetModel in SD1.5's layout, in any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def sd15_unet(
    model_channels: int = 320, channel_mult: Sequence[int] = (1, 2, 4, 4), context_dim: int = 768, in_channels: int = 4
) -> dict[str, Any]:
    """Its 16 cross-attentions stand where SD1.5's do. model_channels * channel_mult: widths of the four levels"""
    return {
        "image_size": 32,
        "in_channels": in_channels,
        "out_channels": 4,
        "model_channels": model_channels,
        "channel_mult": list(channel_mult),
        "num_res_blocks": [2, 2, 2, 2],
        "num_heads": 8,
        "use_spatial_transformer": True,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": context_dim,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "legacy": False,
    }
