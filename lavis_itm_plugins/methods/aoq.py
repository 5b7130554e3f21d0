"""`itm_aoq`: Adaptive Offline Quintuplet loss. Hard negatives mined over the whole training set join each pair.

Chen, Deng, Luo: Adaptive Offline Quintuplet Loss for Image-Text Matching, ECCV 2020, arXiv 2003.03669, and its released
code (github.com/sunnychencool/AOQ). Round one is a trained matcher that finds the candidates; round two trains with the
loss of `losses/quintuplet.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lavis_itm_plugins.distributed import gather_encoded, gather_rows
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import (
    offline_hinge_loss,
    offline_infonce_loss,
    quintuplet_loss,
    shared_distillation_loss,
    shared_infonce_loss,
)
from lavis_itm_plugins.losses.quintuplet import quintuplet_statistics
from lavis_itm_plugins.matchers.base import starting_weights
from lavis_itm_plugins.methods.aoq_config import AoqConfig, check_aoq
from lavis_itm_plugins.methods.base import EncodedBatch, batch_image_ids, same_image
from lavis_itm_plugins.methods.candidates import MinedLists
from lavis_itm_plugins.methods.frozen import anchor_file
from lavis_itm_plugins.methods.method import Method
from lavis_itm_plugins.methods.offline import MinedItems, OfflineCaptionDataset, check_trainable, encode_with_mined
from lavis_itm_plugins.methods.round_one import RoundOne
from lavis_itm_plugins.mining.sampling import QuintupleSampler
from lavis_itm_plugins.paths import user_path
from lavis_itm_plugins.registry import register_model


@register_model("itm_aoq")
class Aoq(Method):
    """A matcher trained against its batch and against one mined caption and one mined image for each pair."""

    arch = "itm_aoq"
    config_class = AoqConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "two_rounds": "models/itm_aoq_two_rounds.yaml",
        "refresh": "models/itm_aoq_refresh.yaml",
    }

    @classmethod
    def parse_config(cls, cfg: Any, section: str = "model") -> AoqConfig:
        """As every method's; with `init: checkpoint` the round-one checkpoint becomes `matcher.finetuned`."""
        config: AoqConfig = super().parse_config(cfg, section)
        check_aoq(config, section)
        if config.init == "scratch" or starting_weights(config.matcher):
            return config
        weights = {"load_finetuned": True, "finetuned": str(anchor_file(config.candidates.source))}
        return replace(config, matcher={**config.matcher, **weights})

    def setup(self, stored: Mapping[str, Any]) -> None:
        """No module of its own: the candidate lists are files, and the state says which."""
        self.lists = MinedLists(self.config.candidates)
        offline, source = self.config.aoq.offline, self.config.candidates.source
        self.round_one = RoundOne(str(source), self.matcher.encode_chunk) if self.config.aoq.distill else None
        if offline != "hinges" and self.matcher.has_own_contrast:
            raise ItmError(
                f"model.aoq.offline: {offline} changes base_loss, which {self.matcher.arch} with objective: "
                f"{self.matcher.config.objective} does not use; choose offline: hinges, or objective: plain"
            )

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The base loss, with the offline terms from the first mining on."""
        if int(batch.get("epoch", 0)) < self.config.candidates.start_epoch:
            encoded = self.encoded(batch)
            scores = self.matcher.score(encoded.images, encoded.captions)
            return self.matcher.matching_losses(batch, encoded, scores)
        if "offline_image" not in batch:
            raise ItmError("itm_aoq mines in hooks that only itm_runner calls; set run.runner: itm_runner")
        encoded, mined, items = self._encode(batch)
        scores = self.matcher.score(encoded.images, encoded.captions)
        parts = self.matcher.matching_losses(batch, encoded, scores)
        apart = gather_rows(batch["apart"].to(self.device))
        mined["pair_mask"] = (apart | (self.config.aoq.cross_pair == "keep")) & self.config.aoq.pairs
        if self.config.aoq.offline == "shared":
            parts |= self._shared_losses(batch, encoded, scores, items)
        else:
            parts |= self._offline_losses(int(batch.get("epoch", 0)), scores, mined, encoded.positives)
        told = quintuplet_statistics(scores, **mined, **self._weighting(), positives=encoded.positives)
        told["cross_pairs"] = 1 - apart.float().mean()
        return parts | {f"aoq_{name}": value for name, value in told.items()}

    def _encode(self, batch: Mapping[str, Any]) -> tuple[EncodedBatch, dict[str, Tensor], MinedItems | None]:
        """All items in one pass: the pairs of all ranks, the four mined scores (B,) of each, items that are shared."""
        size, matcher = len(batch["text_input"]), self.matcher
        images, captions = encode_with_mined(matcher, batch)
        first, third = slice(0, size), slice(size, 2 * size)
        # without pairs I4 and T4 are not loaded; any score stands for theirs, since it is masked
        behind = (1 + self.config.aoq.draws) * size
        fourth = slice(behind, behind + size) if self.config.aoq.pairs else third
        pairs = {
            "offline_captions": (images[first], captions[third]),
            "offline_images": (images[third], captions[first]),
            "offline_pairs": (images[third], captions[third]),
            "partner_pairs": (images[fourth], captions[fourth]),
        }
        # differences of scores are what counts: never in half precision
        with torch.autocast(self.device.type, enabled=False):
            mined = {name: gather_rows(matcher.score_pairs(*pair)) for name, pair in pairs.items()}
        image_ids = gather_rows(batch_image_ids(batch, matcher.device))
        positives = None if self.config.official else same_image(image_ids)
        gathered = gather_encoded(images[first]), gather_encoded(captions[first])
        items = None
        if self.config.aoq.offline == "shared":
            ids = batch["offline_image_id"].to(self.device)
            items = MinedItems.gathered(images[size:], captions[size:], ids, pairs=self.config.aoq.pairs)
        return EncodedBatch(*gathered, image_ids, positives), mined, items

    def _shared_losses(
        self, batch: Mapping[str, Any], encoded: EncodedBatch, scores: Tensor, items: MinedItems
    ) -> dict[str, Tensor]:
        """InfoNCE over the batch and everything that was mined for it, and what round one thinks of all these."""
        aoq, shared = self.config.aoq, items.scored(self.matcher, encoded)
        temperature = self.config.base_loss.temperature or 0.05
        parts = {"loss_base": shared_infonce_loss(scores, **shared, temperature=temperature)}
        if self.round_one is not None:
            anchor = self.round_one.scores(batch, self.device)
            distilled = shared_distillation_loss(scores, **anchor, **shared, temperature=aoq.distill_temperature)
            parts["loss_distill"] = aoq.distill * distilled
        return parts

    def _weighting(self) -> dict[str, float]:
        """Margins, alpha and beta; without adaptive weights every weight is 1."""
        aoq = self.config.aoq
        margins = {"online_margin": self.config.base_loss.margin, "offline_margin": aoq.offline_margin}
        alpha, beta = (aoq.alpha, aoq.beta) if aoq.adaptive else (math.inf, 1.0)
        return {**margins, "alpha": alpha, "beta": beta}

    def _offline_losses(
        self, epoch: int, scores: Tensor, mined: Mapping[str, Tensor], positives: Tensor | None
    ) -> dict[str, Tensor]:
        """What replaces the base loss or joins it."""
        aoq, base = self.config.aoq, self.config.base_loss
        if aoq.offline == "logits":
            temperature = base.temperature or 0.05
            return {"loss_base": offline_infonce_loss(scores, **mined, temperature=temperature, positives=positives)}
        reduction = base.reduction if base.name == "triplet" else "mean"
        hinges = offline_hinge_loss(scores, **mined, offline_margin=aoq.offline_margin, reduction=reduction)
        parts = {"loss_offline": aoq.offline_weight * hinges}
        hardest = base.name == "triplet" and base.negatives == "hardest" and epoch >= base.warmup_epochs
        if hardest and not self.matcher.has_own_contrast:
            weighting = {**self._weighting(), "weight_min": aoq.weight_min, "detach_weights": aoq.detach_weights}
            whole = quintuplet_loss(scores, **mined, **weighting, positives=positives, reduction=reduction)
            # its offline terms are shown, and weighed, apart
            parts["loss_base"] = whole - hinges
        return parts

    def wrap_dataset(self, dataset: Dataset) -> Dataset:
        """Items with mined negatives."""
        return OfflineCaptionDataset(check_trainable(dataset), pairs=self.config.aoq.pairs, draws=self.config.aoq.draws)

    def before_training(self, context: Any) -> None:
        """Forget the lists of a run whose checkpoint this one starts from; say early what would stop it later."""
        plan, fresh = self.config.candidates, not (context.state.epoch or context.state.step)
        if fresh:
            self.lists.forget()
        if plan.source is not None and fresh and not user_path(plan.source).exists():
            raise ItmError(f"model.candidates.source: {plan.source} does not exist; give a run folder of round one")
        if plan.source is None and fresh and not plan.start_epoch and not self._starts_trained(context):
            raise ItmError(
                "itm_aoq has nothing to mine with: set model.candidates.source to a run folder of round one, or "
                "model.candidates.start_epoch to train plainly first"
            )
        if self.round_one is not None and context.state.epoch < context.settings.max_epoch:
            self.round_one.load(self.device, anew=fresh)

    def before_epoch(self, epoch: int, context: Any) -> None:
        """Mine when it is due, on all ranks together, and let the items draw from the lists."""
        if epoch < self.config.candidates.start_epoch:
            return
        dataset, aoq = context.dataloaders["train"].dataset, self.config.aoq
        dataset.sampler = QuintupleSampler(
            self.lists.at(epoch, context).negatives,
            dataset.split.caption_image,
            captions=aoq.draw_captions,
            images=aoq.draw_images,
            tie_ranks=aoq.tie_ranks,
            cross_pair=aoq.cross_pair,
        )

    def _starts_trained(self, context: Any) -> bool:
        """Whether the weights come from a checkpoint."""
        return bool(starting_weights(context.config.model_cfg) or starting_weights(self.config.matcher))

    def get_extra_state(self) -> dict[str, Any]:
        """As every method's, and which lists and which teacher are trained with."""
        lists, teacher = getattr(self, "lists", None), getattr(self, "round_one", None)
        told = {"candidates": lists and lists.state, "round_one": teacher and teacher.content}
        return {**super().get_extra_state(), **told}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with the lists that the checkpoint was trained with."""
        if state.get("candidates"):
            self.lists.restore(state["candidates"])
        if self.round_one is not None:
            self.round_one.content = state.get("round_one")
