"""Picture files to tensors and back; what had to be done to them is said in notes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .tensors import check_shape, to_rgb

GAP = 4  # pixels between the panels of `side_by_side`


def read_picture(path: str | Path) -> tuple[Tensor, list[str]]:
    """float[1, H, W, 3] in 0..1, upright, and notes. Raises ValueError for what is not a picture."""
    picture, frames = _opened(path)
    notes = [f"{path} has {frames} frames: only the first is edited"] if frames > 1 else []
    if not _has_alpha(picture):
        return _tensor(picture.convert("RGB")), notes
    image = _tensor(picture.convert("RGBA"))
    if bool((image[..., 3] < 1).any()):
        notes.append(f"{path} has transparent parts: they were laid over white")
    return to_rgb(image), notes


def read_mask(path: str | Path) -> tuple[Tensor, list[str]]:
    """float[1, H, W] in 0..1, 1 where the picture may change, and notes. White is 1.

    In a file of one colour the transparent part is the mask, as ComfyUI's mask editor saves it.
    """
    picture, _ = _opened(path)
    grey = _tensor(picture.convert("L"))[..., 0]
    if _has_alpha(picture):
        alpha = _tensor(picture.convert("RGBA"))[..., 3]
        if grey.min() == grey.max() and alpha.min() < alpha.max():
            return 1.0 - alpha, [f"{path} is of one colour: its transparent part is taken as the mask"]
    return grey, []


def save_picture(image: Tensor, path: str | Path) -> Path:
    """Write float[H, W, 3] or float[1, H, W, 3] in 0..1; the file is complete or not there."""
    path, kind = Path(path), picture_format(path)
    picture = to_pil(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        picture.save(part, format=kind)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def picture_format(path: str | Path) -> str:
    """The format that the file's ending asks for, such as "PNG". Raises ValueError if it asks for none."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"cannot write a picture to {path}: its ending must be one of .png, .jpg, .webp, ...")
    return kind


def to_pil(image: Tensor) -> Image.Image:
    """float[H, W, 3] or float[1, H, W, 3] in 0..1 -> an RGB picture, rounded to the nearest of 256 steps."""
    return Image.fromarray(to_uint8(image[0] if image.ndim == 4 else image))


def to_uint8(image: Tensor) -> np.ndarray:
    """float[H, W, 3] in 0..1 -> uint8[H, W, 3]."""
    check_shape("image", image, "h w c", c=3)
    return (image.detach().float().clamp(0.0, 1.0) * 255.0).round().to("cpu", torch.uint8).numpy()


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Pictures float[1, H_i, W_i, 3], left to right with white gaps, white below a lower one: float[1, H, W, 3]."""
    height = max(image.shape[1] for image in images)
    gap = images[0].new_ones(1, height, GAP, 3)
    whole = [F.pad(image.to(gap), (0, 0, 0, 0, 0, height - image.shape[1]), value=1.0) for image in images]
    panels = [panel for image in whole for panel in (image, gap)]
    return torch.cat(panels[:-1], dim=2)


def _opened(path: str | Path) -> tuple[Image.Image, int]:
    """The first frame, upright, and the number of frames; the file is closed again."""
    try:
        with Image.open(path) as picture:
            frames = getattr(picture, "n_frames", 1)
            return ImageOps.exif_transpose(picture).copy(), frames
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); save it again as PNG or JPEG") from error


def _has_alpha(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "transparency" in picture.info


def _tensor(picture: Image.Image) -> Tensor:
    """float[1, H, W, C] in 0..1."""
    values = torch.from_numpy(np.array(picture, dtype=np.uint8)).float() / 255.0
    return (values.unsqueeze(-1) if values.ndim == 2 else values).unsqueeze(0)
