"""What every matcher is: encoders, a score, and the LAVIS side of building, loading and evaluating."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.config.source import where
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.encoders.vocabulary import Vocabulary
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import score_tiles
from lavis_itm_plugins.matchers.encode import encode_split
from lavis_itm_plugins.methods.base import EncodedBatch, Trainable, encode_batch

log = logging.getLogger(__name__)

# Keys of a model section that are LAVIS's own.
LAVIS_KEYS = ("arch", "model_type", "load_finetuned", "finetuned", "load_pretrained", "pretrained")
DESCRIPTION = "_extra_state"


class Matcher(Trainable):
    """A network that scores images against captions; trained plainly with its `base_loss`.

    A subclass sets `config_class` and writes `build`, `encode_images`, `encode_captions` and, unless the cosine of
    pooled vectors is its score, `score` and `score_pairs`. Its state dictionary describes itself (configuration and
    vocabulary), so a checkpoint is enough to build it again.
    """

    config_class: ClassVar[type]
    # makes what a checkpoint's list of words means
    vocabulary_class: ClassVar[type] = Vocabulary
    # of an evaluation tile, see `tile_grid`; a network whose scores cost more than a product says more
    bytes_per_pair: int = 16
    # modules that `score` alone uses
    scorers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, vocabulary: Vocabulary | None = None) -> None:
        """With `config` None the network is built by the first checkpoint that is loaded."""
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        if config is not None:
            self.build()

    def build(self) -> None:
        """Make the encoders from `self.config` and `self.vocabulary`."""
        raise NotImplementedError("abstract")

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Encode `samples["image"]`."""
        raise NotImplementedError("abstract")

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Encode strings."""
        raise NotImplementedError("abstract")

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n_images, n_captions), differentiable; never in half precision, which ties what differs."""
        with torch.autocast(self.device.type, enabled=False):
            return images.pooled @ captions.pooled.t()

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n,) of aligned pairs."""
        return (images.pooled * captions.pooled).sum(dim=1)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The base loss over the batch of all ranks, same-image captions never negatives."""
        self._check_built()
        encoded = encode_batch(self, batch)
        return self.matching_losses(batch, encoded, self.score(encoded.images, encoded.captions))

    def matching_losses(self, batch: Mapping[str, Any], encoded: EncodedBatch, scores: Tensor) -> dict[str, Tensor]:
        """What plain training adds up, of scores (B, B) that a method has already."""
        return {"loss_base": self.config.base_loss(scores, encoded.positives, epoch=int(batch.get("epoch", 0)))}

    @torch.no_grad()
    def compute_sim_matrix(self, data_loader: Any, task_cfg: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """LAVIS's contract: scores (n_images, n_captions) and their transpose, as arrays on the CPU."""
        images, captions, _ = encode_split(self, data_loader)
        scores = np.empty((len(images), len(captions)), dtype=np.float32)
        for rows, columns, tile in score_tiles(images, captions, self.score, bytes_per_pair=self.bytes_per_pair):
            scores[rows, columns] = tile.float().cpu().numpy()
        return scores, scores.T

    @property
    def has_own_contrast(self) -> bool:
        """Whether a contrastive loss of the network's own stands in for `base_loss`."""
        return bool(getattr(self.config, "contrasts", False))

    @property
    def encode_chunk(self) -> int | None:
        """How many items are encoded at a time in training; None: the whole batch."""
        return getattr(self.config, "encode_chunk", None)

    def take_states(self) -> Any:
        """What the encoders kept of a chunk for losses of the network's own, which is then forgotten; here nothing."""

    def keep_states(self, parts: Sequence[Any]) -> None:
        """Keep what `take_states` gave for each chunk of a batch as that of the batch."""

    def momentum_twin(self) -> Any | None:
        """The momentum copy that this network has and moves by itself, as a matcher; None where it has none."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU before the network is built."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @classmethod
    def from_config(cls, cfg: Any) -> Matcher:
        """Build from a `model` section: `vocab_path`, else the checkpoint's vocabulary, else the data set's words."""
        raise NotImplementedError("abstract")

    @classmethod
    def parse_config(cls, cfg: Any, section: str = "model") -> Any:
        """The section as `config_class`, checked; `section` is its name in errors."""
        return parse(cls.config_class, cfg, where(section), ignore=LAVIS_KEYS)

    @classmethod
    def from_pretrained(cls, model_type: str) -> Matcher:
        """An unbuilt network for `load_model(..., checkpoint=...)`; the checkpoint says its sizes and words."""
        cls.default_config_path(model_type)
        return cls(None)

    def load_checkpoint_from_config(self, cfg: Any, **_: Any) -> None:
        """Load `finetuned` (or `pretrained`) when it is given; no weights is a valid start."""
        path = starting_weights(cfg)
        if path:
            self.load_checkpoint(path)

    def load_checkpoint(self, url_or_filename: str | Path) -> Any:
        """Load weights; an unbuilt network takes its sizes and vocabulary from the checkpoint.

        Raises ItmError when the file is no checkpoint of this kind of matcher, or of other sizes.
        """
        state = matcher_state(read_checkpoint(url_or_filename), str(url_or_filename))
        if self.config is None:
            self._build_as_described(state, str(url_or_filename))
        return load_strictly(self, state, str(url_or_filename))

    def get_extra_state(self) -> dict[str, Any]:
        """What the checkpoint says of the network: plain types only, so that it loads with `weights_only`."""
        described = {"arch": self.arch, "config": asdict(self.config) if self.config else None}
        return {**described, "vocabulary": self.vocabulary.words if self.vocabulary else None}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse weights made with another vocabulary: the rows of the word embedding would mean other words."""
        words = state.get("vocabulary")
        if self.vocabulary is not None and words is not None and words != self.vocabulary.words:
            raise ItmError(
                f"the checkpoint's vocabulary ({len(words)} words) differs from this model's ({len(self.vocabulary)}); "
                "leave model.vocab_path out to use the checkpoint's"
            )

    def write_assets(self, folder: Path) -> None:
        """Write `vocabulary.json` into the run folder."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder / "vocabulary.json")

    def _build_as_described(self, state: Mapping[str, Any], source: str) -> None:
        description = state.get(DESCRIPTION)
        if not description:
            raise ItmError(f"{source} does not describe its network; build the model from its YAML, then load it")
        if description["arch"] != self.arch:
            raise ItmError(f"{source} holds a {description['arch']}, not a {self.arch}; load it under that name")
        self.config = parse(self.config_class, description["config"], source)
        words = description["vocabulary"]
        self.vocabulary = self.vocabulary_class(words) if words else None
        self.build()

    def _check_built(self) -> None:
        if self.config is None:
            raise ItmError(
                f"this {self.arch} has no weights and no vocabulary yet; load a checkpoint "
                "(load_model(..., checkpoint=...)), or build it from a config with model.vocab_path or a data set"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As every module, but a network that was never built says so."""
        self._check_built()
        return nn.Module.__call__(self, *args, **kwargs)


def starting_weights(cfg: Any) -> str | None:
    """The checkpoint that a model section starts from, if any."""
    plain = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
    if plain.get("load_finetuned", True) and plain.get("finetuned"):
        return str(plain["finetuned"])
    return str(plain["pretrained"]) if plain.get("load_pretrained", True) and plain.get("pretrained") else None


def matcher_state(checkpoint: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The matcher's part of a checkpoint: of one trained plainly, or of a method's (its `matcher.` entries)."""
    state = checkpoint.get("model", checkpoint)
    for prefix in ("matcher.", "module."):
        if f"{prefix}{DESCRIPTION}" in state:
            return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if DESCRIPTION in state:
        return dict(state)
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ItmError(f"{source} holds no weights; give a checkpoint of this plugin")
    return dict(state)


def load_strictly(model: nn.Module, state: Mapping[str, Any], source: str) -> Any:
    """Load every entry; raises ItmError that names the file and the first entry that does not fit."""
    try:
        message = model.load_state_dict(state, strict=True)
    except ItmError as error:
        raise ItmError(f"{source}: {error}") from None
    except RuntimeError as error:
        raise ItmError(f"{source} does not fit this model: {_first_problem(error)}") from None
    log.info("loaded weights from %s", source)
    return message


def _first_problem(error: RuntimeError) -> str:
    """The first line that names a key or a size, of torch's long list."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
