"""What cannot be mined from is named in one sentence, and no sound embedding is refused."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining import mine_hard_negatives

GOOD = np.eye(3, dtype=np.float32)


def broadcast(rows: int) -> np.ndarray:
    return np.broadcast_to(np.zeros((1, 2), np.float32), (rows, 2))


@pytest.mark.parametrize(
    ("images", "captions", "owners", "options", "message"),
    [
        (GOOD, GOOD[:, :2], [0, 1, 2], {}, "image_embeds have 3 values each and caption_embeds 2"),
        (GOOD[0], GOOD, [0, 1, 2], {}, r"image_embeds is \(3,\)"),
        (GOOD.astype(int), GOOD, [0, 1, 2], {}, "image_embeds is int64; give floating-point"),
        (GOOD.tolist(), GOOD, [0, 1, 2], {}, "image_embeds is list"),
        (GOOD, GOOD, [0, 1], {}, "caption_image has 2 entries; give 3"),
        (GOOD, GOOD, [0, 1, 3], {}, "caption 2 has image number 3; give rows of image_embeds, 0 to 2"),
        (GOOD, GOOD, [0, 1, -1], {}, "caption 2 has image number -1"),
        (GOOD, GOOD, [0.0, 1, 2], {}, "caption_image is float64"),
        (GOOD, GOOD, [0, 1, 2], {"captions": ["a"]}, "captions has 1 entries; give 3"),
        (GOOD, GOOD, [0, 1, 2], {"image_groups": [0]}, "image_groups has 1 entries; give 3"),
        (GOOD, GOOD, [0, 1, 2], {"backend": "fais"}, 'unknown backend "fais"; did you mean faiss'),
        (GOOD, GOOD, [0, 1, 2], {"captions_per_image": 0}, "captions_per_image is 0; give a whole number"),
        (GOOD, GOOD, [0, 1, 2], {"memory_budget_mb": 0}, "memory_budget_mb is 0"),
        (
            GOOD * np.nan,
            GOOD,
            [0, 1, 2],
            {},
            "the score of image 0 and caption 0 is not finite; look for the embedding",
        ),
        (GOOD, np.diag([1, np.inf, 1]).astype(np.float32), [0, 1, 2], {}, "the score of image . and caption 1 is not"),
        (GOOD[:, :2], broadcast(2**31), [0], {}, "caption_embeds has 2147483648 rows; candidate lists hold 32-bit"),
    ],
)
def test_bad_input_is_named(images, captions, owners, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        mine_hard_negatives(images, captions, owners, **options)


def test_large_finite_scores_are_no_error() -> None:
    """Their sum overflows, which is no sign of a broken embedding."""
    huge = np.full((3, 1), 1.5e19, np.float32)
    mined = mine_hard_negatives(huge, huge, [0, 1, 2], captions_per_image=1, images_per_caption=1)
    assert mined.captions[:, 0].tolist() == [1, 0, 0]


def test_without_faiss_a_sentence_says_what_to_install(medium, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ItmError, match=r'needs faiss; run: pip install "lavis-itm-plugins\[faiss\]"'):
        mine_hard_negatives(*medium, backend="faiss")


def test_faiss_refuses_what_is_not_finite(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    with pytest.raises(ItmError, match="row 1 of caption_embeds is not finite"):
        mine_hard_negatives(GOOD, np.diag([1, np.inf, 1]).astype(np.float32), [0, 1, 2], backend="faiss")
