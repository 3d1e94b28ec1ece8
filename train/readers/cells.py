"""Cells of a dataset to arrays: pictures, masks, texts. What cannot be read raises Unfit with a reason for people."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mindedit_core.contracts import Region
from mindedit_core.prompts import check_instruction

ASPECT = 0.02  # sides' ratios that differ by less than this are the same picture in another resolution
DARK = 8  # of 255: a painted pixel that was as close to the paint before says nothing
CHANGED = 0.05  # share of a painted part that the paint must have changed, else it belongs to the photograph
RESIZED = "resolutions differ: all are brought to the smallest"


class Unfit(ValueError):
    """A cell, and with it a row, that cannot be used."""


# Pictures ------------------------------------------------------------------------------------------------------------


def open_picture(role: str, cell: Any, folder: Path | None = None) -> Image.Image:
    """The first frame, upright and decoded to its end.

    cell: {"bytes", "path"} as Hugging Face's Image feature, the bytes of a file, or a path, relative to `folder`
    """
    where = _file(role, cell, folder)
    try:
        with Image.open(where) as picture:
            return ImageOps.exif_transpose(picture).copy()
    except FileNotFoundError:
        raise Unfit(f"{role}: there is no file {where}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unfit(f"{role} cannot be read as a picture: {_reason(error)}") from None


def _file(role: str, cell: Any, folder: Path | None) -> io.BytesIO | Path:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise Unfit(f"{role} is missing")
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    if isinstance(cell, str):
        return (folder or Path()) / cell
    raise Unfit(f"{role} must be a picture or the path of one, got {type(cell).__name__}")


def _reason(error: Exception) -> str:
    """Pillow names the BytesIO it read from; nobody needs its address."""
    return "of no known format" if isinstance(error, UnidentifiedImageError) else str(error)


def to_array(picture: Image.Image) -> np.ndarray:
    """uint8[H, W, 3]: transparent parts lie over white, 16 bits a channel become 8."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.asarray(picture).astype(np.float64)
        grey = grey * (255 / 65535 if grey.max() > 255 else 1.0)
        return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    if has_alpha(picture):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def has_alpha(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "transparency" in picture.info


def read_array(role: str, cell: Any, folder: Path | None = None) -> np.ndarray:
    return to_array(open_picture(role, cell, folder))


# Masks ---------------------------------------------------------------------------------------------------------------


def painted_mask(picture: Image.Image, source: np.ndarray, paint: int, clean: bool = True) -> np.ndarray:
    """bool[H, W] of a mask painted over the photograph: True where it is transparent, else where it has that colour.

    paint: 0 black or 255 white;  source: uint8[H', W', 3], the photograph itself
    clean: leave out connected parts that had that colour before the paint, for a photograph has black and white of its
    own; such a part that touches the painted one cannot be told from it and stays
    """
    hidden = _transparent(picture)
    if hidden is not None:
        return hidden
    painted = to_grey(picture) == paint
    if clean and painted.any():
        before = np.asarray(Image.fromarray(source).resize(picture.size, Image.Resampling.BOX).convert("L"))
        painted = _changed_parts(painted, np.abs(before.astype(int) - paint) > DARK)
    if not painted.any():
        raise Unfit(f"the mask marks nothing: none of its pixels is {'black' if paint == 0 else 'white'}")
    return painted


def _changed_parts(painted: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """The connected parts that the paint changed; all of them if it changed none (a photograph of the night)."""
    parts, count = ndimage.label(painted)
    area = np.bincount(parts.ravel(), minlength=count + 1)
    share = np.bincount(parts.ravel(), weights=changed.ravel(), minlength=count + 1) / np.maximum(area, 1)
    kept = share >= CHANGED
    kept[0] = False
    return kept[parts] if kept.any() else painted


def drawn_mask(picture: Image.Image, paint: int = 255) -> np.ndarray:
    """bool[H, W] of a mask in black and white: True on the paint's side of grey, or, in one colour, transparent."""
    grey = to_grey(picture)
    hidden = _transparent(picture) if grey.min() == grey.max() else None
    mask = hidden if hidden is not None else (grey >= 128) == (paint == 255)
    if not mask.any():
        raise Unfit("the mask marks nothing")
    return mask


def _transparent(picture: Image.Image) -> np.ndarray | None:
    """bool[H, W], or None if nothing is transparent or everything is."""
    if not has_alpha(picture):
        return None
    hidden = np.asarray(picture.convert("RGBA"))[..., 3] < 128
    return hidden if hidden.any() and not hidden.all() else None


def to_grey(picture: Image.Image) -> np.ndarray:
    """uint8[H, W]; HumanEdit's own mask_convert.py goes by way of RGB too."""
    return np.asarray(picture.convert("RGB").convert("L"))


# A record's parts together -------------------------------------------------------------------------------------------


def one_size(**arrays: np.ndarray | None) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """All arrays in the size of the smallest, and a note if that changed any. Raises Unfit if their shapes differ."""
    sizes = {name: array.shape[1::-1] for name, array in arrays.items() if array is not None}
    if len(set(sizes.values())) == 1:
        return arrays, ()
    said = ", ".join(f"{name} {width}x{height}" for name, (width, height) in sizes.items())
    ratios = [width / height for width, height in sizes.values()]
    if max(ratios) > (1 + ASPECT) * min(ratios):
        raise Unfit(f"the pictures are not of one shape: {said}")
    least = min(sizes.values(), key=lambda size: size[0] * size[1])
    return {name: _resized(array, least) for name, array in arrays.items()}, (RESIZED,)


def _resized(array: np.ndarray | None, size: tuple[int, int]) -> np.ndarray | None:
    if array is None or array.shape[1::-1] == size:
        return array
    how = Image.Resampling.NEAREST if array.dtype == np.bool_ else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(array).resize(size, how))


def instruction(cell: Any) -> str:
    """T_raw on one line. Raises Unfit if it is empty or too long."""
    try:
        return check_instruction("" if cell is None else str(cell))
    except ValueError as error:
        raise Unfit(str(error).partition(";")[0]) from None


def optional_text(cell: Any) -> str | None:
    """A caption on one line; None if there is none."""
    return " ".join(str(cell).split()) or None if cell is not None else None


def to_regions(said: Any) -> tuple[Region, ...]:
    """[[x0, y0, x1, y1], "background", {"keep": [x0, y0, x1, y1]}] as contracts. Raises Unfit for anything else.

    >>> to_regions(["background", {"keep": [10, 20, 30, 40]}])
    (Region(kind='background', box=None), Region(kind='keep', box=(10.0, 20.0, 30.0, 40.0)))
    """
    try:
        return tuple(_region(each) for each in said)
    except (TypeError, ValueError) as error:
        raise Unfit(f"regions cannot be read: {error}") from None


def _region(said: Any) -> Region:
    if isinstance(said, str):
        return Region(said)
    ((kind, box),) = said.items() if isinstance(said, Mapping) else [("box", said)]
    return Region(kind, tuple(map(float, box)))


def from_regions(regions: Iterable[Region]) -> list[Any]:
    """As JSON that `to_regions` reads."""
    return [_written(region) for region in regions]


def _written(region: Region) -> Any:
    if region.box is None:
        return region.kind
    return list(region.box) if region.kind == "box" else {region.kind: list(region.box)}


def to_steps(said: Any) -> tuple[str, ...]:
    """["red cat", "night sky"] as a tuple of lines. Raises Unfit for anything else."""
    if not isinstance(said, (list, tuple)) or not all(isinstance(each, str) and each.strip() for each in said):
        raise Unfit(f"steps must be a list of texts, got {said!r}")
    return tuple(" ".join(each.split()) for each in said)
