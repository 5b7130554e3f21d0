"""Which words of the training captions become concepts: things, properties and motions, by how often they occur."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from lavis_itm_plugins.concepts.words import IRREGULAR, MOTIONS, NOT_FORMS, PROPERTIES, STOP_WORDS
from lavis_itm_plugins.errors import ItmError

KINDS = ("object", "property", "motion")
SHARES = (0.7, 0.2, 0.1)  # of the vocabulary, by kind (github.com/BruceW91/CVSE: 210, 60 and 30 of 300)
_TOKEN = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
_VOWELS = "aeiou"
# spaCy's universal tags
_TAGS = {"NOUN": "object", "PROPN": "object", "ADJ": "property", "NUM": "property", "VERB": "motion"}


def tokens_of(caption: str) -> list[str]:
    """Lower-case words, hyphens inside a word kept.

    >>> tokens_of("A boy's T-shirt, 2 dogs.")
    ['a', "boy's", 't-shirt', 'dogs']
    """
    return _TOKEN.findall(caption.lower())


@lru_cache(maxsize=1 << 16)
def lemma(word: str) -> str:
    """The base form of a caption's word: "dogs" is dog, "riding" ride. Rules and short lists, no tagger.

    >>> [lemma(word) for word in ("dogs", "benches", "puppies", "running", "riding", "building", "jumped", "men")]
    ['dog', 'bench', 'puppy', 'run', 'ride', 'building', 'jump', 'man']
    """
    word = word.removesuffix("'s").removesuffix("'")
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in NOT_FORMS or word in PROPERTIES or word in STOP_WORDS or word in MOTIONS or len(word) < 4:
        return word
    for ending in ("ing", "ed"):
        if word.endswith(ending):
            return next((verb for verb in _stems(word.removesuffix(ending)) if verb in MOTIONS), word)
    return _without_s(word)


@lru_cache(maxsize=1 << 16)
def kind_of(word: str) -> str | None:
    """The class of a lemma, None for a stop word: what no list knows is a thing.

    >>> kind_of("dog"), kind_of("red"), kind_of("run"), kind_of("the")
    ('object', 'property', 'motion', None)
    """
    if word in STOP_WORDS or len(word) < 2:
        return None
    if word in PROPERTIES:
        return "property"
    return "motion" if word in MOTIONS or (word.endswith("ing") and word not in NOT_FORMS) else "object"


def concept_vocabulary(
    captions: Iterable[str], size: int = 300, *, min_count: int = 5, tagger: Any = None
) -> dict[str, str]:
    """The concepts of a training set and the kind of each: 7 things to 2 properties to 1 motion, by frequency.

    Args:
        captions: of the training split only.
        size: how many at most; a kind with too few words is filled up from the others.
        min_count: captions in which a concept must occur.
        tagger: a spaCy pipeline with tagger and lemmatiser (``load_tagger``); None uses word lists.

    Returns:
        Concept to kind ("object" | "property" | "motion"), things first, the most frequent first.

    Raises:
        ItmError: no word is frequent enough, or `size` is not positive.

    >>> concept_vocabulary(["a red dog runs", "the dog sat", "red balls and a dog"], 4, min_count=1)
    {'dog': 'object', 'ball': 'object', 'red': 'property', 'run': 'motion'}
    """
    if size < 1:
        raise ItmError(f"a vocabulary of {size} concepts cannot be made; give at least 1")
    tagged = _tagged_by(tagger) if tagger is not None else _listed
    counts: Counter[tuple[str, str]] = Counter()
    for found in tagged(captions):
        counts.update(found)
    best = _one_kind_each(counts)
    ranked = sorted((pair for pair in best if counts[pair] >= min_count), key=lambda pair: (-counts[pair], pair))
    if not ranked:
        raise ItmError(f"no word occurs in {min_count} training captions; lower concept.min_count")
    return {word: kind for word, kind in _fill(ranked, size)}


def load_tagger(name: str = "en_core_web_sm") -> Any | None:
    """A spaCy pipeline, or None where spaCy or that pipeline is not installed."""
    try:
        import spacy

        return spacy.load(name, disable=["parser", "ner"])
    except (ImportError, OSError):
        return None


def tagged_words(captions: Iterable[str], tagger: Any) -> Iterator[list[str]]:
    """The base forms of each caption's words by a spaCy pipeline, those that may be concepts."""
    return (sorted({word for word, _ in found}) for found in _tagged_by(tagger)(captions))


class ConceptFinder:
    """Finds which concepts a caption names: a word as it stands, or else its base form.

    >>> finder = ConceptFinder(["dog", "run", "t-shirt"])
    >>> sorted(finder("Two dogs ran after a T-shirt; one dog ate it"))
    [0, 1, 2]
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.rows = {word.lower(): row for row, word in enumerate(vocabulary)}

    def __call__(self, caption: str | Iterable[str]) -> set[int]:
        """Rows of the vocabulary; a caption may also be given as its words."""
        words = tokens_of(caption) if isinstance(caption, str) else caption
        rows = (self.rows.get(word, self.rows.get(lemma(word))) for word in words)
        return {row for row in rows if row is not None}


def _stems(stem: str) -> list[str]:
    """What a verb may be without its ending: jump, run of runn, ride of rid, carry of carri."""
    doubled = len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in _VOWELS
    return [stem, *([stem[:-1]] if doubled else []), f"{stem}e", *([f"{stem[:-1]}y"] if stem.endswith("i") else [])]


def _without_s(word: str) -> str:
    if not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        # cookies and movies lose the s alone
        return word[:-1] if word in ("cookies", "movies", "selfies", "hoodies", "brownies") else f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes", "oes")) and word not in ("shoes", "canoes", "horseshoes"):
        return word[:-2]
    return word[:-1]


def _listed(captions: Iterable[str]) -> Iterable[set[tuple[str, str]]]:
    for caption in captions:
        words = {lemma(word) for word in tokens_of(caption) if word not in STOP_WORDS}
        yield {(word, kind) for word in words if (kind := kind_of(word)) is not None}


def _tagged_by(tagger: Any) -> Callable[[Iterable[str]], Iterable[set[tuple[str, str]]]]:
    def tagged(captions: Iterable[str]) -> Iterable[set[tuple[str, str]]]:
        for document in tagger.pipe(captions, batch_size=256):
            words = ((token.lemma_.lower(), _TAGS.get(token.pos_)) for token in document)
            yield {(word, kind) for word, kind in words if kind and _TOKEN.fullmatch(word) and kind_of(word)}

    return tagged


def _one_kind_each(counts: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each word with the kind it has most often: a tagger may give it several."""
    best: dict[str, tuple[str, str]] = {}
    for pair in sorted(counts, key=lambda pair: (-counts[pair], pair)):
        best.setdefault(pair[0], pair)
    return list(best.values())


def _fill(ranked: Sequence[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """The most frequent of each kind in their shares, places left over to whatever is most frequent."""
    places = {kind: round(share * size) for kind, share in zip(KINDS, SHARES, strict=True)}
    chosen = {pair for kind in KINDS for pair in [p for p in ranked if p[1] == kind][: places[kind]]}
    rest = [pair for pair in ranked if pair not in chosen]
    chosen.update(rest[: max(size - len(chosen), 0)])
    ordered = [pair for kind in KINDS for pair in ranked if pair in chosen and pair[1] == kind]
    return ordered[:size]
