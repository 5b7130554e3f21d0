"""Several models as one: the mean of their scores, as AOQ's and other papers' tables report it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation.arrays import Scores, score_array
from lavis_itm_plugins.evaluation.tiles import Items, ScoreFunction


def ensemble_scores(matrices: Sequence[Scores]) -> NDArray[Any]:
    """Mean of score matrices (n_images, n_captions) over the same images and captions.

    Raises ItmError for none, or for matrices of different shape.

    >>> import numpy as np
    >>> ensemble_scores([np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]])]).tolist()
    [[0.5, 0.0]]
    """
    arrays = [score_array(matrix) for matrix in matrices]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ItmError(f"the scores have shapes {sorted(shapes)}; give at least one matrix, all of the same items")
    # one after the other, so that the mean of equal matrices is that matrix
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    mean: NDArray[Any] = total / len(arrays)
    return mean


class JointItems:
    """What several models made of the same items; a slice is the list of their slices.

    >>> JointItems(["abc", "xyz"])[1:2]
    ['b', 'y']
    """

    def __init__(self, parts: Sequence[Items]) -> None:
        """Raises ItmError when the models saw different numbers of items."""
        if len({len(part) for part in parts}) != 1:
            raise ItmError(f"the models encoded {[len(part) for part in parts]} items; evaluate them on the same split")
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts[0])

    def __getitem__(self, items: slice) -> list[Any]:
        return [part[items] for part in self._parts]


def joint_score(scores: Sequence[Callable[[Any, Any], Scores]]) -> ScoreFunction:
    """The mean score of tiles of `JointItems`, for `score_tiles` and `evaluate_tiles`."""

    def score(images: Sequence[Any], captions: Sequence[Any]) -> Scores:
        tiles = [one(*pair) for one, *pair in zip(scores, images, captions, strict=True)]
        return ensemble_scores(tiles)

    return score
