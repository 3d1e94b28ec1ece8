"""Draws the world with vector primitives, eight times too large, and shrinks the result: pictures, sprites, masks.

Version 1 is frozen: its pictures are pinned by hashes in the tests; a new look needs a new version.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .graph import PICTURE_SIZE, PIXELS, Scene, Thing, box_of, slot_corner

SCALE = 8  # supersampling
INK = (38, 34, 48)
PAINT = {"red": (222, 48, 52), "orange": (245, 140, 26), "yellow": (250, 218, 52), "green": (44, 164, 76),
         "blue": (48, 108, 224), "purple": (138, 66, 182), "pink": (250, 146, 190), "white": (246, 244, 238)}


class Pen:
    """Draws filled, ink-outlined shapes given in unit coordinates (0..1, y down) on a square canvas."""

    def __init__(self, pixels: int, colour: tuple[int, int, int]):
        self.edge = pixels * SCALE
        self.canvas = Image.new("RGBA", (self.edge, self.edge), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.canvas)
        self.stroke = max(SCALE, round(0.045 * self.edge))
        self.colour = colour
        self.dark = tuple(int(value * 0.68) for value in colour)
        self.light = tuple(int(value + (255 - value) * 0.55) for value in colour)

    def scaled(self, points):
        return [tuple(value * (self.edge - 1) for value in point) for point in points]

    def polygon(self, *points, fill=None):
        corners = self.scaled(points)
        self.draw.polygon(corners, fill=fill or self.colour)
        self.draw.line([*corners, *corners[:2]], fill=INK, width=self.stroke, joint="curve")

    def ellipse(self, x0, y0, x1, y1, fill=None):
        self.draw.ellipse(self.scaled([(x0, y0), (x1, y1)]), fill=fill or self.colour, outline=INK, width=self.stroke)

    def box(self, x0, y0, x1, y1, radius=0.0, fill=None):
        self.draw.rounded_rectangle(self.scaled([(x0, y0), (x1, y1)]), radius * self.edge, fill=fill or self.colour,
                                    outline=INK, width=self.stroke)

    def dot(self, x, y, radius, fill=INK):
        self.draw.ellipse(self.scaled([(x - radius, y - radius), (x + radius, y + radius)]), fill=fill)

    def line(self, *points, fill=INK, width=1.0):
        self.draw.line(self.scaled(points), fill=fill, width=round(self.stroke * width), joint="curve")

    def arc(self, x0, y0, x1, y1, start, end, width=1.0):
        self.draw.arc(self.scaled([(x0, y0), (x1, y1)]), start, end, fill=INK, width=round(self.stroke * width))


def circle(pen):
    pen.ellipse(0.03, 0.03, 0.97, 0.97)
    pen.dot(0.34, 0.32, 0.1, pen.light)


def square(pen):
    pen.box(0.05, 0.05, 0.95, 0.95, 0.04)
    pen.box(0.27, 0.27, 0.73, 0.73, 0.02, pen.light)


def triangle(pen):
    pen.polygon((0.5, 0.04), (0.97, 0.94), (0.03, 0.94))


def star(pen):
    angles = [-np.pi / 2 + turn * np.pi / 5 for turn in range(10)]
    reach = [0.49 if turn % 2 == 0 else 0.21 for turn in range(10)]
    corners = zip(angles, reach, strict=True)
    pen.polygon(*[(0.5 + r * float(np.cos(a)), 0.53 + r * float(np.sin(a))) for a, r in corners])


def heart(pen):
    turns = [2 * np.pi * step / 60 for step in range(60)]
    x = [0.5 + 0.47 * float(np.sin(t)) ** 3 for t in turns]
    y = [0.46 - 0.029 * float(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) for t in turns]
    pen.polygon(*zip(x, y, strict=True))
    pen.dot(0.3, 0.3, 0.07, pen.light)


def tree(pen):
    pen.box(0.42, 0.62, 0.58, 0.98, fill=(122, 84, 52))
    pen.polygon((0.5, 0.32), (0.86, 0.78), (0.14, 0.78))
    pen.polygon((0.5, 0.02), (0.78, 0.48), (0.22, 0.48), fill=pen.light)


def house(pen):
    pen.box(0.14, 0.44, 0.86, 0.97, fill=(236, 222, 196))
    pen.polygon((0.5, 0.03), (0.98, 0.48), (0.02, 0.48))
    pen.box(0.4, 0.64, 0.6, 0.97, fill=pen.dark)


def car(pen):
    pen.polygon((0.2, 0.5), (0.32, 0.2), (0.72, 0.2), (0.86, 0.5), fill=(198, 226, 244))
    pen.box(0.02, 0.45, 0.98, 0.76, 0.1)
    for x in (0.26, 0.74):
        pen.ellipse(x - 0.14, 0.62, x + 0.14, 0.9, fill=(92, 92, 104))


def fish(pen):
    pen.polygon((0.66, 0.5), (0.98, 0.22), (0.98, 0.78), fill=pen.dark)
    pen.ellipse(0.02, 0.2, 0.76, 0.8)
    pen.dot(0.22, 0.42, 0.06)
    pen.line((0.45, 0.34), (0.55, 0.5), (0.45, 0.66), fill=pen.dark)


def cat(pen):
    pen.polygon((0.1, 0.44), (0.12, 0.03), (0.44, 0.24))
    pen.polygon((0.9, 0.44), (0.88, 0.03), (0.56, 0.24))
    pen.ellipse(0.05, 0.18, 0.95, 0.96)
    for x in (0.32, 0.68):
        pen.dot(x, 0.5, 0.075)
    pen.polygon((0.44, 0.64), (0.56, 0.64), (0.5, 0.71), fill=pen.dark)
    pen.line((0.2, 0.7), (0.36, 0.7), width=0.6)
    pen.line((0.64, 0.7), (0.8, 0.7), width=0.6)


def cup(pen):
    pen.ellipse(0.6, 0.34, 0.97, 0.74, fill=pen.dark)
    pen.polygon((0.06, 0.22), (0.78, 0.22), (0.68, 0.95), (0.16, 0.95))
    pen.ellipse(0.05, 0.12, 0.79, 0.34, fill=(120, 78, 50))


def flower(pen):
    pen.line((0.5, 0.5), (0.5, 0.98), fill=(40, 120, 60), width=2.2)
    for turn in range(6):
        x, y = 0.5 + 0.24 * float(np.cos(turn * np.pi / 3)), 0.36 + 0.24 * float(np.sin(turn * np.pi / 3))
        pen.ellipse(x - 0.15, y - 0.15, x + 0.15, y + 0.15)
    centre = (250, 218, 52) if pen.colour != PAINT["yellow"] else (196, 110, 40)
    pen.ellipse(0.37, 0.23, 0.63, 0.49, fill=centre)


DRAWINGS = {drawing.__name__: drawing
            for drawing in (circle, square, triangle, star, heart, tree, house, car, fish, cat, cup, flower)}


@cache
def sprite(kind: str, colour: str, size: str) -> np.ndarray:
    """One thing alone: float32[p, p, 4] in 0..1, premultiplied RGB and alpha, p = its box edge in pixels."""
    pen = Pen(PIXELS[size], PAINT[colour])
    DRAWINGS[kind](pen)
    straight = np.asarray(pen.canvas, np.float32) / 255
    premultiplied = np.concatenate([straight[..., :3] * straight[..., 3:], straight[..., 3:]], -1)
    edge = PIXELS[size]
    return premultiplied.reshape(edge, SCALE, edge, SCALE, 4).mean((1, 3))


def gradient(top, bottom) -> Image.Image:
    """A vertical blend of two colours, supersampled twice."""
    edge = PICTURE_SIZE * 2
    weight = np.linspace(0, 1, edge, dtype=np.float32)[:, None, None]
    blend = (1 - weight) * np.asarray(top, np.float32) + weight * np.asarray(bottom, np.float32)
    return Image.fromarray(np.broadcast_to(np.rint(blend), (edge, edge, 3)).astype(np.uint8).copy())


def grass(draw, random):
    for _ in range(150):
        x, y = random.integers(0, 256, 2)
        draw.line([(x, y), (x + int(random.integers(-3, 4)), y - 9)], fill=(104, 178, 84), width=2)


def sky(draw, random):
    for x, y in ((46, 42), (190, 80), (90, 196), (222, 220)):
        for dx, dy, r in ((-18, 4, 14), (0, 0, 19), (20, 5, 13)):
            draw.ellipse([x + dx - r, y + dy - r, x + dx + r, y + dy + r], fill=(216, 236, 250))


def beach(draw, random):
    for x in range(-20, 280, 26):
        draw.ellipse([x, 44, x + 34, 66], fill=(206, 236, 240))
    draw.rectangle([0, 0, 256, 52], fill=(118, 204, 214))
    for x, y in random.integers((0, 74), (256, 256), (90, 2)):
        draw.ellipse([x, y, x + 2, y + 2], fill=(212, 186, 136))


def snow(draw, random):
    draw.ellipse([-80, 150, 150, 330], fill=(222, 232, 244))
    draw.ellipse([90, 186, 340, 360], fill=(212, 224, 240))
    for x, y in random.integers(0, 256, (70, 2)):
        draw.ellipse([x, y, x + 4, y + 4], fill=(250, 252, 255))


def night(draw, random):
    for x, y in random.integers(0, 256, (60, 2)):
        draw.ellipse([x, y, x + 3, y + 3], fill=(214, 214, 170))


def sunset(draw, random):
    for y, shade in ((176, (150, 92, 140)), (214, (116, 72, 128))):
        points = [(x, y + 14 * np.sin(x / 34 + y)) for x in range(0, 260, 4)]
        draw.polygon([(0, 256), *points, (256, 256)], fill=shade)


GROUNDS = {"grass": (grass, (152, 214, 116), (96, 172, 78)), "sky": (sky, (104, 176, 236), (186, 222, 246)),
           "beach": (beach, (240, 220, 170), (228, 204, 150)), "snow": (snow, (206, 220, 238), (236, 242, 250)),
           "night": (night, (18, 20, 58), (58, 50, 104)), "sunset": (sunset, (252, 170, 96), (206, 110, 132))}


@cache
def ground(background: str) -> np.ndarray:
    """An empty background: float32[128, 128, 3] in 0..1."""
    details, top, bottom = GROUNDS[background]
    picture = gradient(top, bottom)
    details(ImageDraw.Draw(picture), np.random.default_rng(1))
    soft = picture.filter(ImageFilter.GaussianBlur(1.5))
    large = np.asarray(soft, np.float32) / 255
    return large.reshape(PICTURE_SIZE, 2, PICTURE_SIZE, 2, 3).mean((1, 3))


def paste(picture: np.ndarray, thing: Thing) -> None:
    """Draw one thing over float32[128, 128, 3], in place."""
    x0, y0, x1, y1 = box_of(thing)
    cut = sprite(thing.kind, thing.colour, thing.size)
    picture[y0:y1, x0:x1] = cut[..., :3] + (1 - cut[..., 3:]) * picture[y0:y1, x0:x1]


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8[128, 128, 3]. Depends on nothing but the scene."""
    picture = ground(scene.background).copy()
    for thing in scene.things:
        paste(picture, thing)
    return np.rint(picture * 255).astype(np.uint8)


def silhouette(thing: Thing) -> np.ndarray:
    """Where a thing hides the background altogether: bool[128, 128]."""
    hidden = np.zeros((PICTURE_SIZE, PICTURE_SIZE), bool)
    x0, y0, x1, y1 = box_of(thing)
    hidden[y0:y1, x0:x1] = sprite(thing.kind, thing.colour, thing.size)[..., 3] > 0.999
    return hidden


def edit_mask(source: Scene, target: Scene) -> np.ndarray:
    """Where an edit may paint, a rough blob larger than the object: bool[128, 128].

    Changed slots: the boxes of what was and of what comes, grown by 4 pixels within the slot.
    A changed background: everything but the silhouettes of things that stay as they are.
    """
    mask = np.zeros((PICTURE_SIZE, PICTURE_SIZE), bool)
    if source.background != target.background:
        mask[:] = True
        for thing in set(source.things) & set(target.things):
            mask &= ~silhouette(thing)
    for thing in set(source.things) ^ set(target.things):
        left, top = slot_corner(thing.slot)
        x0, y0, x1, y1 = box_of(thing)
        mask[max(y0 - 4, top):min(y1 + 4, top + 42), max(x0 - 4, left):min(x1 + 4, left + 42)] = True
    return mask
