"""Generated captions are plain English, and say of their scene what they claim and no more."""

from __future__ import annotations

import random
import re
from collections import Counter

from data.small_scenes import seeds
from hypothesis import given

from lavis_itm_plugins.data.scenes import Claims
from lavis_itm_plugins.data.scenes import captions as grammar
from lavis_itm_plugins.data.scenes.captions import write_captions
from lavis_itm_plugins.data.scenes.draw import COLOURS
from lavis_itm_plugins.data.scenes.world import sample_scene

KIND_OF = {form: kind for kind, nouns in grammar.NOUNS.items() for noun in nouns for form in noun}
SIZE_OF = {word: size for size, words in grammar.SIZES.items() for word in words}
TEXTURE_OF = {
    **{word: texture for texture, words in grammar.TEXTURES.items() for word in words},
    **{"stripes": "striped", "dots": "dotted", "spots": "dotted"},
}
NOUN = re.compile(rf"\b({'|'.join(sorted(KIND_OF, key=len, reverse=True))})\b")
NOUN_OR_THING = re.compile(NOUN.pattern + r"|\bthings?\b|\bobjects?\b")
NUMBERS = {"two": 2, "pair of": 2, "couple of": 2, "three": 3, "four": 4}
RELATION_WORDS = {
    "left": ("left",),
    "right": ("right",),
    "above": ("above", "over", "higher"),
    "below": ("below", "under", "beneath", "lower"),
}


def captioned(seed: int) -> list[tuple[str, Claims]]:
    rng = random.Random(seed)
    return write_captions(sample_scene(rng), rng)


@given(seeds)
def test_captions_are_plain_english(seed: int) -> None:
    written = captioned(seed)
    assert len({text for text, _ in written}) == 5
    for text, _ in written:
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)+", text), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text
        assert not re.search(r"\bthere is (only |just )?(two|three|four|a couple)\b", text), text
        assert not re.search(r"\bthere are (only |just )?an? (?!couple)", text), text
        first = re.match(r"(a|an|two|three|four) [^,]*? (is|are|sits?|appears?|has|have) ", text)
        if first and not re.search(r" (with|and|couple) ", first.group()):
            several = first.group(1) in NUMBERS
            assert several == (first.group(2) in ("are", "sit", "appear", "have")), text


@given(seeds)
def test_captions_say_their_claims_and_no_more(seed: int) -> None:
    for text, claims in captioned(seed):
        words = text.split(" ")
        place = [name for name, places in grammar.BACKGROUNDS.items() if any(p in text for p in places)]
        assert place == [claims.background] * (claims.background is not None), text
        bare = re.sub("|".join(p for places in grammar.BACKGROUNDS.values() for p in places), "", text)
        bare = bare.split(", with the ")[0].split(", and the ")[0].split(", the ")[0].replace(",", "")
        expected = claims.mentions
        assert Counter(w for w in bare.split() if w in COLOURS) == Counter(m.colour for m in expected if m.colour)
        assert Counter(SIZE_OF[w] for w in bare.split() if w in SIZE_OF) == Counter(m.size for m in expected if m.size)
        textures = Counter(TEXTURE_OF[w] for w in bare.split() if w in TEXTURE_OF)
        assert textures == Counter(m.texture for m in expected if m.texture), text
        assert Counter(KIND_OF[n] for n in NOUN.findall(bare)) == Counter(m.kind for m in expected if m.kind), text
        assert claims.complete == any(w in words for w in ("only", "just", "nothing")), text


@given(seeds)
def test_numbers_and_plurals_agree_with_the_claims(seed: int) -> None:
    for text, claims in captioned(seed):
        found = re.findall(r"\b(two|pair of|couple of|three|four)\b", text)
        claimed = Counter(mention.count for mention in claims.mentions if mention.count > 1)
        assert Counter(NUMBERS[word] for word in found) == claimed, text
        for mention in claims.mentions:
            nouns = grammar.NOUNS[mention.kind] if mention.kind else grammar.ANYTHING
            assert any(re.search(rf"\b{noun[mention.count > 1]}\b", text) for noun in nouns), text


@given(seeds)
def test_relations_point_the_right_way(seed: int) -> None:
    for text, claims in captioned(seed):
        kinds = [mention.kind for mention in claims.mentions]
        if not claims.relations or len(set(kinds)) < 2:
            continue
        subject, _, other = claims.relations[0]
        tail = re.search(r", (?:with|and) the (.*)|, the (.* being .*)", text)
        told = (tail.group(1) or tail.group(2)) if tail else text
        bare = re.sub("|".join(p for places in grammar.BACKGROUNDS.values() for p in places), "", told)
        names = {name for name, words in RELATION_WORDS.items() if set(words) & set(bare.split())}
        assert names == {name for _, name, _ in claims.relations}, text
        order = [KIND_OF.get(found[0]) for found in NOUN_OR_THING.finditer(bare)]
        start = re.match(r"[, ]*(above|below|to the)\b", bare)
        # "a tree with a star above it" and "above a tree is a star" name the subject last
        subject_last = start or re.search(r"\b(it|them)\b", bare)
        assert order == ([kinds[other], kinds[subject]] if subject_last else [kinds[subject], kinds[other]]), text
