"""One split of a data set: pictures, captions, and which caption belongs to which picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from lavis_itm_plugins.errors import ItmError


class ImageSource(Protocol):
    """Pictures by position: a feature file, decoded pictures, or files with a processor."""

    def __len__(self) -> int: ...

    def fetch(self, rows: np.ndarray) -> Tensor:
        """What the image encoder reads for these positions, stacked, float32."""
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


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file without line ends; raises ItmError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ItmError(f"{path} does not exist; check `root`") from None
    except UnicodeDecodeError as error:
        raise ItmError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -f latin1") from None
    except OSError as error:
        raise ItmError(f"cannot read {path}: {error.strerror}") from None
    # splitlines() would also split at U+2028 and the like, which occur inside captions
    lines = text.split("\n")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def check_captions(captions: Sequence[str], where: str | Path) -> None:
    """Raise ItmError for the first caption without a letter or digit, with its line number."""
    for number, caption in enumerate(captions, start=1):
        if not any(character.isalnum() for character in caption):
            raise ItmError(f"{where}: caption {number} ({caption!r}) has no words; remove or mend it")
