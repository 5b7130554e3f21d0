"""Lines in ConceptNet's five columns, written here; none is of ConceptNet."""

from __future__ import annotations


def assertion(start: str, relation: str, end: str, weight: object = 1.0) -> bytes:
    """One line; `start` and `end` may carry senses ("dog/n/wn"), `weight` None leaves the weight out."""
    about = '{"dataset": "/d/ours"' + ("" if weight is None else f', "weight": {weight}') + "}"
    a, b = f"/c/en/{start}", f"/c/en/{end}"
    return f"/a/[/r/{relation}/,{a}/,{b}/]\t/r/{relation}\t{a}\t{b}\t{about}\n".encode()


def assertions(text: str) -> bytes:
    """Several lines of "dog CapableOf run 2.0, ball HasProperty red 1.0"."""
    return b"".join(assertion(*part.split()) for part in text.split(","))
