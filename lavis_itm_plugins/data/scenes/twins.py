"""Families of scenes that differ in one respect: the hard negatives of the data set.

Among pictures sampled one by one, hardly two are alike, and colours and kinds alone tell them apart. Twins make it
matter which thing is red, and what stands left of what.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lavis_itm_plugins.data.scenes.world import BACKGROUNDS, COLOURS, KINDS, SIZES, TEXTURES, Scene, Thing, sample_scene

Edit = Callable[[Scene, random.Random], Scene]

# how many scenes a family has, and how often
_FAMILY_SIZES = {1: 3, 2: 3, 3: 2, 4: 2}
MAX_FAMILY = max(_FAMILY_SIZES)


def families(rng: random.Random) -> Iterator[list[Scene]]:
    """Families without end, 1 to 4 different scenes each; what a picture of one holds, none of another does."""
    seen: set[object] = set()
    while True:
        (size,) = rng.choices(list(_FAMILY_SIZES), weights=list(_FAMILY_SIZES.values()))
        family = [sample_scene(rng)]
        while len(family) < size:
            twin = _twin(rng.choice(family), rng)
            if twin not in family:
                family.append(twin)
        contents = {scene.content for scene in family}
        if not contents & seen:
            seen |= contents
            yield family


def _twin(scene: Scene, rng: random.Random) -> Scene:
    """The scene after one edit; the edit may turn out to change nothing."""
    twin = rng.choice(_EDITS)(scene, rng)
    names = {(thing.kind, thing.colour) for thing in twin.things}
    return twin if len(names) == len(twin.groups()) == len(scene.groups()) else scene


def _change(look: str, values: tuple[str, ...]) -> Edit:
    """The edit that gives one group another colour, kind, size or texture."""

    def edit(scene: Scene, rng: random.Random) -> Scene:
        group = rng.choice(scene.groups())
        change: dict[str, Any] = {look: rng.choice(values)}
        return _with(scene, [replace(thing, **change) if thing in group else thing for thing in scene.things])

    return edit


def _swap_colours(scene: Scene, rng: random.Random) -> Scene:
    """Two groups exchange colours: a red cat and a blue car become a blue cat and a red car."""
    groups = scene.groups()
    if len(groups) == 1:
        return scene
    one, other = rng.sample(groups, 2)
    colours = {one[0].looks: other[0].colour, other[0].looks: one[0].colour}
    return _with(scene, [replace(thing, colour=colours.get(thing.looks, thing.colour)) for thing in scene.things])


def _mirror(scene: Scene, rng: random.Random) -> Scene:
    """Left and right, or top and bottom, exchanged."""
    if rng.random() < 0.5:
        return _with(scene, [replace(thing, column=1 - thing.column) for thing in scene.things])
    return _with(scene, [replace(thing, row=1 - thing.row) for thing in scene.things])


def _change_background(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, background=rng.choice(BACKGROUNDS))


def _with(scene: Scene, things: list[Thing]) -> Scene:
    return replace(scene, things=tuple(sorted(things)))


_EDITS: tuple[Edit, ...] = (
    _change("kind", KINDS),
    _change("colour", COLOURS),
    _change("size", SIZES),
    _change("texture", TEXTURES),
    _swap_colours,
    _mirror,
    _mirror,
    _change_background,
)
