"""Small models of itm_dbl, and the batch of five pairs that their tests compute with.

A test that builds one asks for the fixture `configuration`, since a matcher finds its captions there.
"""

from __future__ import annotations

import tiny
import torch
from omegaconf import OmegaConf

from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss, distillation_loss
from lavis_itm_plugins.methods.dbl import Dbl
from lavis_itm_plugins.methods.method import build_matcher, resolve_matcher

IDS = [0, 1, 2, 0, 3]
CAPTIONS = ["a red dog", "the green cat there", "a blue ball", "one red dog in the grass", "see the black boat"]
SCENARIOS = ("momentum", "frozen", "peer")
LOSSES = {
    "boost": lambda t, a, p, r: boosting_loss(t, a, form="absolute", beta=0.5, gamma=0.3, positives=p, reduction=r),
    "contrastive": lambda t, a, p, r: (
        contrastive_boosting_loss(t, a, temperature=0.2, positives=p) * (len(t) if r == "sum" else 0.5)
    ),
    "distill_ce": lambda t, a, p, r: distillation_loss(t, a, temperature=0.2, positives=p, reduction=r),
    "distill_kl": lambda t, a, p, r: distillation_loss(t, a, form="kl", temperature=0.2, positives=p, reduction=r),
    "distill_reverse_kl": lambda t, a, p, r: distillation_loss(
        t, a, form="reverse_kl", temperature=0.2, positives=p, reduction=r
    ),
    "distill_scores": lambda t, a, p, r: distillation_loss(t, a, form="scores", positives=p, reduction=r),
}


def matcher_section(**keys):
    return {**tiny.project("", "")["model"], **keys}


def plain_matcher():
    return build_matcher(resolve_matcher(matcher_section(), None, "model"))


def section(scenario="momentum", base_loss=None, official=False, **dbl):
    keys = {"arch": "itm_dbl", "model_type": scenario, "matcher": matcher_section(), "official": official}
    keys["base_loss"] = base_loss or {"name": "triplet"}
    return OmegaConf.create({**keys, "dbl": {"scenario": scenario, **dbl}})


def built(scenario, anchor, **keys):
    """A model whose anchor differs from its target, without dropout."""
    torch.manual_seed(1)
    if scenario == "frozen":
        keys = {"anchor": anchor[1], "from_anchor": False, **keys}
    model = Dbl.from_config(section(scenario, **keys)).eval()
    if scenario == "momentum":
        model.momentum_anchor.module.load_state_dict(anchor[0].state_dict())
    return model


def batch(ids=IDS, **more):
    images = torch.randn(len(ids), 3, 8, generator=torch.Generator().manual_seed(0))
    return {"image": images, "text_input": CAPTIONS[: len(ids)], "image_id": torch.tensor(ids), **more}


def scores_of(matcher, samples):
    with torch.no_grad():
        return matcher.score(matcher.encode_images(samples), matcher.encode_captions(samples["text_input"]))
