"""What a caption says, in a form that can be checked: claims, and how a caption's claims are chosen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from lavis_itm_plugins.data.scenes.world import BACKGROUNDS, LOOKS, MAX_THINGS, RELATIONS, Scene, Thing, holds
from lavis_itm_plugins.errors import ItmError, unknown_name

Group = tuple[Thing, ...]


@dataclass(frozen=True)
class Mention:
    """`count` things that look like this; None where the caption does not say. Raises ItmError for unknown looks."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        for (name, values), value in zip(LOOKS.items(), self.said, strict=True):
            if value is not None and value not in values:
                raise unknown_name(name, value, values)

    @property
    def said(self) -> tuple[str | None, str | None, str | None, str | None]:
        """What is said of the looks, in the order of `Thing.looks`."""
        return self.kind, self.colour, self.size, self.texture

    def fits(self, thing: Thing) -> bool:
        """Whether all that is said of the looks is true of `thing`.

        >>> Mention("circle", colour="red").fits(Thing("circle", "red", "small", "plain"))
        True
        """
        return all(said is None or said == true for said, true in zip(self.said, thing.looks, strict=True))


@dataclass(frozen=True)
class Claims:
    """All that a caption states.

    `relations` holds (subject, relation, other) with positions in `mentions`. A count of 2 or more is exact; "a" and
    "an" mean at least one. `complete` says that the picture holds nothing else. Raises ItmError for claims about no
    thing, or about more things than a picture holds, and for unknown words.
    """

    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None
    complete: bool = False

    def __post_init__(self) -> None:
        things = sum(mention.count for mention in self.mentions)
        if not 1 <= things <= MAX_THINGS or any(m == Mention() or m.count < 1 for m in self.mentions):
            raise ItmError(f"a caption claims something of 1 to {MAX_THINGS} things, not of {self.mentions}")
        for _, relation, _ in self.relations:
            if relation not in RELATIONS:
                raise unknown_name("relation", relation, RELATIONS)
        if self.background is not None and self.background not in BACKGROUNDS:
            raise unknown_name("background", self.background, BACKGROUNDS)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts without what is not said; `Claims.from_json` reads them back."""
        mentions = [{key: value for key, value in asdict(mention).items() if value} for mention in self.mentions]
        return {**asdict(self), "mentions": mentions, "relations": [list(relation) for relation in self.relations]}

    @classmethod
    def from_json(cls, node: dict[str, Any]) -> Claims:
        """The inverse of `to_json`."""
        mentions = tuple(Mention(**mention) for mention in node["mentions"])
        relations = tuple((subject, relation, other) for subject, relation, other in node["relations"])
        return cls(mentions, relations, node["background"], node["complete"])


@dataclass(frozen=True)
class Style:
    """How much one caption says: chances between 0 and 1, and how many groups of things it speaks of."""

    groups: int
    colour: float
    size: float
    texture: float
    relation: float
    background: float
    complete: float = 0.0
    kindless: float = 0.0


# The five captions of a picture, from a full description to a mere "there is a cat".
STYLES = (
    Style(groups=4, colour=1.0, size=0.8, texture=0.9, relation=0.5, background=0.6, complete=0.2),
    Style(groups=4, colour=0.8, size=0.3, texture=0.4, relation=0.6, background=0.3, complete=0.2),
    Style(groups=2, colour=0.8, size=0.4, texture=0.5, relation=0.9, background=0.4),
    Style(groups=2, colour=0.6, size=0.2, texture=0.3, relation=0.2, background=0.6, kindless=0.1),
    Style(groups=1, colour=0.6, size=0.4, texture=0.4, relation=0.0, background=0.4, kindless=0.1),
)


def choose_claims(scene: Scene, style: Style, rng: random.Random) -> Claims:
    """Claims that are all true of the scene."""
    groups = scene.groups()
    rng.shuffle(groups)
    said = groups[: style.groups]
    mentions = tuple(_mention(group, scene, style, rng) for group in said)
    relations = _relations(said, mentions, rng) if rng.random() < style.relation else ()
    background = scene.background if rng.random() < style.background else None
    complete = not relations and len(said) == len(groups) and rng.random() < style.complete
    return Claims(mentions, relations, background, complete)


def _mention(group: Group, scene: Scene, style: Style, rng: random.Random) -> Mention:
    """What is said of a group: enough that "two circles" stays exact, and that no "a circle and a circle" occurs."""
    thing = group[0]
    others = [other for other in scene.things if other.looks != thing.looks]
    same_kind = any(other.kind == thing.kind for other in others)
    same_colour = any(other.colour == thing.colour for other in others)
    name_colour = same_kind or rng.random() < style.colour
    name_texture = rng.random() < style.texture * (0.3 if thing.texture == "plain" else 1)
    return Mention(
        kind=None if name_colour and not same_colour and rng.random() < style.kindless else thing.kind,
        colour=thing.colour if name_colour else None,
        size=thing.size if rng.random() < style.size else None,
        texture=thing.texture if name_texture else None,
        count=len(group),
    )


def _relations(
    groups: Sequence[Group], mentions: Sequence[Mention], rng: random.Random
) -> tuple[tuple[int, str, int], ...]:
    """One or two relations of the same pair, or none when no pair stands in any."""
    pairs = []
    for subject, other in permutations(range(len(groups)), 2):
        true = [name for name in RELATIONS if all(holds(name, a, b) for a in groups[subject] for b in groups[other])]
        if true and _nameable(subject, mentions) and _nameable(other, mentions):
            pairs.append((subject, true, other))
    if not pairs:
        return ()
    subject, true, other = rng.choice(pairs)
    names = true if rng.random() < 0.3 else [rng.choice(true)]
    return tuple((subject, name, other) for name in names)


def _nameable(position: int, mentions: Sequence[Mention]) -> bool:
    """Whether "the cat" is clear among the mentions; two mentions need no such name, they are spoken of in turn."""
    kinds = [mention.kind for mention in mentions]
    return len(mentions) == 2 or (kinds[position] is not None and kinds.count(kinds[position]) == 1)
