"""Where the mined scores come from: two arrays of embeddings, or anything that scores tiles and pairs."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavis_itm_plugins.errors import ItmError

# float16 embeddings of unit length come this near to 1
_UNIT = 2e-3
_ROWS_AT_ONCE = 4096


class Scorer(Protocol):
    """Scores of tiles and of aligned pairs of N images and M captions."""

    n_images: int
    n_captions: int

    def tile(self, images: slice, captions: slice) -> Tensor:
        """Scores (images, captions), on any device."""
        ...

    def pairs(self, images: NDArray[np.int64], captions: slice) -> Tensor:
        """Scores (n,) of aligned pairs."""
        ...


class DotProducts:
    """Products of embeddings (N, D) and (M, D), computed in float32 whatever they are stored in.

    Arrays may be memory maps; tensors may be on a GPU, which then does the work. With `normalize` rows get length 1.
    """

    def __init__(self, images: Any, captions: Any, *, normalize: bool = False) -> None:
        for name, embeds in (("image_embeds", images), ("caption_embeds", captions)):
            _check(name, embeds)
        if images.shape[1] != captions.shape[1]:
            raise ItmError(
                f"image_embeds have {images.shape[1]} values each and caption_embeds {captions.shape[1]}; "
                "give both from one model"
            )
        self.n_images, self.n_captions = len(images), len(captions)
        self._images, self._captions, self._normalize = images, captions, normalize
        self._memory: Tensor | None = None

    def tile(self, images: slice, captions: slice) -> Tensor:
        """Scores (images, captions), in memory that the next call uses again."""
        rows, columns = self._rows(self._images, images), self._rows(self._captions, captions)
        size = len(rows) * len(columns)
        if self._memory is None or len(self._memory) < size:
            self._memory = rows.new_empty(size)
        return torch.mm(rows, columns.t(), out=self._memory[:size].view(len(rows), len(columns)))

    def pairs(self, images: NDArray[np.int64], captions: slice) -> Tensor:
        """Scores (n,) of aligned pairs."""
        return (self._rows(self._images, images) * self._rows(self._captions, captions)).sum(dim=1)

    def check_unit(self) -> None:
        """Raise ItmError unless every embedding has length 1: a product would then be no cosine."""
        for name, embeds in (("image_embeds", self._images), ("caption_embeds", self._captions)):
            for start in range(0, len(embeds), _ROWS_AT_ONCE):
                norms = self._rows(embeds, slice(start, start + _ROWS_AT_ONCE)).norm(dim=1)
                # written so that a norm that is not a number is refused too
                bad = (~((norms - 1).abs() < _UNIT)).nonzero()
                if len(bad) and not self._normalize:
                    row = int(bad[0])
                    raise ItmError(
                        f"row {start + row} of {name} has length {float(norms[row]):.4g}, not 1; normalize the "
                        "embeddings, or say that their plain product is the score"
                    )

    def _rows(self, embeds: Any, rows: Any) -> Tensor:
        found = embeds[rows] if isinstance(embeds, Tensor) else _as_tensor(embeds[rows])
        found = found.detach().float()
        return torch.nn.functional.normalize(found, dim=1) if self._normalize else found


def positive_scores(scorer: Scorer, caption_image: NDArray[np.int64]) -> NDArray[np.float32]:
    """Score (M,) of each caption with its own image."""
    scores = np.empty(scorer.n_captions, dtype=np.float32)
    for start in range(0, scorer.n_captions, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, scorer.n_captions))
        scores[rows] = scorer.pairs(caption_image[rows], rows).detach().float().cpu().numpy()
    return scores


def _as_tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # a memory map is read-only, and nothing writes to it
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _check(name: str, embeds: Any) -> None:
    if not hasattr(embeds, "shape") or not hasattr(embeds, "dtype") or len(embeds.shape) != 2:
        found = tuple(embeds.shape) if hasattr(embeds, "shape") else type(embeds).__name__
        raise ItmError(f"{name} is {found}; give an array or a tensor (n, D)")
    real = embeds.is_floating_point() if isinstance(embeds, Tensor) else embeds.dtype.kind == "f"
    if not real:
        raise ItmError(f"{name} is {embeds.dtype}; give floating-point embeddings")
    if len(embeds) >= 2**31:
        raise ItmError(f"{name} has {len(embeds)} rows; candidate lists hold 32-bit numbers, so mine a part of them")
