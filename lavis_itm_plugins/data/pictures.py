"""Pictures as image sources: held in memory as bytes (small generated data), or decoded from files when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from lavis_itm_plugins.data.randomness import seeded
from lavis_itm_plugins.errors import ItmError


class DecodedPictures:
    """Pictures (n, height, width, 3) uint8, given out as float32 (n, 3, height, width) in [0, 1]."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> DecodedPictures:
        """Decode files of one size."""
        return cls(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]))

    def __len__(self) -> int:
        return len(self.array)

    def fetch(self, rows: np.ndarray) -> Tensor:
        """Pictures of these rows."""
        return torch.from_numpy(self.array[rows]).permute(0, 3, 1, 2).float().div_(255)


class PictureFiles:
    """Image files through a processor (picture to tensor of one size); training may see random variants.

    `fetch` is the same at every call; `fetch_augmented` is the same for the same key.
    """

    def __init__(
        self,
        files: Sequence[Path],
        processor: Callable[[Image.Image], Tensor],
        augment: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        self.files, self.processor, self.augment = files, processor, augment or processor

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, rows: np.ndarray) -> Tensor:
        """Pictures (n, 3, height, width) of these rows; raises ItmError for one that cannot be decoded."""
        return torch.stack([self.processor(open_picture(self.files[row])) for row in rows])

    def fetch_augmented(self, rows: np.ndarray, keys: Sequence[tuple[int, ...]]) -> Tensor:
        """As `fetch`, through the training processor, whose draws are a function of each key."""
        pictures = []
        for row, key in zip(rows, keys, strict=True):
            with seeded(*key):
                pictures.append(self.augment(open_picture(self.files[row])))
        return torch.stack(pictures)


class _WholeFiles:
    """While entered, by any number of threads, Pillow refuses truncated files.

    LAVIS tells Pillow at import to fill what is missing with grey, in the whole process.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.before = Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                ImageFile.LOAD_TRUNCATED_IMAGES = self.before


_WHOLE_FILES = _WholeFiles()


def open_picture(path: Path) -> Image.Image:
    """A picture in RGB, turned as its camera noted; raises ItmError with the path when it cannot be decoded.

    Pillow's limit on the number of pixels holds, as an error where Pillow only warns.
    """
    try:
        with _WHOLE_FILES, Image.open(path) as picture:
            width, height = picture.size
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            return _upright(picture).convert("RGB")
    except FileNotFoundError:
        raise ItmError(f"image file {path} does not exist; check the image folder") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = " ".join(str(error).split())
        raise ItmError(f"image {path} is larger than Pillow's safe limit ({reason}); make it smaller") from None
    except Exception as error:  # a decoder on broken bytes may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ItmError(f"image {path} cannot be decoded ({reason}); replace or remove it") from error


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as the camera was held, where it noted that."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # broken notes say nothing about the pixels
        return picture
