"""Pictures of the world as dim-mini's Qwen2.5-VL takes them, many at once."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mindedit_core.backbones.qwen_images import Seen, see
from mindedit_core.backbones.qwen_mini import SIDE
from mindedit_core.scenes import Scene, render

PLACES = 9  # tokens of a picture: one for each slot of the world


def seen(batch: list[Scene], config) -> Seen:
    return see(np.stack([render(scene) for scene in batch]), (SIDE, SIDE), config)


def image_features(visual: nn.Module, pictures: Seen) -> Tensor:
    """float[B, 9, D]: what takes the places of the pictures' tokens."""
    output = visual(pictures.pixel_values, grid_thw=pictures.grid)
    merged = getattr(output, "pooler_output", output)  # transformers 4 returns the tokens alone
    return rearrange(merged, "(b p) d -> b p d", p=PLACES)


def see_together(visual: nn.Module) -> nn.Module:
    """A tower that attends to all pictures in one call; its own code calls once for every picture. Returns it.

    For pictures of one size whose layers all have full attention: the same numbers, several times faster on a CPU.
    """
    for block in visual.blocks:
        block.attn.forward = partial(attend_together, block.attn)
    return visual


def attend_together(
    attention: nn.Module, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple, **_
) -> Tensor:
    """hidden_states: float[B * P, D] of B pictures that are P patches each"""
    pictures = len(cu_seqlens) - 1
    query, key, value = rearrange(attention.qkv(hidden_states), "(b p) (qkv h d) -> qkv b h p d", b=pictures, qkv=3,
                                  h=attention.num_heads)
    cos, sin = (rearrange(part, "(b p) d -> b 1 p d", b=pictures).to(query) for part in position_embeddings)
    query, key = (x * cos + torch.cat((-x[..., x.shape[-1] // 2:], x[..., :x.shape[-1] // 2]), -1) * sin
                  for x in (query, key))
    attended = F.scaled_dot_product_attention(query, key, value)
    return attention.proj(rearrange(attended, "b h p d -> (b p) (h d)"))
