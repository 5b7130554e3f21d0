"""The one error class for mistakes a person can mend, and the "did you mean" that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


class ItmError(ValueError):
    """Bad input, said in one sentence: what was wrong, which value, what to do.

    >>> raise ItmError("margin is -1.0; give a number of at least 0")
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: margin is -1.0; give a number of at least 0
    """

    def __init__(self, message: str) -> None:
        # torch raises a data worker's error again with that process's traceback as the message; the sentence is its end
        if message.startswith("Caught ItmError in "):
            message = message.rpartition("ItmError: ")[2].strip()
        super().__init__(message)


def nearest(word: str, choices: Iterable[str], *, limit: int = 3) -> list[str]:
    """Choices closest to a mistyped word, best first, without regard to case; none that is clearly farther.

    >>> nearest("itm_vs", ["itm_vse", "itm_bcls", "clip"])
    ['itm_vse']
    """
    by_lower = {choice.lower(): choice for choice in choices}
    hits = get_close_matches(word.lower(), by_lower, n=limit, cutoff=0.5)
    likeness = [SequenceMatcher(None, hit, word.lower()).ratio() for hit in hits]
    return [by_lower[hit] for hit, like in zip(hits, likeness, strict=True) if like > likeness[0] - 0.15]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The second half of an "unknown name" sentence: the nearest names, or all of them.

    >>> did_you_mean("marginn", ["margin", "negatives"])
    'did you mean margin?'
    >>> did_you_mean("zzz", ["margin", "negatives"])
    'choose from: margin, negatives'
    """
    known = sorted(set(choices))
    close = nearest(word, known)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from: {', '.join(known)}" if known else "there is nothing to choose from"


def unknown_name(kind: str, word: str, choices: Iterable[str]) -> ItmError:
    """The error for a name that is not among the known ones.

    >>> unknown_name("model", "itm_vs", ["itm_vse"])
    ItmError('unknown model "itm_vs"; did you mean itm_vse?')
    """
    return ItmError(f'unknown {kind} "{word}"; {did_you_mean(word, choices)}')
