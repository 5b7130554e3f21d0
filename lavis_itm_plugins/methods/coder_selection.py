"""What CODER decides and reports between epochs: tower and fusion weight on validation, collapse, staleness."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lavis_itm_plugins.config.source import run_setting
from lavis_itm_plugins.distributed import from_first_rank, rank
from lavis_itm_plugins.evaluation import evaluate_tiles
from lavis_itm_plugins.matchers.encode import encode_split
from lavis_itm_plugins.methods.coder_branches import SIDES, fuse
from lavis_itm_plugins.methods.coder_labels import used

log = logging.getLogger(__name__)

FUSION_WEIGHTS = (0.9, 0.5, 0.6, 0.7, 0.8, 0.95, 1.0)  # of two that are equally good, the first
COLLAPSED = 0.95
PROBED = 64


def warn_of_runner() -> None:
    """Say what is missing under a runner that does not call `before_validation`."""
    if not run_setting("evaluate", True) and run_setting("runner") != "itm_runner":
        log.warning(
            "only itm_runner lets itm_coder choose the scored tower and the fusion weight; set run.runner: itm_runner, "
            "or model.fusion_weight and model.scored"
        )


def mean_cosine(vectors: Tensor) -> Tensor:
    """Mean cosine of unit vectors (n, d) with each other; near 1 they have collapsed.

    >>> mean_cosine(torch.eye(3)), mean_cosine(torch.ones(2, 1))
    (tensor(0.), tensor(1.))
    """
    count = len(vectors)
    return (vectors.sum(dim=0).square().sum() - vectors.square().sum()) / max(count * (count - 1), 1)


@torch.no_grad()
def health(vectors: Mapping[str, Tensor], filled: Tensor | None, codes: Tensor | None) -> dict[str, Tensor]:
    """A batch's mean cosines by side and branch, how full the dictionaries are, and how many prototypes are used."""
    numbers = {f"cosine_{name}": mean_cosine(rows) for name, rows in vectors.items()}
    others = {"dictionary_filled": filled, "prototypes_used": None if codes is None else used(codes)}
    return numbers | {name: value for name, value in others.items() if value is not None}


@torch.no_grad()
def choose_evaluated(coder: Any, loader: Any) -> None:
    """Find the tower and the fusion weight with the largest rsum on a split, and store both in the checkpoint."""
    config = coder.config
    towers = ("online", "momentum") if config.scored == "best" else (config.scored,)
    weights = FUSION_WEIGHTS if coder.concept is not None and config.fusion_weight is None else (1.0,)
    if len(towers) * len(weights) == 1:
        return
    tried = {}
    for tower in towers:
        matcher, branch = coder.tower(tower)
        images, captions, caption_image = encode_split(matcher, loader)
        sides = dict(zip(SIDES, (images.pooled, captions.pooled), strict=True))
        concepts = None if branch is None else branch.concepts()
        queried = {side: None if branch is None else branch(x, side, concepts) for side, x in sides.items()}
        for weight in weights if rank() == 0 else ():
            both = [x if branch is None else fuse(x, queried[side], weight) for side, x in sides.items()]
            metrics = evaluate_tiles(*both, _products, caption_image)
            tried[tower, weight] = metrics["rsum"]
    tower, weight = from_first_rank(max(tried, key=tried.__getitem__) if tried else None)
    coder.fusion_weight.fill_(weight)
    coder.key_tower_scored.fill_(tower == "momentum")
    if rank() == 0:
        best = {name: max(value for (owner, _), value in tried.items() if owner == name) for name in towers}
        said = ", ".join(f"{name} tower rsum {value:.1f}" for name, value in best.items())
        log.info("chosen on validation: %s tower, fusion weight %.2f (%s)", tower, weight, said)


def _products(images: Tensor, captions: Tensor) -> Tensor:
    return images @ captions.T


@torch.no_grad()
def log_health(coder: Any, dataset: Any) -> None:
    """One line: how alike the dictionaries' keys are, and how far the oldest have drifted from the key tower now."""
    filled = int(coder.keys.dictionaries["image_instance"].filled)
    if not filled or rank() != 0:
        return
    alike = {}
    for name, dictionary in coder.keys.dictionaries.items():
        alike[name] = float(mean_cosine(dictionary.keys[dictionary.newest(filled)]))
    said = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in alike.items())
    log.info("dictionaries: %d keys, mean cosine %s%s", filled, said, _staleness(coder, dataset, filled))
    collapsed = [name for name, value in alike.items() if value > COLLAPSED]
    if collapsed:
        log.warning(
            "%s: keys are nearly equal (mean cosine above %.2f); raise dcl.temperature or lower run.init_lr",
            *(", ".join(collapsed), COLLAPSED),
        )


def _staleness(coder: Any, dataset: Any, filled: int) -> str:
    """Mean cosine of stored keys with the same items encoded now, for the newest, middle and oldest."""
    newest = coder.keys.dictionaries["image_instance"].newest(filled)
    if bool((coder.keys.dictionaries["image_instance"].items[newest] < 0).any()):
        return ""
    parts = []
    for start in sorted({0, max((filled - PROBED) // 2, 0), max(filled - PROBED, 0)}):
        slots = newest[start : start + PROBED]
        items = coder.keys.dictionaries["image_instance"].items[slots].tolist()
        batch = dataset.collater([dataset[item] for item in items])
        matcher, _ = coder.tower("momentum")
        now = {"image": matcher.encode_images(batch), "caption": matcher.encode_captions(batch["text_input"])}
        cosines = [
            float(cosine_similarity(now[side].pooled, coder.keys.dictionaries[f"{side}_instance"].keys[slots]).mean())
            for side in SIDES
        ]
        parts.append(f"{start}: {cosines[0]:.3f} {cosines[1]:.3f}")
    return f"; cosine with their encoding now, by age in pairs (images, captions): {', '.join(parts)}"
