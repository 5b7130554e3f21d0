"""What every consumer of scores checks: numbers to rank with, finite, and the image id of every caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lavis_itm_plugins.errors import ItmError

Scores: TypeAlias = NDArray[Any] | torch.Tensor
ImageIds: TypeAlias = NDArray[np.integer[Any]] | torch.Tensor | Sequence[int]


def score_array(scores: Scores) -> NDArray[Any]:
    """Scores (n_images, n_captions) as a numpy array of float32, or float64 where they came so; never modified.

    >>> score_array(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype
    dtype('float32')
    """
    if isinstance(scores, torch.Tensor):
        scores = scores.detach()
        scores = (scores.float() if scores.dtype == torch.bfloat16 else scores).cpu().numpy()
    array = np.asarray(scores)
    if array.ndim != 2:
        raise ItmError(f"scores has shape {array.shape}; give (n_images, n_captions)")
    if array.dtype.kind not in "fiu":
        raise ItmError(f"scores is {array.dtype}; give real numbers")
    return array if array.dtype in (np.float32, np.float64) else array.astype(_exact_float(array.dtype))


def _exact_float(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    return np.float32 if dtype == np.float16 else np.float64


def check_finite(scores: NDArray[Any], first_image: int = 0, first_caption: int = 0) -> None:
    """Raise ItmError if a score is NaN or infinite; the position is counted from the first image and caption given.

    >>> check_finite(np.array([[0.5, np.nan], [np.inf, 0.1]]))
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: 2 of 4 scores are not finite, the first is nan at image 0, caption 1; ...
    """
    finite = np.isfinite(scores)
    if finite.all():
        return
    bad = np.argwhere(~finite)
    row, column = bad[0]
    raise ItmError(
        f"{len(bad)} of {scores.size} scores are not finite, the first is {scores[row, column]} at image "
        f"{first_image + row}, caption {first_caption + column}; they cannot be ranked, so look for the step or the "
        "weights that produced them"
    )


def image_ids(caption_image: ImageIds, n_images: int, n_captions: int | None = None) -> NDArray[np.int64]:
    """``caption_image`` (n_captions,), the row of each caption's image, as int64; every image must have a caption.

    Raises ItmError for anything else, and if there is nothing to rank.

    >>> image_ids([0, 0, 2], 3)
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: 1 of 3 images have no caption, the first is image 1; leave them out of the scores
    """
    array = (
        caption_image.detach().cpu().numpy() if isinstance(caption_image, torch.Tensor) else np.asarray(caption_image)
    )
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ItmError(f"caption_image is {array.dtype} of shape {array.shape}; give integers, one per caption")
    if n_captions not in (None, len(array)):
        raise ItmError(f"caption_image has {len(array)} entries for {n_captions} captions; give one per caption")
    if not n_images:
        raise ItmError(f"there are no images for {len(array)} captions; there is nothing to rank")
    ids = array.astype(np.int64)
    outside = np.flatnonzero((ids < 0) | (ids >= n_images))
    if outside.size:
        first = outside[0]
        raise ItmError(
            f"caption {first} has image id {ids[first]}; ids must be rows of the scores, 0 to {n_images - 1}"
        )
    missing = np.flatnonzero(np.bincount(ids, minlength=n_images) == 0)
    if missing.size:
        raise ItmError(
            f"{missing.size} of {n_images} images have no caption, the first is image {missing[0]}; "
            "leave them out of the scores"
        )
    return ids
