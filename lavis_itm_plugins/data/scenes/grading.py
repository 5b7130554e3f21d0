"""How true a caption is of a picture: the weighted share of its claims that hold, in [0, 1].

Things that a caption mentions are matched to different things of the picture so that as much as possible holds. Each
mentioned thing claims its kind (weight 2), colour, size and texture (1 each); each relation counts once for each pair
of things it speaks of; an exact number, the background and "nothing else" count 1 each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt

from lavis_itm_plugins.data.scenes.claims import Claims
from lavis_itm_plugins.data.scenes.world import LOOKS, MAX_THINGS, RELATIONS, Scene, Thing, holds

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

LOOKS_WEIGHTS = (2, 1, 1, 1)
_NO_THING, _NOT_SAID = -1, -2  # codes that equal no value, nor each other
_CHUNK = 64  # captions at once: bounds the working memory to some 10 MB for 1,000 pictures


def relevance(scene: Scene, claims: Claims) -> float:
    """Relevance of one caption to one picture; 1.0 if and only if all that the caption says is true.

    >>> from lavis_itm_plugins.data.scenes.claims import Mention
    >>> scene = Scene("night", (Thing("cat", "red", "small", "plain"),))
    >>> relevance(scene, Claims((Mention("cat", colour="red"),), background="night"))
    1.0
    >>> relevance(scene, Claims((Mention("cat", colour="blue"),), background="night"))
    0.75
    """
    instances = _instances(claims)
    places: list[Thing | None] = [*scene.things, *[None] * (MAX_THINGS - len(scene.things))]
    best = max(_held(claims, instances, chosen) for chosen in permutations(places, len(instances)))
    best += sum(sum(map(m.fits, scene.things)) == m.count for m in claims.mentions if m.count > 1)
    best += claims.background == scene.background
    best += claims.complete and len(scene.things) == len(instances)
    return best / _total(claims)


def relevance_matrix(scenes: Sequence[Scene], claims: Sequence[Claims]) -> FloatArray:
    """`relevance` of every caption to every picture at once, (n_images, n_captions)."""
    pictures = _Pictures(scenes)
    columns_by_length = defaultdict(list)
    for column, claim in enumerate(claims):
        columns_by_length[len(_instances(claim))].append(column)
    result = np.zeros((len(scenes), len(claims)), dtype=np.float32)
    for columns in columns_by_length.values():
        for start in range(0, len(columns), _CHUNK):
            chunk = columns[start : start + _CHUNK]
            result[:, chunk] = pictures.relevance([claims[column] for column in chunk]).T
    return result


def _instances(claims: Claims) -> list[int]:
    """The mention of every single thing spoken of: [0, 0, 1] for "two circles and a star"."""
    return [position for position, mention in enumerate(claims.mentions) for _ in range(mention.count)]


def _pairs(claims: Claims) -> list[tuple[int, str, int]]:
    """The relations between single things, as positions in `_instances`."""
    instances = list(enumerate(_instances(claims)))
    return [
        (i, relation, j)
        for subject, relation, other in claims.relations
        for i, mention in instances
        for j, other_mention in instances
        if mention == subject and other_mention == other
    ]


def _total(claims: Claims) -> int:
    """The weight of all claims."""
    total = len(_pairs(claims)) + (claims.background is not None) + claims.complete
    for mention in claims.mentions:
        looks = sum(weight for weight, value in zip(LOOKS_WEIGHTS, mention.said, strict=True) if value)
        total += mention.count * looks + (mention.count > 1)
    return total


def _held(claims: Claims, instances: Sequence[int], chosen: Sequence[Thing | None]) -> int:
    """The weight of the claims about looks and relations that hold when instance i is thing `chosen[i]`."""
    held = 0
    for position, thing in zip(instances, chosen, strict=True):
        if thing is not None:
            same = [said == true for said, true in zip(claims.mentions[position].said, thing.looks, strict=True)]
            held += sum(weight for weight, equal in zip(LOOKS_WEIGHTS, same, strict=True) if equal)
    for i, relation, j in _pairs(claims):
        subject, other = chosen[i], chosen[j]
        held += subject is not None and other is not None and holds(relation, subject, other)
    return held


class _Pictures:
    """Scenes as arrays, with things padded to `MAX_THINGS`."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.backgrounds = np.array([scene.background for scene in scenes])
        self.counts = np.array([len(scene.things) for scene in scenes])
        self.looks: IntArray = np.full((len(LOOKS), MAX_THINGS, len(scenes)), _NO_THING)
        self.related: FloatArray = np.zeros((len(RELATIONS), MAX_THINGS, MAX_THINGS, len(scenes)), dtype=np.float32)
        for column, scene in enumerate(scenes):
            for place, thing in enumerate(scene.things):
                self.looks[:, place, column] = _codes(thing.looks)
                for other_place, other in enumerate(scene.things):
                    self.related[:, place, other_place, column] = [holds(name, thing, other) for name in RELATIONS]

    def relevance(self, claims: Sequence[Claims]) -> FloatArray:
        """(n_captions, n_images) for captions that speak of equally many things."""
        best = self._best_assignment(claims)
        for row, claim in enumerate(claims):
            best[row] += self._whole(claim)
        return best / np.array([[_total(claim)] for claim in claims], dtype=np.float32)

    def _best_assignment(self, claims: Sequence[Claims]) -> FloatArray:
        fit = self._fit(claims)
        best = np.zeros(fit.shape[2:], dtype=np.float32)
        pairs = [(row, i, RELATIONS.index(name), j) for row, claim in enumerate(claims) for i, name, j in _pairs(claim)]
        rows, subjects, relations, others = np.array(pairs, dtype=np.int64).reshape(-1, 4).T
        for chosen in permutations(range(MAX_THINGS), len(fit)):
            held = sum(fit[i, place] for i, place in enumerate(chosen)) + np.zeros_like(best)
            place_of = np.array(chosen)
            np.add.at(held, rows, self.related[relations, place_of[subjects], place_of[others]])
            np.maximum(best, held, out=best)
        return best

    def _fit(self, claims: Sequence[Claims]) -> FloatArray:
        """Weight of the claims on instance i's looks that hold for a thing: (instance, place, caption, image)."""
        said = np.array([[_codes(claim.mentions[m].said) for m in _instances(claim)] for claim in claims])
        fit = np.zeros((said.shape[1], MAX_THINGS, len(claims), len(self.counts)), dtype=np.float32)
        for look, weight in enumerate(LOOKS_WEIGHTS):
            fit += weight * (said[:, :, look].T[:, None, :, None] == self.looks[look][None, :, None, :])
        return fit

    def _whole(self, claims: Claims) -> FloatArray:
        """Weight of the claims on the picture as a whole that hold, (n_images,)."""
        held = np.zeros(len(self.counts), dtype=np.float32)
        for mention in claims.mentions:
            if mention.count > 1:
                codes = np.array(_codes(mention.said))[:, None, None]
                fitting = ((codes == self.looks) | (codes == _NOT_SAID)).all(axis=0) & (self.looks[0] != _NO_THING)
                held += fitting.sum(axis=0) == mention.count
        held += self.backgrounds == claims.background
        if claims.complete:
            held += self.counts == len(_instances(claims))
        return held


def _codes(looks: Sequence[str | None]) -> list[int]:
    pairs = zip(looks, LOOKS.values(), strict=True)
    return [_NOT_SAID if look is None else values.index(look) for look, values in pairs]
