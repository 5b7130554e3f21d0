"""Claims into English: a small grammar with synonyms, several word orders, active and passive."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lavis_itm_plugins.data.scenes.claims import STYLES, Claims, Mention, choose_claims
from lavis_itm_plugins.data.scenes.world import Scene

CAPTIONS_PER_IMAGE = len(STYLES)

# singular and plural; the first is the most common
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "heart": (("heart", "hearts"),),
    "moon": (("moon", "moons"), ("crescent", "crescents")),
    "house": (("house", "houses"), ("cottage", "cottages")),
    "tree": (("tree", "trees"),),
    "car": (("car", "cars"), ("automobile", "automobiles")),
    "boat": (("boat", "boats"), ("ship", "ships")),
    "sun": (("sun", "suns"),),
    "fish": (("fish", "fish"),),
    "flower": (("flower", "flowers"), ("blossom", "blossoms")),
    "cup": (("cup", "cups"), ("mug", "mugs")),
    "balloon": (("balloon", "balloons"),),
    "mushroom": (("mushroom", "mushrooms"), ("toadstool", "toadstools")),
    "cat": (("cat", "cats"), ("kitten", "kittens")),
    "butterfly": (("butterfly", "butterflies"),),
}
ANYTHING = (("thing", "things"), ("object", "objects"))
SIZES = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
TEXTURES = {"plain": ("plain",), "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted")}
TEXTURES_AFTER = {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}
NUMBERS = {2: ("two", "two", "a pair of", "a couple of"), 3: ("three",), 4: ("four",)}
BACKGROUNDS = {
    "day": ("by day", "in daylight", "in the daytime", "under a clear sky"),
    "night": ("at night", "in the dark", "under a dark sky", "by night"),
    "grass": ("on the grass", "on a lawn", "in a meadow", "on a green field"),
    "sand": ("on the sand", "on a beach", "in the desert", "on sandy ground"),
    "snow": ("in the snow", "on snow", "on snowy ground"),
}
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "higher up than"),
    "below": ("below", "under", "beneath", "lower down than"),
}
# {} is the list. Phrases take a place after them ("a cat at night"), clauses also before ("at night, we see a cat")
LIST_PHRASES = (
    "{}", "{}", "{}", "{}", "a picture of {}", "an image of {}", "a drawing of {}", "the picture shows {}",
    "{} {are} drawn here",
)  # fmt: skip
LIST_CLAUSES = ("{there} {}", "{there} {}", "you can see {}", "we see {}", "{} can be seen", "{} {are} shown")
# {0} is the subject, {1} the other; {beside} any words of the relation, {near} the plain ones
PAIR_PHRASES = ("{0} {beside} {1}", "{0} {beside} {1}", "{1} with {0} {near} {them}", "a picture of {0} {beside} {1}")
PAIR_CLAUSES = (
    "{0} {are} {beside} {1}", "{0} {sit} {beside} {1}", "{0} {appear} {beside} {1}", "{0} {are} placed {beside} {1}",
    "{0} can be seen {beside} {1}", "{there} {0} {beside} {1}", "you can see {0} {beside} {1}",
    "{near} {1} {there} {0}", "{near} {1} {are} {0}", "{1} {have} {0} {near} {them}",
)  # fmt: skip


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: "two red circles", later "the circles"."""

    text: str
    noun: str
    count: int

    @property
    def plural(self) -> bool:
        """Whether the verb is plural; "a pair" is one."""
        return self.count > 1 and not self.text.startswith("a pair")

    def verb(self, singular: str, plural: str) -> str:
        """The form of the verb that agrees."""
        return plural if self.plural else singular


@dataclass(frozen=True)
class Sentence:
    """A text, whether a place ("at night") may go before it, and what comes after a place."""

    text: str
    clause: bool
    tail: str = ""


def write_captions(scene: Scene, rng: random.Random) -> list[tuple[str, Claims]]:
    """The picture's captions, all different, each with its claims, in random order."""
    written: dict[str, Claims] = {}
    for style in rng.sample(STYLES, len(STYLES)):
        wanted = len(written) + 1
        while len(written) < wanted:
            claims = choose_claims(scene, style, rng)
            written.setdefault(write_caption(claims, rng), claims)
    return list(written.items())


