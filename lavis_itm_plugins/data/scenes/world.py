"""The scene graph: what is in a picture, and how scenes are sampled."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

KINDS = (
    "circle", "square", "triangle", "star", "cross", "ring", "heart", "moon", "house", "tree",
    "car", "boat", "sun", "fish", "flower", "cup", "balloon", "mushroom", "cat", "butterfly",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("day", "night", "grass", "sand", "snow")
LOOKS = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
RELATIONS = ("left", "right", "above", "below")
MAX_THINGS = 4

# How many things a picture holds, split into groups of things that look alike, and how often.
_GROUPINGS = {
    (1,): 14, (1, 1): 26, (2,): 8, (1, 1, 1): 18, (2, 1): 10, (3,): 4,
    (1, 1, 1, 1): 8, (2, 1, 1): 6, (2, 2): 3, (3, 1): 3,
}  # fmt: skip
_CELLS = ((0, 0), (1, 0), (0, 1), (1, 1))


@dataclass(frozen=True, order=True)
class Thing:
    """One drawn thing: its looks, and its cell in the 2 x 2 grid (column 0 is left, row 0 is the top)."""

    kind: str
    colour: str
    size: str
    texture: str
    column: int = 0
    row: int = 0

    @property
    def looks(self) -> tuple[str, str, str, str]:
        """Everything but the place."""
        return self.kind, self.colour, self.size, self.texture


@dataclass(frozen=True)
class Scene:
    """One picture's scene graph: the background and 1 to 4 things, sorted.

    Things with the same kind and colour always look alike, so "two red circles" is exact whatever else is said.
    """

    background: str
    things: tuple[Thing, ...]

    @property
    def content(self) -> tuple[str, tuple[tuple[str, str, str, str], ...]]:
        """What the picture holds, wherever it stands: the key by which splits are kept disjoint."""
        return self.background, tuple(sorted(thing.looks for thing in self.things))

    def groups(self) -> list[tuple[Thing, ...]]:
        """Things that look alike, together."""
        return [tuple(group) for _, group in groupby(self.things, key=lambda thing: thing.looks)]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts; `Scene.from_json` reads them back."""
        return {"background": self.background, "things": [asdict(thing) for thing in self.things]}

    @classmethod
    def from_json(cls, node: dict[str, Any]) -> Scene:
        """The inverse of `to_json`."""
        return cls(node["background"], tuple(Thing(**thing) for thing in node["things"]))


def holds(relation: str, subject: Thing, other: Thing) -> bool:
    """Whether `subject` stands in `relation` to `other`.

    >>> holds("left", Thing("car", "red", "small", "plain", 0, 1), Thing("cat", "red", "small", "plain", 1, 0))
    True
    """
    if relation in ("left", "right"):
        near, far = subject.column, other.column
    else:
        near, far = subject.row, other.row
    return near < far if relation in ("left", "above") else near > far


def sample_scene(rng: random.Random) -> Scene:
    """One scene from the world's distribution."""
    (grouping,) = rng.choices(list(_GROUPINGS), weights=list(_GROUPINGS.values()))
    cells = rng.sample(_CELLS, sum(grouping))
    named: set[tuple[str, str]] = set()
    things = []
    for count in grouping:
        looks = _sample_looks(rng)
        while (looks.kind, looks.colour) in named:
            looks = _sample_looks(rng)
        named.add((looks.kind, looks.colour))
        for _ in range(count):
            column, row = cells.pop()
            things.append(replace(looks, column=column, row=row))
    return Scene(rng.choice(BACKGROUNDS), tuple(sorted(things)))


def _sample_looks(rng: random.Random) -> Thing:
    (texture,) = rng.choices(TEXTURES, weights=(2, 1, 1))
    return Thing(rng.choice(KINDS), rng.choice(COLOURS), rng.choice(SIZES), texture)
