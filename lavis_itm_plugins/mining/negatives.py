"""What mining gives: candidate lists of every image and caption, and what the filters left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.config.schema import setting


@dataclass(frozen=True)
class CandidateFilters:
    """Candidates that are left out because they may be matches that nobody annotated; off by default.

    `relative_margin` m drops candidates that score above p - m |p|, where p is the caption's score with its image, or
    the best of the image's captions (with p > 0: above (1 - m) p).
    """

    skip: int = setting(0, low=0, help="leave out the best-scored candidates of each list")
    relative_margin: float | None = setting(None, low=0, below=1, help="drop what scores above (1 - m) x positive")
    max_score: float | None = setting(None, help="drop what scores above this")

    def limits(self, positives: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """The highest score that stays in each list, from each list's positive score; None without a limit.

        A query without any positive (score -inf) has no relative limit.
        """
        if self.relative_margin is None and self.max_score is None:
            return None
        highest = np.full(len(positives), np.inf if self.max_score is None else self.max_score, dtype=np.float32)
        if self.relative_margin is not None:
            own = np.where(np.isfinite(positives), positives - self.relative_margin * np.abs(positives), np.inf)
            highest = np.minimum(highest, own.astype(np.float32))
        return highest


NO_FILTERS = CandidateFilters()


@dataclass(frozen=True)
class HardNegatives:
    """Candidates of each image and caption, the hardest first: by score, then by id; -1 fills lists that are short.

    `captions` (N, K) and `images` (M, K) int32 with their scores; `positive_scores` (M,) float32: each caption with its
    own image; `report`: how many candidates each filter dropped and how many lists are short.

    >>> mined = HardNegatives(np.array([[1], [0]]), np.array([[1], [-1]]), *[np.zeros((2, 1))] * 2, np.zeros(2))
    >>> mined.valid_images.tolist()
    [1, 0]
    """

    captions: NDArray[np.int32]
    images: NDArray[np.int32]
    caption_scores: NDArray[np.floating[Any]]
    image_scores: NDArray[np.floating[Any]]
    positive_scores: NDArray[np.float32]
    report: dict[str, int] = field(default_factory=dict)

    @property
    def valid_captions(self) -> NDArray[np.int64]:
        """Length (N,) of each image's list."""
        lengths: NDArray[np.int64] = (np.asarray(self.captions) >= 0).sum(axis=1)
        return lengths

    @property
    def valid_images(self) -> NDArray[np.int64]:
        """Length (M,) of each caption's list."""
        lengths: NDArray[np.int64] = (np.asarray(self.images) >= 0).sum(axis=1)
        return lengths