def write_caption(claims: Claims, rng: random.Random) -> str:
    """One sentence or phrase that says the claims and no more.

    >>> write_caption(Claims((Mention("circle", "orange"),)), random.Random(0))
    'we see an orange disc'
    """
    phrases = [_phrase(mention, rng) for mention in claims.mentions]
    if not claims.relations:
        sentence = _list(phrases, claims.complete, rng)
    elif len(phrases) == 2:
        sentence = _pair(phrases, claims, rng)
    else:
        sentence = _list_with_relation(phrases, claims, rng)
    if claims.background is None:
        return sentence.text + sentence.tail
    place = rng.choice(BACKGROUNDS[claims.background])
    if sentence.clause and rng.random() < 0.4:
        return f"{place}, {sentence.text}{sentence.tail}"
    return f"{sentence.text} {place}{sentence.tail}"


def tokenize(caption: str) -> list[str]:
    """The words of a caption, in lower case, without punctuation.

    >>> tokenize("At night, a red car")
    ['at', 'night', 'a', 'red', 'car']
    """
    return re.findall(r"[a-z0-9]+", caption.lower())


def _phrase(mention: Mention, rng: random.Random) -> Phrase:
    noun = rng.choice(NOUNS[mention.kind] if mention.kind else ANYTHING)[mention.count > 1]
    words = [rng.choice(SIZES[mention.size])] if mention.size else []
    after = ""
    if mention.texture in TEXTURES_AFTER and rng.random() < 0.3:
        after = " " + rng.choice(TEXTURES_AFTER[mention.texture])
    elif mention.texture:
        words.append(rng.choice(TEXTURES[mention.texture]))
    words += [mention.colour, noun] if mention.colour else [noun]
    number = rng.choice(NUMBERS[mention.count]) if mention.count > 1 else _article(words[0])
    return Phrase(f"{number} {' '.join(words)}{after}", noun, mention.count)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _join(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _list(phrases: Sequence[Phrase], complete: bool, rng: random.Random) -> Sentence:
    """The things one after another."""
    listed = _join([phrase.text for phrase in phrases])
    if complete:
        listed = rng.choice(("only {}", "just {}", "{} and nothing else", "{} and nothing more")).format(listed)
    form = rng.choice(LIST_PHRASES + LIST_CLAUSES)
    are = "are" if len(phrases) > 1 else phrases[0].verb("is", "are")
    # "there" agrees with what comes next: "there is a cat and two trees"
    return Sentence(form.format(listed, are=are, there=phrases[0].verb("there is", "there are")), form in LIST_CLAUSES)


def _pair(phrases: Sequence[Phrase], claims: Claims, rng: random.Random) -> Sentence:
    """Two groups of things in relation."""
    subject, other = phrases[claims.relations[0][0]], phrases[claims.relations[0][2]]
    form = rng.choice(PAIR_PHRASES + PAIR_CLAUSES)
    text = form.format(
        subject.text,
        other.text,
        there=subject.verb("there is", "there are"),
        are=subject.verb("is", "are"),
        sit=subject.verb("sits", "sit"),
        appear=subject.verb("appears", "appear"),
        have=other.verb("has", "have"),
        them="them" if other.count > 1 else "it",
        beside=_relation(claims, rng),
        near=_relation(claims, None),
    )
    return Sentence(text, form in PAIR_CLAUSES)


def _list_with_relation(phrases: Sequence[Phrase], claims: Claims, rng: random.Random) -> Sentence:
    """Three or more groups one after another, and then how two of them stand."""
    sentence = _list(phrases, False, rng)
    subject, other = phrases[claims.relations[0][0]], phrases[claims.relations[0][2]]
    are = "are" if subject.count > 1 else "is"
    forms = [", with the {} {} the {}", ", the {} being {} the {}"]
    if sentence.clause:
        forms.append(", and the {} {are} {} the {}")
    form = rng.choice(forms)
    return replace(sentence, tail=form.format(subject.noun, _relation(claims, rng), other.noun, are=are))


def _relation(claims: Claims, rng: random.Random | None) -> str:
    """The words of the relation; without `rng` the plain ones, which also go before a pronoun or at the start."""
    names = [name for _, name, _ in claims.relations]
    if len(names) == 1 and rng is not None:
        return rng.choice(RELATIONS[names[0]])
    return " and ".join(RELATIONS[name][0] for name in reversed(names))
