"""How LLaVA-OneVision sees a picture: a base view and anyres tiles, and how many tokens they become.

transformers' image processor does the pixels; its `LlavaOnevisionProcessor` is not used, because it needs torchvision
(for videos). The tokens are counted here as the model packs them: base view, tiles without their padding, one newline
a row.
H W picture size, T tile size in pixels, P views (base and tiles)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from ..tensors import check_shape, to_rgb

MEAN = STD = 0.5  # SigLIP
SLIVER = 16  # longer side over shorter side; beyond it tiles would be a pixel high, which no image processor foresees


def image_processor_class() -> type:
    """The image processor that needs Pillow only; its name ends in Pil in transformers 5, and does not in 4."""
    try:
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil as Processor,
        )
    except ImportError:
        from transformers.models.llava_onevision.image_processing_llava_onevision import (
            LlavaOnevisionImageProcessor as Processor,
        )
    return Processor


def image_processor_for(config: Any) -> Any:
    """An image processor with the sizes of a model's config, for models that come without a processor file."""
    tile = config.vision_config.image_size
    return image_processor_class()(
        size={"height": tile, "width": tile},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        image_grid_pinpoints=config.image_grid_pinpoints,
    )


def to_pixels(image: Tensor | np.ndarray) -> np.ndarray:
    """A picture float[B, H, W, C] in 0..1, or uint8 already, as uint8[B, H, W, 3]; alpha is laid over white."""
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image if image.flags.writeable else image.copy())
    check_shape("image", image, "b h w c")
    if image.dtype == torch.uint8:
        return image.cpu().numpy()
    rgb = to_rgb(image.detach().float().cpu())
    return (rgb.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()


def shrink(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """uint8[H, W, 3] with the longer side at most `max_side`; untouched if it is already, or if there is no limit."""
    height, width = pixels.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def thicken(pixels: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3]: a picture more than 16 times as long as it is wide is stretched to that; others are untouched."""
    height, width = pixels.shape[:2]
    least = -(-max(height, width) // SLIVER)
    if min(height, width) >= least:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((max(width, least), max(height, least)), Image.Resampling.NEAREST))


def views(pictures: Sequence[np.ndarray], processor: Any) -> dict[str, Tensor]:
    """{"pixel_values": float[B, P, 3, T, T], "image_sizes": int[B, 2]} of pictures uint8[H, W, 3], sizes may differ."""
    # the layout is said, because a picture 1 or 3 pixels high could be read either way
    features = processor.preprocess(list(pictures), return_tensors="pt", input_data_format="channels_last")
    return {"pixel_values": features["pixel_values"], "image_sizes": features["image_sizes"]}


def has_one_tile(config: Any) -> bool:
    """Whether the model has a single tile, a square one: a square picture is then its own base view."""
    tile = config.vision_config.image_size
    return [list(size) for size in config.image_grid_pinpoints] == [[tile, tile]]


def single_view(pixels: np.ndarray, config: Any) -> Tensor:
    """float[B, 3, T, T]: what `views` gives as base view and as tile, computed once. ValueError if they differ."""
    if not has_one_tile(config) or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(
            f"one view for base and tile needs square pictures and a model with one tile, got {pixels.shape[1:3]} and "
            f"tiles {config.image_grid_pinpoints}; give training_batch the images themselves"
        )
    tile = config.vision_config.image_size
    pictures = [Image.fromarray(picture).resize((tile, tile), Image.Resampling.BICUBIC) for picture in pixels]
    scaled = torch.from_numpy(np.stack(pictures)).float() / 255.0
    return rearrange((scaled - MEAN) / STD, "b h w c -> b c h w").contiguous()


def image_tokens(size: tuple[int, int], config: Any) -> int:
    """How many tokens a picture of `size` (H, W) becomes."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    rows, columns = _unpadded(size, config, side)
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * side**2))
    if ratio > 1.1:  # more patches than `most` tiles have: the model shrinks the grid
        rows, columns = int(rows // ratio), int(columns // ratio)
    return side * side + rows * (columns + 1)


def _unpadded(size: tuple[int, int], config: Any, side: int) -> tuple[int, int]:
    """Rows and columns of patches that the picture covers in its grid of tiles, as `unpad_image` cuts them."""
    height, width = size
    grid_height, grid_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows = grid_height // config.vision_config.image_size * side
    columns = grid_width // config.vision_config.image_size * side
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    return rows, columns
