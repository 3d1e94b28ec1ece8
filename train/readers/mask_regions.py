"""What a painted mask says in the words of T_opt's region lines: boxes of its parts, or the whole background."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mindedit_core.contracts import MAX_COORDINATE, Region

MOST = 0.9  # share of the picture from which on a mask means everything around the objects
LEAST = 0.1  # share of the mask below which a part is a slip of the brush
PARTS = 3  # boxes, the largest parts first


def mask_regions(mask: np.ndarray) -> tuple[Region, ...]:
    """mask: bool[H, W], True where the edit is. Returns boxes in thousandths, the largest part first.

    >>> mask = np.zeros((10, 20), bool)
    >>> mask[2:5, 4:10] = True
    >>> mask_regions(mask)
    (Region(kind='box', box=(200.0, 200.0, 500.0, 500.0)),)
    """
    if mask.mean() >= MOST:
        return (Region("background"),)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    largest = [number for number in np.argsort(-areas, kind="stable")[:PARTS] if areas[number] >= LEAST * areas.sum()]
    places = ndimage.find_objects(parts)
    return tuple(_box(places[number], *mask.shape) for number in largest)


def _box(place: tuple[slice, slice], height: int, width: int) -> Region:
    rows, columns = place
    edges = (columns.start / width, rows.start / height, columns.stop / width, rows.stop / height)
    return Region("box", tuple(round(MAX_COORDINATE * edge, 1) for edge in edges))
