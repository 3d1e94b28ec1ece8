"""Picture judge: reads a scene off the pixels and compares it with the wanted one.

In each of the nine slots the nearest rendering among all kinds x colours x sizes x jitters, and empty, is found by
least squares at half resolution; the background is the nearest of all backgrounds. Nothing but pixels is used to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .draw import ground, sprite
from .grammar import Verdict
from .graph import BACKGROUNDS, COLOURS, KINDS, OFFSETS, PIXELS, PLACES, SIZES, SLOT_SIZE, Scene, slot_corner

HALF = SLOT_SIZE // 2
CAP = 0.04  # squared distance at which a pixel counts as covered by a thing, when the background is read


@dataclass(frozen=True)
class Bank:
    """All renderings of one thing in a slot: premultiplied colour, alpha, and what least squares needs of them."""

    looks: tuple[tuple[str, str, str], ...]
    colour: np.ndarray  # float32[T, 3 * 21 * 21]
    alpha: np.ndarray  # float32[T, 21 * 21]
    colour_alpha: np.ndarray  # float32[T, 3 * 21 * 21]
    colour_norm: np.ndarray  # float32[T]


def halved(window: np.ndarray) -> np.ndarray:
    """float[42, 42, c] -> float32[c * 21 * 21], channels first."""
    return window.reshape(HALF, 2, HALF, 2, -1).mean((1, 3)).transpose(2, 0, 1).ravel().astype(np.float32)


@lru_cache(maxsize=1)
def bank() -> Bank:
    """Built once in about a second, 90 MB."""
    looks, rows = [], []
    for size in SIZES:
        margin = (SLOT_SIZE - PIXELS[size]) // 2
        for look in ((size, colour, kind) for colour in COLOURS for kind in KINDS):
            cut = sprite(look[2], look[1], size)
            for dx in OFFSETS[size]:
                for dy in OFFSETS[size]:
                    window = np.zeros((SLOT_SIZE, SLOT_SIZE, 4), np.float32)
                    x, y = margin + dx, margin + dy
                    window[y:y + PIXELS[size], x:x + PIXELS[size]] = cut
                    looks.append(look)
                    rows.append(halved(window))
    cut = np.stack(rows)
    colour, alpha = cut[:, :3 * HALF * HALF], cut[:, 3 * HALF * HALF:]
    return Bank(tuple(looks), colour, alpha, colour * np.tile(alpha, 3), (colour**2).sum(1))


def windows(picture: np.ndarray) -> np.ndarray:
    """All nine slots of float[128, 128, 3]: float32[3 * 21 * 21, 9]."""
    corners = [slot_corner(slot) for slot in range(9)]
    return np.stack([halved(picture[y:y + SLOT_SIZE, x:x + SLOT_SIZE]) for x, y in corners], 1)


def read_background(picture: np.ndarray) -> str:
    """Nearest background, where a pixel's distance is capped so that things do not vote."""
    distance = {name: np.minimum(((picture - ground(name)) ** 2).sum(-1), CAP).sum() for name in BACKGROUNDS}
    return min(distance, key=distance.get)


def read_slots(picture: np.ndarray, background: str) -> list[tuple[str, str, str] | None]:
    """The look of the nearest rendering in each slot, None for empty.

    A rendering is colour + (1 - alpha) * ground, so its distance to the picture differs from that of the empty slot by
    |colour - alpha * ground|^2 - 2 <colour - alpha * ground, picture - ground>; empty wins if none is below zero.
    """
    all_looks, below = bank(), windows(ground(background))
    rest = windows(picture) - below
    squares = (below.reshape(3, -1, 9) ** 2).sum(0)
    shaded = (below * rest).reshape(3, -1, 9).sum(0)
    norm = all_looks.colour_norm[:, None] - 2 * all_looks.colour_alpha @ below + all_looks.alpha**2 @ squares
    gain = norm - 2 * (all_looks.colour @ rest - all_looks.alpha @ shaded)
    best = gain.argmin(0)
    return [all_looks.looks[row] if gain[row, slot] < 0 else None for slot, row in enumerate(best)]


def judge_picture(image: np.ndarray, scene: Scene) -> Verdict:
    """Does the picture show the scene, in all nine slots (empty ones included) and in its background?

    image: uint8[128, 128, 3]. Raises ValueError for another shape or dtype.
    """
    if image.shape != (128, 128, 3) or image.dtype != np.uint8:
        found = f"{image.dtype}{list(image.shape)}"
        raise ValueError(f"a picture of the world is uint8[128, 128, 3], got {found}; resize it")
    picture = image.astype(np.float32) / 255
    background = read_background(picture)
    seen = read_slots(picture, background)
    wanted = [thing.look if thing else None for thing in map(scene.at, range(9))]
    problems = [f"{PLACES[slot]} shows {name_of(a)}, wanted {name_of(b)}"
                for slot, (a, b) in enumerate(zip(seen, wanted, strict=True)) if a != b]
    if background != scene.background:
        problems.insert(0, f"the background is {background}, wanted {scene.background}")
    return Verdict(not problems, tuple(problems))


def name_of(look: tuple[str, str, str] | None) -> str:
    return " ".join(look) if look else "nothing"
