"""Generated pictures show what their scene holds: things in their places, and looks that can be told apart."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest

from lavis_itm_plugins.data.scenes import Scene, Thing
from lavis_itm_plugins.data.scenes.draw import COLOURS, draw_scene
from lavis_itm_plugins.data.scenes.shapes import SHAPES
from lavis_itm_plugins.data.scenes.world import BACKGROUNDS, KINDS, TEXTURES


def picture(*things: Thing, background: str = "day", seed: int = 0) -> npt.NDArray[np.int64]:
    return np.asarray(draw_scene(Scene(background, things), 64, random.Random(seed)), dtype=np.int64)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize(("column", "row"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_things_stand_in_their_cell(column: int, row: int, background: str) -> None:
    empty = picture(background=background)
    for kind in KINDS:
        changed = np.abs(picture(Thing(kind, "red", "small", "plain", column, row), background=background) - empty)
        ys, xs = np.nonzero(changed.sum(axis=2) > 30)
        assert len(ys) > 30 and set(xs // 32) == {column} and set(ys // 32) == {row}, kind


def test_things_of_a_row_look_level() -> None:
    ball = Thing("circle", "red", "small", "plain", column=1, row=0)
    for seed in range(30):
        empty, drawn = picture(seed=seed), picture(ball, seed=seed)
        ys, xs = np.nonzero(np.abs(drawn - empty).sum(axis=2) > 30)
        assert abs(ys.mean() - 15.5) < 5.5 and abs(xs.mean() - 47.5) < 5.5


def test_looks_can_be_seen() -> None:
    assert set(SHAPES) == set(KINDS)
    empty = picture()
    for kind in KINDS:
        small, large = (picture(Thing(kind, "blue", size, "plain")) for size in ("small", "large"))
        areas = [(np.abs(drawn - empty).sum(axis=2) > 30).sum() for drawn in (small, large)]
        assert areas[1] > 2 * areas[0], kind
        textured = [picture(Thing(kind, "blue", "large", texture)) for texture in TEXTURES]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (np.abs(textured[one] - textured[other]).sum(axis=2) > 60).sum() > 25, kind


def test_colours_are_the_named_ones() -> None:
    for name, colour in COLOURS.items():
        drawn = picture(Thing("square", name, "large", "plain"))
        middle = drawn[14:18, 14:18].reshape(-1, 3).mean(axis=0)
        nearest = min(COLOURS, key=lambda other: np.abs(middle - COLOURS[other]).sum())
        assert nearest == name and np.abs(middle - colour).max() < 40


def test_kinds_differ_from_each_other() -> None:
    drawn = {kind: picture(Thing(kind, "green", "large", "plain")) for kind in KINDS}
    for one in KINDS:
        for other in KINDS:
            if one < other:
                assert (np.abs(drawn[one] - drawn[other]).sum(axis=2) > 60).sum() > 60, (one, other)
