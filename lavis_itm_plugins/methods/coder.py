"""`itm_coder`: contrast against momentum dictionaries, weighted by how diverse the negatives are, in two branches.

    L = DCL(x^v, x^t) + weight DCL(c^v, c^t) + weight(t) L_label

x are a matcher's vectors; c are what they find in a graph of concepts; L_label lets c predict pseudo cluster labels of
x. After the abstract of "CODER: Coupled Diversity-Sensitive Momentum Contrastive Learning for Image-Text Retrieval"
(Wang et al., ECCV 2022, arXiv 2208.09843): the paper's formulas were not at hand, so the weighting, the graph and the
labels are reconstructed. Call results "CODER-style"; docs/methods/coder.md says what is whose.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavis_itm_plugins.concepts.cache import write_attribution
from lavis_itm_plugins.config.source import run_setting
from lavis_itm_plugins.distributed import gather_rows
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.diversity import weighted_contrast
from lavis_itm_plugins.methods.base import EncodedBatch, check_heard, encode_batch, parameter_groups, same_image
from lavis_itm_plugins.methods.coder_branches import SIDES, ConceptBranch, FusedMatcher
from lavis_itm_plugins.methods.coder_config import CoderConfig
from lavis_itm_plugins.methods.coder_keys import KeyTower, Step, Vectors, flat
from lavis_itm_plugins.methods.coder_labels import PseudoLabels
from lavis_itm_plugins.methods.coder_selection import (
    FUSION_WEIGHTS,
    choose_evaluated,
    health,
    log_health,
    warn_of_runner,
)
from lavis_itm_plugins.methods.coder_setup import (
    check_same_concepts,
    describe,
    embed_dim,
    make_branch,
    prepare_concepts,
)
from lavis_itm_plugins.methods.method import Method
from lavis_itm_plugins.momentum.dictionary import EMPTY
from lavis_itm_plugins.registry import register_model

log = logging.getLogger(__name__)


@register_model("itm_coder")
class Coder(Method):
    """Instance branch, concept branch, their key tower and dictionaries, and the pseudo labels."""

    arch = "itm_coder"
    config_class = CoderConfig
    config: CoderConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "full": "models/itm_coder_full.yaml",
        "dictionaries": "models/itm_coder_dictionaries.yaml",
        "scenes": "models/itm_coder_scenes.yaml",
    }

    @classmethod
    def parse_config(cls, cfg: Any, section: str = "model") -> CoderConfig:
        """As every method's; `concept` and `labels` with all their settings, or false."""
        config = super().parse_config(cfg, section)
        return replace(config, concept=config.concept_settings or False, labels=config.label_settings or False)

    def setup(self, stored: Mapping[str, Any]) -> None:
        """Make each part that is not switched off."""
        dim = embed_dim(self.matcher)
        concept, labels = self.config.concept_settings, self.config.label_settings
        self.concept: ConceptBranch | None = None
        self.about_concepts: dict[str, Any] | None = None
        if concept is not None:
            known = stored.get("concepts") or prepare_concepts(concept)
            self.concept = make_branch(concept, dim, known)
            self.about_concepts = known if stored.get("concepts") else describe(known)
        self._stored_concepts = bool(stored.get("concepts"))
        self._unheard = 0
        warn_of_runner()
        self.labels = None if labels is None else PseudoLabels(labels, dim)
        self.keys = KeyTower(self.matcher, self.concept, self.config.dictionary, dim, copies=self.config.needs_keys)
        self.register_buffer("fusion_weight", torch.tensor(FUSION_WEIGHTS[0]))
        self.register_buffer("key_tower_scored", torch.tensor(False))
        self._steps: list[Step] = []
        # every rank enqueues the same keys; DDP would send all of them before each step
        rings = self.keys.dictionaries.named_buffers(prefix="keys.dictionaries")
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in rings]

    def renew_copies(self) -> None:
        """The key tower starts from the matcher's new weights."""
        self.keys.restart()

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of both branches over the batch of all ranks, and numbers that show a collapse."""
        encoded = self.encoded(batch)
        online = self.vectors(encoded, self.concept)
        keys = self.key_vectors(batch) if self.config.needs_keys else online
        contrasted = keys if self.config.dcl.keys == "momentum" else online
        weights = {"instance": 1.0, "concept": getattr(self.config.concept_settings, "weight", 0.0)}
        parts = {
            f"loss_{name}": weights[name] * self._both_directions(name, queries, contrasted[name], encoded.image_ids)
            for name, queries in online.items()
        }
        parts |= self._other_losses(batch, encoded, online, keys)
        rows, codes = torch.cat([online["instance"][side].detach() for side in SIDES]), None
        if self.labels is not None:
            codes = self.labels.codes(rows, self.keys.newest(self.labels.config.extra_rows))
            parts["loss_labels"] = self.labels.weight(batch) * self.labels(online["concept"], codes)
        self._remember(batch, Step(encoded.image_ids, self._items(batch), flat(keys), rows, codes))
        return parts | health(flat(online), self.keys.filled, codes)

    def vectors(self, encoded: EncodedBatch, branch: ConceptBranch | None) -> Vectors:
        """Both branches' vectors of an encoded batch; without a concept branch those of the other."""
        instance = {"image": encoded.images.pooled, "caption": encoded.captions.pooled}
        if branch is None:
            return {"instance": instance}
        detach, concepts = self.config.concept_settings.detach_query, branch.concepts()
        queried = {side: branch(x.detach() if detach else x, side, concepts) for side, x in instance.items()}
        return {"instance": instance, "concept": queried}

    @torch.no_grad()
    def key_vectors(self, batch: Mapping[str, Any]) -> Vectors:
        """The key tower's vectors of the batch of all ranks."""
        matcher, branch = self.tower("momentum")
        return self.vectors(encode_batch(matcher, batch), branch)

    def _both_directions(
        self, branch: str, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor], image_ids: Tensor
    ) -> Tensor:
        """DCL of a branch: image to captions and caption to images, averaged."""
        to_captions = self._direction(queries["image"], keys["caption"], f"caption_{branch}", image_ids)
        to_images = self._direction(queries["caption"], keys["image"], f"image_{branch}", image_ids)
        return (to_captions + to_images) / 2

    def _direction(self, queries: Tensor, keys: Tensor, dictionary: str, image_ids: Tensor) -> Tensor:
        """Each query against its key; negatives are the batch's other keys, then those of a dictionary."""
        others = ~torch.eye(len(image_ids), dtype=torch.bool, device=image_ids.device)
        ring, dcl = self.keys.dictionaries[dictionary], self.config.dcl
        if not self.config.official:
            others &= ~same_image(image_ids)
        old = ring.negatives_of(torch.full_like(image_ids, EMPTY) if self.config.official else image_ids)
        with torch.autocast(queries.device.type, enabled=False):
            fresh = queries @ keys.T
            similarities = torch.cat([fresh, queries @ ring.keys.T], dim=1)
        return weighted_contrast(
            *(fresh.diagonal(), similarities, torch.cat([others, old], dim=1)),
            temperature=self.config.temperature,
            form=dcl.form,
            kind=dcl.weighting,
            beta=dcl.beta,
            slope=dcl.slope,
            offset=dcl.offset,
        )

    def _other_losses(
        self, batch: Mapping[str, Any], encoded: EncodedBatch, online: Vectors, keys: Vectors
    ) -> dict[str, Tensor]:
        """What the matcher adds of its own, its base loss with a weight, and the terms within a modality."""
        dcl = self.config.dcl
        parts = self.matcher.matching_losses(batch, encoded, self.matcher.score(encoded.images, encoded.captions))
        base = parts.pop("loss_base")
        if dcl.base_weight:
            parts["loss_base"] = dcl.base_weight * base
        for side in SIDES if dcl.intra_weight else ():
            own, other = online["instance"][side], keys["instance"][side]
            loss = self._direction(own, other, f"{side}_instance", encoded.image_ids)
            parts[f"loss_intra_{side}"] = dcl.intra_weight * loss / 2
        return parts

    def _items(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Rows of the batch's captions in the training data, where the data say them."""
        return gather_rows(torch.as_tensor(batch["index"], device=self.device)) if "index" in batch else None

    def _remember(self, batch: Mapping[str, Any], step: Step) -> None:
        """Keep it for `after_step`; what was kept of a group of batches that was skipped is forgotten."""
        together = int(run_setting("accum_grad_iters", 1))
        if batch.get("iters", 0) % together == 0:
            self._steps.clear()
        self._steps.append(step)
        self._unheard += 1
        check_heard(self.arch, self._unheard / together, "its dictionaries stay empty")

    def after_step(self) -> None:
        """Move the key tower, then store the step's keys and move the prototypes."""
        super().after_step()
        self._unheard = 0
        self.keys.follow()
        for step in self._steps:
            self.keys.store(step)
            if self.labels is not None:
                self.labels.follow(step.rows, step.codes)
        self._steps.clear()

    def before_training(self, context: Any) -> None:
        """Forget the keys of a run whose checkpoint this one starts from; its concepts stay."""
        if not (context.state.epoch or context.state.step):
            self.keys.forget()
            if self._stored_concepts:
                log.info("the concepts are the checkpoint's; settings of model.concept that choose others are not used")

    def before_validation(self, context: Any) -> None:
        """Say how the dictionaries are, and choose tower and fusion weight on the first validation split."""
        # of a moving average of all buffers the dictionaries say nothing
        if getattr(context, "average", None) is None:
            log_health(self, context.dataloaders["train"].dataset)
        for split in context.splits("valid_splits")[:1]:
            choose_evaluated(self, context.dataloaders[split])

    def tower(self, name: str) -> tuple[Any, ConceptBranch | None]:
        """Matcher and concept branch, "online" or their "momentum" copies."""
        return (self.matcher, self.concept) if name == "online" else self.keys.copies()

    @property
    def scored_tower(self) -> str:
        """Which tower is deployed."""
        if self.config.scored != "best":
            return self.config.scored
        return "momentum" if bool(self.key_tower_scored) else "online"

    def evaluated(self) -> Any:
        """Both branches of the scored tower as one matcher; the matcher itself without a concept branch."""
        matcher, branch = self.tower(self.scored_tower)
        given = self.config.fusion_weight
        weight = float(self.fusion_weight) if given is None else given
        return matcher.evaluated() if branch is None else FusedMatcher(matcher, branch, weight)

    @torch.no_grad()
    def top_concepts(self, vectors: Tensor, side: str, count: int = 5) -> list[list[tuple[str, float]]]:
        """The concepts that instance vectors (n, d) of a side find, largest share first: an explanation.

        The vectors are of the scored tower, `tower(scored_tower)`, and its concept branch is asked.
        Raises ItmError when there is no concept branch.
        """
        if self.concept is None:
            raise ItmError("this itm_coder has no concept branch; train it with concept: true")
        words = self.about_concepts["words"]
        _, branch = self.tower(self.scored_tower)
        pairs = zip(*branch.strongest(vectors, side, count), strict=True)
        return [[(words[row], share) for row, share in zip(*pair, strict=True)] for pair in pairs]

    def param_groups(self) -> list[dict[str, Any]]:
        """The matcher's groups, the concept branch with its own factor, and the labels' classifier."""
        groups = self.matcher.param_groups()
        known = {id(parameter) for group in groups for parameter in group["params"]}
        concept = self.config.concept_settings
        scales = {} if concept is None else {"concept.": concept.lr_scale}
        return groups + parameter_groups(self, scales, leave_out=known)

    def get_extra_state(self) -> dict[str, Any]:
        """As every method's, and the concepts: an evaluation needs neither captions nor ConceptNet."""
        return {**super().get_extra_state(), "concepts": self.about_concepts if self.config else None}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse weights over other concepts: the rows of the graph would mean other words."""
        check_same_concepts(self.about_concepts, state.get("concepts"))

    def write_assets(self, folder: Path) -> None:
        """The matcher's assets, and ConceptNet's licence where the checkpoint holds what is derived from it."""
        super().write_assets(folder)
        if self.about_concepts and self.about_concepts["shared_alike"]:
            write_attribution(folder)
