"""One split of a data set: pictures, captions, and which caption belongs to which picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from lavis_itm_plugins.data.text import has_words
from lavis_itm_plugins.errors import ItmError


class ImageSource(Protocol):
    """Pictures by position: a feature file, decoded pictures, or files with a processor."""

    def __len__(self) -> int: ...

    def fetch(self, rows: np.ndarray) -> Tensor:
        """What the image encoder reads for these positions, stacked, float32; the same at every call."""
        ...


@runtime_checkable
class AugmentingSource(ImageSource, Protocol):
    """Pictures that training sees in random variants."""

    def fetch_augmented(self, rows: np.ndarray, keys: Sequence[tuple[int, ...]]) -> Tensor:
        """As `fetch`, each position in the variant that its key (whole numbers from 0) draws, whatever came before."""
        ...


@dataclass(frozen=True)
class CaptionSplit:
    """Captions (n,) and the position of each one's image among the split's images; checked when made."""

    name: str
    images: ImageSource
    image_rows: np.ndarray
    captions: Sequence[str]
    caption_image: np.ndarray
    image_names: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if not len(self.captions) or not len(self.image_rows):
            raise ItmError(f"the {self.name} split is empty; give at least one image with one caption")
        if len(self.captions) != len(self.caption_image):
            raise ItmError(f"{self.name}: {len(self.captions)} captions but {len(self.caption_image)} image ids")

    @property
    def n_images(self) -> int:
        """How many pictures the split has."""
        return len(self.image_rows)


def check_captions(captions: Sequence[str], where: str | Path) -> None:
    """Raise ItmError for the first caption without a letter or digit, with its line number."""
    for number, caption in enumerate(captions, start=1):
        if not has_words(caption):
            raise ItmError(f"{where}: caption {number} ({caption!r}) has no words; remove or mend it")
