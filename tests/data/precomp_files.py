"""Files in the SCAN layout with any content, and the sentence with which reading them ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.errors import ItmError


def features_of(images, *, regions=2, dim=3, dtype=np.float32):
    """Each row's values say which image it is."""
    return (np.arange(images)[:, None, None] + np.zeros((1, regions, dim))).astype(dtype)


def write(root: Path, prefix="train", *, features, captions, ids=None, names=None) -> Path:
    root.mkdir(exist_ok=True)
    np.save(root / f"{prefix}_ims.npy", features)
    for name, lines in (("caps", captions), ("image_ids", ids), ("ids", names)):
        if lines is not None:
            text = "".join(f"{line}\n" for line in lines)
            (root / f"{prefix}_{name}.txt").write_text(text, encoding="utf-8")
    return root


def numbered(count):
    return [f"caption {number}" for number in range(count)]


def sentence(root, split="train"):
    with pytest.raises(ItmError) as caught:
        read_precomp(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)
