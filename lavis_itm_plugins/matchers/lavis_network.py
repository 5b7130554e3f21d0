"""What the matchers over LAVIS's own networks share: sizes, tokens, weights, what is trained and how fast."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lavis.models.vit import interpolate_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.encoders.tokenizers import WordPieces
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.base import DESCRIPTION, Matcher, load_strictly, matcher_state, starting_weights
from lavis_itm_plugins.matchers.frames import checked_pictures
from lavis_itm_plugins.matchers.lavis_config import LavisConfig
from lavis_itm_plugins.matchers.lavis_rerank import rerank
from lavis_itm_plugins.matchers.vse import unit
from lavis_itm_plugins.methods.base import parameter_groups

log = logging.getLogger(__name__)

# what a network may lack in a published file: copies of other weights, and what training fills
_REFILLED = ("_m.", "image_queue", "text_queue", "idx_queue", "queue_ptr")


@dataclass(frozen=True)
class Stack:
    """A transformer in a network: the name of its list of blocks, and prefixes of what lies below the first."""

    blocks: str
    below: tuple[str, ...]


class LavisMatcher(Matcher):
    """A network of LAVIS's as `self.network`; a subclass writes `make_network`, the encoders and `unused`."""

    # whether its encoder gives one vector for all frames
    reads_videos: ClassVar[bool] = False

    config_class = LavisConfig
    vocabulary_class: ClassVar[type] = WordPieces
    added_tokens: ClassVar[Mapping[str, Any]] = {}
    stacks: ClassVar[tuple[Stack, ...]] = ()
    # modules of each tower, by what `freeze` calls it
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def build(self) -> None:
        """Make the network, and settle what is trained."""
        if self.vocabulary is not None:
            self.tokenizer = self.vocabulary.tokenizer(self.added_tokens)
        unknown = [name for name in self.config.freeze if name not in self.towers]
        if unknown:
            raise ItmError(f"model.freeze: {self.arch} has no {unknown[0]} tower of its own; give {list(self.towers)}")
        self.network = self.make_network()
        frozen = self.unused() + tuple(name for tower in self.config.freeze for name in self.towers[tower])
        for name, parameter in self.network.named_parameters():
            if any(name.startswith(start) or start in f".{name}" for start in frozen):
                parameter.requires_grad_(False)
        if self.config.checkpoint:
            for stack in self._present_stacks():
                for block in self.network.get_submodule(stack.blocks):
                    block.__class__ = _recomputed(type(block))

    def make_network(self) -> nn.Module:
        """LAVIS's network of the configured sizes, from random weights."""
        raise NotImplementedError("abstract")

    @property
    def picture_size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.config.vit.size)

    def unused(self) -> tuple[str, ...]:
        """Names, or parts of names that start with a dot, of parameters that the objective gives no gradient."""
        raise NotImplementedError("abstract")

    def image_states(self, samples: Mapping[str, Any]) -> Tensor:
        """What an image-text matching head looks at, (n, P, width)."""
        raise NotImplementedError("abstract")

    def tokens(self, captions: Sequence[str]) -> Any:
        """`input_ids` and `attention_mask` (n, T) of captions, on the device."""
        given = {"padding": True, "truncation": True, "max_length": self.config.max_words, "return_tensors": "pt"}
        return self.tokenizer(list(captions), **given).to(self.device)

    def pictures(self, samples: Mapping[str, Any]) -> Tensor:
        """The pictures of a batch, or all frames of its videos, on the device.

        Raises ItmError when they are neither, or of another size.
        """
        self._check_built()
        image = checked_pictures(samples["image"], self.arch, self.picture_size, videos=self.reads_videos)
        return image.to(self.device)

    @classmethod
    def from_config(cls, cfg: Any) -> Any:
        """Build; with `finetuned` or `pretrained` (a checkpoint of ours or LAVIS's, file or URL) from its weights."""
        config, weights = cls.parse_config(cfg), starting_weights(cfg)
        content = read_checkpoint(weights) if weights else None
        model = cls(config, cls.words(config, content))
        if content is not None:
            model.load_content(content, str(weights))
        return model

    @classmethod
    def words(cls, config: Any, content: Mapping[str, Any] | None) -> WordPieces | None:
        """The vocabulary that a checkpoint of ours carries, or the one that is found."""
        if content is not None:
            stored = matcher_state(content, "").get(DESCRIPTION)
            if stored and stored["vocabulary"]:
                return WordPieces(stored["vocabulary"])
        return WordPieces.find(config.tokenizer_path)

    def load_checkpoint(self, url_or_filename: str | Path) -> Any:
        """Load a checkpoint of ours, or one that LAVIS or the paper's authors published for this network."""
        return self.load_content(read_checkpoint(url_or_filename), str(url_or_filename))

    def load_content(self, content: Mapping[str, Any], source: str) -> Any:
        """`load_checkpoint` of what was read; raises ItmError when it does not fit."""
        state = matcher_state(content, source)
        if DESCRIPTION not in state and self.config is not None:
            return self._load_published(state, source)
        if self.config is None:
            self._build_as_described(state, source)
        return load_strictly(self, self._with_this_objective(state), source)

    def _with_this_objective(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Without momentum towers and queues that this objective has not; with those that it has and the file lacks."""
        own, kept = self.state_dict(), dict(state)
        for name in set(kept) - set(own):
            if _refilled(name):
                del kept[name]
        for name in set(own) - set(kept):
            if _refilled(name):
                kept[name] = kept.get(name.replace("_m.", "."), own[name])
        return kept

    def _load_published(self, state: dict[str, Any], source: str) -> Any:
        """Weights by LAVIS's names; position embeddings are stretched to the size of the pictures."""
        state = self.renamed(state)
        own = self.network.state_dict()
        for tower in ("visual_encoder", "visual_encoder_m"):
            if f"{tower}.pos_embed" in state and f"{tower}.pos_embed" in own and hasattr(self.network, tower):
                stretched = interpolate_pos_embed(state[f"{tower}.pos_embed"], self.network.get_submodule(tower))
                state[f"{tower}.pos_embed"] = stretched
        fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        for name in own:
            if name not in fitting and name.replace("_m.", ".") in fitting:
                fitting[name] = fitting[name.replace("_m.", ".")]
        missing = [name for name in own if name not in fitting and not _refilled(name)]
        towers = tuple(f"{name}." for names in self.towers.values() for name in names)
        lacking = [name for name in missing if name.startswith(towers) and "position_ids" not in name]
        if lacking and not self.may_lack(lacking):
            raise ItmError(f"{source} does not fit this model: {lacking[0]} is missing or of another size")
        if missing:
            log.warning(
                "%s has no %s and %d more; they start from random weights", source, missing[0], len(missing) - 1
            )
        log.info("loaded weights from %s", source)
        return self.network.load_state_dict(fitting, strict=False)

    def renamed(self, state: dict[str, Any]) -> dict[str, Any]:
        """A published state by this network's names."""
        return state

    def may_lack(self, names: Sequence[str]) -> bool:
        """Whether a published file for this network is whole without these parameters of its towers."""
        return False

    def train(self, mode: bool = True) -> Any:
        """As every module; towers that are frozen, and momentum towers, stay in evaluation mode."""
        super().train(mode)
        for name in self.resting() if hasattr(self, "network") else ():
            part = getattr(self.network, name, None)
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def resting(self) -> tuple[str, ...]:
        """Modules of the network that are never in training mode."""
        return tuple(name for tower in self.config.freeze for name in self.towers[tower])

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups with `layer_decay`: the last trained block of each tower, and all above it, at the full rate."""
        decay, scales = self.config.layer_decay, {}
        for stack in self._present_stacks() if decay < 1 else ():
            blocks = list(self.network.get_submodule(stack.blocks))
            count = sum(any(p.requires_grad for p in block.parameters()) for block in blocks)
            scales |= {f"network.{stack.blocks}.{i}.": decay ** (count - 1 - i) for i in range(count)}
            scales |= {f"network.{name}": decay**count for name in stack.below}
        return parameter_groups(self, scales)

    def _present_stacks(self) -> list[Stack]:
        names = {name for name, _ in self.network.named_modules()}
        return [stack for stack in self.stacks if stack.blocks in names]

    def write_assets(self, folder: Path) -> None:
        """Write `vocab.txt` into the run folder."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder / "vocab.txt")

    @torch.no_grad()
    def compute_sim_matrix(self, data_loader: Any, task_cfg: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """LAVIS's contract: cosines, or with `k_test` in `task_cfg` and a matching head the re-ranked scores."""
        k_test = None if task_cfg is None else task_cfg.get("k_test")
        if not k_test or not self.reranks:
            return super().compute_sim_matrix(data_loader, task_cfg)
        return rerank(self, data_loader, int(k_test))

    @property
    def reranks(self) -> bool:
        """Whether there is an image-text matching head."""
        return hasattr(self.network, "itm_head")

    def itm_logits(self, image_states: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """Logits (n, 2) of aligned pairs: not a match, a match."""
        raise NotImplementedError("abstract")


def pooled(vectors: Tensor) -> Encoded:
    """Unit vectors."""
    return Encoded(pooled=unit(vectors))


def _refilled(name: str) -> bool:
    return any(part in name for part in _REFILLED)


@cache
def _recomputed(block: type) -> type:
    """The class of a transformer block that is computed again in the backward pass; a copy stays a block of its own."""

    class Recomputed(block):  # type: ignore[valid-type, misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not (self.training and torch.is_grad_enabled()):
                return super().forward(*args, **kwargs)
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

    Recomputed.__name__, Recomputed.__qualname__ = block.__name__, block.__qualname__
    return Recomputed
