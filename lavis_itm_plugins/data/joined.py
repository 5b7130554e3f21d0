"""Several training sets as one, with image ids that stay apart."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from lavis_itm_plugins.data.randomness import seeded
from lavis_itm_plugins.errors import ItmError


class JoinedDataset(Dataset):
    """Training sets one after the other; each one's image ids are shifted past those before it.

    LAVIS's own concatenation lets ids start at 0 in every set, which makes strangers positives of each other.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.ends, self.shifts, end, shift = [], [], 0, 0
        for part in self.parts:
            self.shifts.append(shift)
            end, shift = end + len(part), shift + number_of_images(part)
            self.ends.append(end)

    def __len__(self) -> int:
        return self.ends[-1]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins."""
        for part in self.parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def collater(self, samples: Any) -> Any:
        """Keys that all items share, collated as the first set does it; no `image_mask` means all regions."""
        if any("image_mask" in sample for sample in samples):
            samples = [{"image_mask": torch.ones(len(item["image"]), dtype=torch.bool), **item} for item in samples]
        shared = set.intersection(*(set(sample) for sample in samples))
        return self.parts[0].collater([{key: sample[key] for key in sample if key in shared} for sample in samples])

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = bisect.bisect_right(self.ends, index)
        start = self.ends[number - 1] if number else 0
        sample = dict(self.parts[number][index - start])
        sample["image_id"] = torch.as_tensor(sample["image_id"]) + self.shifts[number]
        sample.update(index=index, instance_id=str(index))
        return sample


def number_of_images(dataset: Any) -> int:
    """One more than the largest image id of a training set, ours or LAVIS's."""
    if hasattr(dataset, "image_ids"):
        return int(max(dataset.image_ids)) + 1
    return len(dataset.img_ids)


def check_splits(datasets: Mapping[str, Mapping[str, Any]], run: Any) -> None:
    """Raise ItmError when the run names no training data, or a split that two data sets have."""
    for split in ("val", "test"):
        owners = [name for name, parts in datasets.items() if split in parts]
        if len(owners) > 1:
            raise ItmError(
                f"{' and '.join(owners)} both have a {split} split; metrics need one, so drop it in the others"
            )
    if not run.get("evaluate") and not any("train" in parts for parts in datasets.values()):
        raise ItmError(f"{', '.join(datasets)}: no training split; name a data set with training captions")


def training_set(datasets: Mapping[str, Mapping[str, Any]]) -> Any:
    """The training items of all data sets; None when there are none. Raises ItmError when their images do not fit."""
    parts = {name: splits["train"] for name, splits in datasets.items() if "train" in splits}
    if len(parts) < 2:
        return next(iter(parts.values()), None)
    check_shapes(parts)
    return JoinedDataset(list(parts.values()))


def check_shapes(parts: Mapping[str, Any]) -> None:
    """Raise ItmError for training sets whose images no batch can hold together; looks at the first of each."""
    shapes = {}
    for name, part in parts.items():
        # LAVIS's processors draw from the global generators, which must go on as if nobody had looked
        with seeded(0):
            image = part[0].get("image") if len(part) else None
        if isinstance(image, torch.Tensor):
            shapes[name] = tuple(image.shape)
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{shape} in {name}" for name, shape in shapes.items())
        raise ItmError(
            f"the training images have different shapes: {told}; give all the same image_size, or one kind of features"
        )


def evaluation_set(datasets: Mapping[str, Mapping[str, Any]], split: str) -> Any:
    """The one data set that has the split, or None."""
    return next((splits[split] for splits in datasets.values() if split in splits), None)
