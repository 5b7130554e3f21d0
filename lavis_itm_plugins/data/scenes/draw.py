"""From scene graph to pixels: drawn at four times the size, then averaged down, so that edges are smooth."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from lavis_itm_plugins.data.scenes.shapes import SHAPES, Part, Points
from lavis_itm_plugins.data.scenes.world import Scene, Thing

Colour = tuple[int, int, int]

OVERSAMPLING = 4
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 222, 40),
    "green": (30, 140, 60),
    "blue": (40, 90, 215),
    "purple": (125, 50, 165),
    "pink": (250, 140, 190),
    "white": (248, 248, 248),
}
FIXED: dict[str, Colour] = {"wood": (130, 85, 45), "leaf": (50, 120, 50), "ink": (45, 40, 55)}
# each background: its colour at the top, at the bottom, and that of its specks (stars, blades, pebbles, flakes, clouds)
BACKDROPS: dict[str, tuple[Colour, Colour, Colour]] = {
    "day": ((150, 205, 245), (215, 238, 252), (238, 246, 252)),
    "night": ((16, 20, 58), (42, 46, 100), (200, 205, 235)),
    "grass": ((165, 205, 110), (120, 178, 80), (95, 150, 65)),
    "sand": ((240, 224, 180), (226, 200, 145), (205, 175, 120)),
    "snow": ((236, 240, 248), (222, 228, 240), (190, 200, 222)),
}
RADIUS = {"small": 0.24, "large": 0.43}  # share of the cell


@dataclass(frozen=True)
class _Style:
    """How one thing is painted."""

    colour: Colour
    texture: str
    outline: Colour
    canvas: int

    @property
    def line(self) -> int:
        return max(1, self.canvas // 80)


def draw_scene(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """The picture, RGB, `size` x `size`. `rng` places, turns and tints the things a little; the scene stays true."""
    canvas = size * OVERSAMPLING
    picture = _backdrop(scene.background, canvas).copy()
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    outline = COLOURS["white"] if scene.background == "night" else FIXED["ink"]
    for thing in scene.things:
        colour = _scaled(COLOURS[thing.colour], rng.uniform(0.9, 1.0))
        _draw_thing(picture, thing, _Style(colour, thing.texture, outline, canvas), rng)
    return picture.reduce(OVERSAMPLING)


def _draw_thing(picture: Image.Image, thing: Thing, style: _Style, rng: random.Random) -> None:
    cell = picture.width / 2
    radius = RADIUS[thing.size] * cell * rng.uniform(0.93, 1.05)
    # small things could wander further, but then one could look higher than another of the same row
    room = min(cell / 2 - radius, 0.12 * cell)
    x = (thing.column + 0.5) * cell + rng.uniform(-room, room)
    y = (thing.row + 0.5) * cell + rng.uniform(-room, room)
    turn = math.radians(rng.uniform(-10, 10))
    # a tile around the thing, corners and outline included: masks of the whole canvas take five times as long
    half = math.ceil(1.5 * radius)
    left, top = round(x) - half, round(y) - half
    tile = picture.crop((left, top, left + 2 * half, top + 2 * half))
    for part in SHAPES[thing.kind]:
        outline, hole = (_placed(points, x - left, y - top, radius, turn) for points in (part.outline, part.hole))
        _draw_part(tile, Part(part.paint, outline, hole), style)
    picture.paste(tile, (left, top))


def _placed(points: Points, x: float, y: float, radius: float, turn: float) -> Points:
    cosine, sine = radius * math.cos(turn), radius * math.sin(turn)
    return tuple((x + cosine * px - sine * py, y + sine * px + cosine * py) for px, py in points)


def _draw_part(tile: Image.Image, part: Part, style: _Style) -> None:
    if part.paint == "body":
        mask = Image.new("L", tile.size)
        pen = ImageDraw.Draw(mask)
        pen.polygon(part.outline, fill=255)
        if part.hole:
            pen.polygon(part.hole, fill=0)
        tile.paste(style.colour, mask=mask)
        if style.texture != "plain":
            pattern = _pattern(style.texture, style.canvas).crop((0, 0, *tile.size))
            tile.paste(_contrast(style.colour), mask=ImageChops.multiply(mask, pattern))
    else:
        ImageDraw.Draw(tile).polygon(part.outline, fill=_fixed(part.paint, style.colour))
    for points in (part.outline, part.hole) if part.paint != "ink" else ():
        if points:
            # the first two points again, so that the last corner is joined too
            ImageDraw.Draw(tile).line(points + points[:2], fill=style.outline, width=style.line, joint="curve")


def _fixed(paint: str, colour: Colour) -> Colour:
    if paint == "shade":
        return _scaled(colour, 0.6)
    if paint == "light":
        return _mixed(colour, (255, 250, 225), 0.75)
    return FIXED[paint]


def _scaled(colour: Colour, factor: float) -> Colour:
    return _mixed(colour, (0, 0, 0), 1 - factor)


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _contrast(colour: Colour) -> Colour:
    """The second colour of a texture: lighter for dark things, darker for light ones, of the same hue."""
    light = colour[1] > 180  # yellow and white
    return _scaled(colour, 0.55) if light else _mixed(colour, (255, 255, 255), 0.7)


@lru_cache(maxsize=8)
def _pattern(texture: str, canvas: int) -> Image.Image:
    """Mask of the texture's second colour, large enough for any tile."""
    mask = Image.new("L", (canvas, canvas))
    pen = ImageDraw.Draw(mask)
    step = canvas / 14
    for line in range(15):
        if texture == "striped":
            pen.rectangle((0, line * step, canvas, (line + 0.45) * step), fill=255)
            continue
        for column in range(15):
            x, y = (column + line % 2 / 2) * step, line * step
            pen.ellipse((x - 0.27 * step, y - 0.27 * step, x + 0.27 * step, y + 0.27 * step), fill=255)
    return mask


@lru_cache(maxsize=16)
def _backdrop(background: str, canvas: int) -> Image.Image:
    top, bottom, speck = BACKDROPS[background]
    picture = Image.new("RGB", (canvas, canvas))
    pen = ImageDraw.Draw(picture)
    for line in range(canvas):
        pen.line((0, line, canvas, line), fill=_mixed(top, bottom, line / canvas))
    rng = random.Random(background)
    for _ in range(5 if background == "day" else 34):
        x, y, unit = rng.uniform(0, canvas), rng.uniform(0, canvas), canvas / 128
        width, height = {"day": (14, 4), "grass": (0.7, 3)}.get(background, (1.1, 1.1))
        pen.ellipse((x - width * unit, y - height * unit, x + width * unit, y + height * unit), fill=speck)
    return picture
