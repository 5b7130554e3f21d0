"""`itm_dbl`: Deep Boosting Learning. A target matcher must separate every pair better than an anchor matcher does.

    L_target = L_base(T) + weight * mean over anchors of L_boost(T, A)            with A never receiving a gradient

Diao, Zhang, Gao, Ruan, Lu: Deep Boosting Learning, IEEE TIP 33, 2024, arXiv 2404.18114; the three scenarios as in the
released code (github.com/Paranioar/DBL): `frozen` (OAS) a trained checkpoint, `peer` (OSS) branches trained side by
side where each learns from the earlier ones, `momentum` (MSS) a moving average of the target. Also what the paper
compares with: distillation, mutual learning and the plain ensemble, over the same anchors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.config.source import run_setting
from lavis_itm_plugins.distributed import rank
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.matchers.base import DESCRIPTION, starting_weights
from lavis_itm_plugins.methods.base import encode_batch
from lavis_itm_plugins.methods.boost import ActivityLog, BoostConfig
from lavis_itm_plugins.methods.branches import AveragedBranches, new_peer, own_stream
from lavis_itm_plugins.methods.frozen import FrozenAnchor, anchor_file, check_anchor
from lavis_itm_plugins.methods.method import Method, MethodConfig
from lavis_itm_plugins.methods.moving import MomentumAnchor, MomentumSchedule, OwnMomentumAnchor
from lavis_itm_plugins.registry import register_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DblConfig(MethodConfig):
    """The `model` section of `itm_dbl`."""

    dbl: BoostConfig = field(default_factory=BoostConfig)


@dataclass(frozen=True)
class BranchPass:
    """A branch's scores (B, B) of the batch of all ranks, its positives and its plain losses."""

    scores: Tensor
    positives: Tensor | None
    base_losses: dict[str, Tensor]


