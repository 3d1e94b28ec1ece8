"""Pictures of the world as the mini's SigLIP tower takes them."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from mindedit_core.backbones.mini_config import TILE
from mindedit_core.scenes import Scene, render


def tile(image: np.ndarray) -> np.ndarray:
    """uint8[128, 128, 3] -> uint8[126, 126, 3], bicubic as LLaVA-OneVision's image processor does it."""
    return np.asarray(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC))


def tiles(batch: list[Scene]) -> Tensor:
    """float[B, 3, 126, 126] in -1..1."""
    images = np.stack([tile(render(scene)) for scene in batch])
    return rearrange(torch.from_numpy(images).float() / 127.5 - 1, "b h w c -> b c h w")
