"""Words as the field's released vocabularies split them: NLTK's Penn Treebank rules, for lower-case captions.

Punctuation stays as words of its own, and contractions are cut: "don't" is "do n't", "dog's" is "dog 's".
"""

from __future__ import annotations

import re
from functools import lru_cache

_RULES = [
    # quotation marks that open and close
    (re.compile(r'(^|[ (\[{<])"'), r"\1 `` "),
    (re.compile(r'"'), " '' "),
    (re.compile(r"\.\.\."), " ... "),
    # a comma or colon within a number belongs to it
    (re.compile(r"([:,])(?!\d)"), r" \1 "),
    (re.compile(r"[;@#$%&?!()\[\]{}<>]|--"), r" \g<0> "),
    # a full stop ends the caption, or a sentence before the next one unless it belongs to "p.m."
    (re.compile(r"(?<!\.)\.(?=[\s'\])}>]*$)|(?<!\.)(?<!\.\w)\.(?=\s+[^\s.])"), " . "),
    (re.compile(r"([^' ])('s|'m|'d|'ll|'re|'ve|'|n't)(?= |$)"), r"\1 \2 "),
    (re.compile(r"\b(can)(not)\b"), r"\1 \2"),
    (re.compile(r"\b(gim|lem)(me)\b"), r"\1 \2"),
    (re.compile(r"\b(gon|got|wan)(na|ta)\b"), r"\1 \2"),
]


@lru_cache(maxsize=1 << 18)
def treebank_words(caption: str) -> tuple[str, ...]:
    """The lower-case words and punctuation marks of a caption.

    >>> treebank_words("A dog's ball, on the Grass.")
    ('a', 'dog', "'s", 'ball', ',', 'on', 'the', 'grass', '.')
    >>> treebank_words("They don't run (fast)")
    ('they', 'do', "n't", 'run', '(', 'fast', ')')
    """
    text = caption.lower()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return tuple(text.split())