@register_model("itm_dbl")
class Dbl(Method):
    """Branch k is trained with its base loss and the boost over its anchors; the target is the last branch."""

    arch = "itm_dbl"
    config_class = DblConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "momentum": "models/itm_dbl_momentum.yaml",
        "frozen": "models/itm_dbl_frozen.yaml",
        "peer": "models/itm_dbl_peer.yaml",
    }

    @classmethod
    def parse_config(cls, cfg: Any, section: str = "model") -> DblConfig:
        """As every method's; a target that starts as its anchor gets the anchor's file as `matcher.finetuned`.

        Weights that a person gives the matcher win over the anchor; those of its model type do not.
        """
        config: DblConfig = super().parse_config(cfg, section)
        anchor = config.dbl.anchor if config.dbl.scenario == "frozen" and config.dbl.from_anchor else None
        if anchor is None or starting_weights(cfg.get("matcher") or {}):
            return config
        weights = {"load_finetuned": True, "finetuned": str(anchor_file(anchor))}
        return replace(config, matcher={**config.matcher, **weights})

    @classmethod
    def from_config(cls, cfg: Any) -> Dbl:
        """As every method's; `finetuned` of a matcher alone is where all branches start."""
        weights, config = starting_weights(cfg), cls.parse_config(cfg)
        if weights is None and config.dbl.anchor is not None:
            check_anchor(config.dbl.anchor, config.matcher)
        if weights is not None and not _holds_dbl(weights):
            start = {"matcher": {"load_finetuned": True, "finetuned": weights}, "load_finetuned": False}
            cfg = OmegaConf.merge(OmegaConf.create(cfg), start, {"load_pretrained": False})
        model = super().from_config(cfg)
        if config.dbl.scenario == "frozen" and not run_setting("evaluate", True):
            # now: a copy of the model for averaged weights must know the anchor too
            model._load_anchor()
        return model

    def setup(self, stored: Mapping[str, Any]) -> None:
        """Make the anchor, or the peers: the first is the matcher that was built, and the target the last branch."""
        self.seed = int(run_setting("seed", 0))
        self.peers = nn.ModuleList()
        self.frozen: FrozenAnchor | None = None
        # the anchor of the checkpoint that this one is made from, and the one that a resumed run must have
        self._known_anchor, self._required_anchor = stored.get("anchor"), None
        self._made_from_checkpoint = bool(stored)
        self._activity = ActivityLog(self.config.dbl.loss)
        self._total_updates = self._updates_per_epoch = 1
        boost = self.config.dbl
        if boost.scenario == "momentum":
            twin = self.matcher.momentum_twin()
            self.momentum_anchor = MomentumAnchor(self.matcher) if twin is None else OwnMomentumAnchor(twin)
            if twin is not None:
                boost.warn_of_own_momentum(self.matcher.arch)
        elif boost.scenario == "peer":
            same = boost.same_start or starting_weights(self.config.matcher) is not None
            others = [new_peer(self.matcher, self.seed, k, same_start=same) for k in range(1, boost.branches)]
            self.peers.extend([self.matcher, *others[:-1]])
            self.matcher = others[-1]

    def renew_copies(self) -> None:
        """Every branch and the momentum anchor start from the matcher's new weights."""
        for peer in self.peers:
            peer.load_state_dict(self.matcher.state_dict())
        if self.config.dbl.scenario == "momentum":
            self.momentum_anchor.update(0.0)
            self.momentum_anchor.updates.zero_()

    @property
    def branches(self) -> list[Any]:
        """All trained matchers; the target is the last."""
        return [*self.peers, self.matcher]

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Base loss and boost of every branch, summed: no branch's loss reaches another branch."""
        self._plan(int(batch.get("num_iters_per_epoch", 1)))
        boost = self.config.dbl
        outside = self._outside_scores(batch)
        passes = [self._pass(number, batch) for number in range(len(self.branches))]
        parts: dict[str, Tensor] = {}
        for number, own in enumerate(passes):
            anchors = outside or self._peer_scores(passes, number)
            suffix = f"_{number}" if number < len(self.peers) else ""
            parts |= {f"{name}{suffix}": value for name, value in own.base_losses.items()}
            if anchors and boost.loss != "none":
                parts[f"loss_boost{suffix}"] = self._boost(batch, own, anchors)
        return parts | self._watch(batch, own, anchors)

    def _outside_scores(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Scores (B, B) of an anchor that is no branch; none with peers."""
        scenario = self.config.dbl.scenario
        if scenario == "peer":
            return []
        if scenario == "momentum" and self.training:
            self.momentum_anchor.check_moves(batch)
        return [self.momentum_anchor.scores(batch) if scenario == "momentum" else self._load_anchor().scores(batch)]

    def _pass(self, number: int, batch: Mapping[str, Any]) -> BranchPass:
        """The batch through one branch; the first draws from the generators as a plainly trained matcher would."""
        position = int(batch.get("epoch", 0)), int(batch.get("iters", 0))
        with own_stream(self.device, self.seed, number, *position, rank()) if number else nullcontext():
            branch = self.branches[number]
            encoded = encode_batch(branch, batch)
            if self.config.official:
                encoded = replace(encoded, positives=None)
            scores = branch.score(encoded.images, encoded.captions)
            return BranchPass(scores, encoded.positives, branch.matching_losses(batch, encoded, scores))

    def _peer_scores(self, passes: Sequence[BranchPass], number: int) -> list[Tensor]:
        """What a branch learns from: the earlier branches, or with `mutual` all others."""
        others = range(len(passes)) if self.config.dbl.mutual else range(number)
        return [passes[other].scores.detach() for other in others if other != number]

    def _boost(self, batch: Mapping[str, Any], own: BranchPass, anchors: Sequence[Tensor]) -> Tensor:
        """The weighted mean of the loss against each anchor."""
        boost, base = self.config.dbl, self.config.base_loss
        losses = [boost.loss_against(own.scores, anchor, own.positives, base) for anchor in anchors]
        return boost.weight_at(batch) * torch.stack(losses).mean()

    def _watch(self, batch: Mapping[str, Any], own: BranchPass, anchors: Sequence[Tensor]) -> dict[str, Tensor]:
        """What is logged of the target against its anchors, and of the schedules."""
        boost = self.config.dbl
        told = boost.statistics(own.scores, anchors, own.positives, self.config.base_loss)
        self._activity.add(batch, told)
        told["boost_weight"] = torch.tensor(boost.weight_at(batch), dtype=torch.float64)
        if boost.scenario == "momentum":
            momentum = self._schedule().at(int(self.momentum_anchor.updates))
            told["momentum"] = torch.tensor(momentum, dtype=torch.float64)
        return told

    def before_training(self, context: Any) -> None:
        """Say how fast a momentum anchor follows; encode the data once with a frozen one."""
        self._plan(context.train_batches.steps())
        if self.config.dbl.scenario == "momentum":
            if not (context.state.epoch or context.state.step):
                # of the run whose checkpoint this one starts from
                self.momentum_anchor.updates.zero_()
            log.info("dbl: %s", self._schedule().described(self._updates_per_epoch))
        elif self.config.dbl.scenario == "frozen" and context.state.epoch < context.settings.max_epoch:
            dataset, size = context.dataloaders["train"].dataset, context.settings.batch_size_eval
            self._load_anchor().cache(dataset, size, self.config.dbl.cache)

    def _load_anchor(self) -> FrozenAnchor:
        """The frozen anchor on the matcher's device, read when it is first needed: evaluation needs none."""
        if self.frozen is None:
            if self.config.dbl.anchor is None:
                raise ItmError(
                    "model.dbl.anchor is not set; give the checkpoint or the run folder of a trained matcher"
                )
            self.frozen = FrozenAnchor(self.config.dbl.anchor, self.matcher.encode_chunk)
            self._check_anchor()
        return self.frozen.to(self.device)

    def _plan(self, steps_per_epoch: int) -> None:
        self._updates_per_epoch = math.ceil(steps_per_epoch / int(run_setting("accum_grad_iters", 1)))
        self._total_updates = self._updates_per_epoch * int(run_setting("max_epoch", 1))

    def _schedule(self) -> MomentumSchedule:
        anchor = self.momentum_anchor
        constant = anchor.module.momentum if isinstance(anchor, OwnMomentumAnchor) else None
        return self.config.dbl.schedule(self._total_updates, self._updates_per_epoch, constant)

    def after_step(self) -> None:
        """Move the momentum anchor."""
        for branch in self.branches:
            branch.after_step()
        if self.config.dbl.scenario == "momentum":
            self.momentum_anchor.advance(self._schedule())

    def param_groups(self) -> list[dict[str, Any]]:
        """Each branch's own groups, as in its plain training."""
        return [group for branch in self.branches for group in branch.param_groups()]

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """Each branch is clipped by itself, as in its plain training."""
        return [group for branch in self.branches for group in branch.clip_groups()]

    def branch(self, name: str | int) -> Any:
        """The matcher that `run.itm.eval_branch` means: target, anchor, average (of peers), or a branch's number."""
        scenario, numbers = self.config.dbl.scenario, [str(number) for number in range(len(self.branches))]
        if str(name) in numbers:
            return self.branches[int(name)].evaluated()
        if name == "anchor":
            if scenario == "peer":
                return self.branches[0].evaluated()
            return self.momentum_anchor.module if scenario == "momentum" else self._load_anchor().matcher
        if name == "average" and scenario == "peer":
            return AveragedBranches(self.branches)
        if name != "target":
            known = ["target", "anchor", *numbers, *(["average"] if scenario == "peer" else [])]
            raise unknown_name("run.itm.eval_branch", str(name), known)
        return self.evaluated()

    def get_extra_state(self) -> dict[str, Any]:
        """As every method's, and which frozen anchor there was."""
        content = self.frozen.content if getattr(self, "frozen", None) else getattr(self, "_known_anchor", None)
        return {**super().get_extra_state(), "anchor": content}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse to go on with another frozen anchor.

        The checkpoint that `setup` was told of is only a start; any other one is that of a run that goes on.
        """
        if not self._made_from_checkpoint:
            self._required_anchor = state.get("anchor")
        self._made_from_checkpoint = False
        self._check_anchor()

    def _check_anchor(self) -> None:
        if self.frozen is not None:
            self.frozen.check_content(self._required_anchor, "against another anchor")


def _holds_dbl(path: str) -> bool:
    checkpoint = read_checkpoint(path)
    return (checkpoint.get("model", checkpoint).get(DESCRIPTION) or {}).get("arch") == Dbl.arch
