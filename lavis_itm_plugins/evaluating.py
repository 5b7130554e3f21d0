"""Score a trained checkpoint on a split: what `lavis-itm evaluate` and the demo do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_itm_plugins import _autoload
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.resources import find_config


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split and its size."""

    split: str
    metrics: dict[str, float]
    n_images: int
    n_captions: int


@dataclass(frozen=True)
class OpenedRun:
    """A trained model on its device, in evaluation mode, and the data that its configuration names."""

    task: Any
    model: Any
    datasets: dict[str, Any]
    settings: Any

    def loader(self, split: str) -> Any:
        """The images of a split in batches, dealt to the ranks; `.dataset` has the captions."""
        from lavis_itm_plugins.runners.loaders import EvalBatches, make_loader

        dataset, run = evaluation_view(self.datasets, split), self.settings
        batches = EvalBatches(len(dataset), run.batch_size_eval)
        return make_loader(dataset, batches, workers=run.num_workers, seed=run.seed, pin=False)

    @property
    def matcher(self) -> Any:
        """What is deployed; raises ItmError for a model of LAVIS's own that gives no embeddings."""
        found = self.model.evaluated() if hasattr(self.model, "evaluated") else self.model
        if not hasattr(found, "encode_images"):
            raise ItmError(f"{type(found).__name__} gives no embeddings of images and captions; use a matcher of ours")
        return found

    def default_split(self) -> str:
        """Test, or else val."""
        from lavis_itm_plugins.data.joined import evaluation_set

        return next((name for name in ("test", "val") if evaluation_set(self.datasets, name) is not None), "test")


def open_run(config_path: str | Path, checkpoint: str | Path | None, *, options: Sequence[str] = ()) -> OpenedRun:
    """Build the model that a configuration describes and load a checkpoint (None: random weights); and its data.

    Joins the process group under torchrun. Raises ItmError for a missing file, or weights that do not fit.
    """
    _autoload.install()
    from lavis import tasks
    from lavis.common.dist_utils import init_distributed_mode
    from lavis.common.logger import setup_logger

    from lavis_itm_plugins.config.load import ProjectConfig
    from lavis_itm_plugins.distributed import world_size
    from lavis_itm_plugins.runners.settings import parse_run, with_device

    config = ProjectConfig(find_config(config_path), options)
    config.config.run.evaluate = True
    config.config.model.update(finetuned=checkpoint and str(checkpoint), load_finetuned=True, pretrained=None)
    settings = with_device(parse_run(config.run_cfg))
    if world_size() == 1:
        init_distributed_mode(config.run_cfg)
    setup_logger()
    task = tasks.setup_task(config)
    datasets = task.build_datasets(config)
    model = task.build_model(config).to(settings.device).eval()
    return OpenedRun(task, model, datasets, settings)


def evaluate_checkpoint(
    config_path: str | Path, checkpoint: str | Path | None, *, split: str | None = None, options: Sequence[str] = ()
) -> Evaluation:
    """Build the model that a configuration describes, load a checkpoint (None: random weights), score a split.

    Raises ItmError for a missing file, a split that the data do not have, or weights that do not fit.
    """
    opened = open_run(config_path, checkpoint, options=options)
    chosen = split or opened.default_split()
    loader = opened.loader(chosen)
    metrics = opened.task.evaluation(opened.model, loader)
    return Evaluation(chosen, metrics, len(loader.dataset), len(loader.dataset.text))


def evaluate_ensemble(
    places: Sequence[tuple[str | Path, str]], *, split: str | None = None, options: Sequence[str] = ()
) -> tuple[str, list[dict[str, float]]]:
    """The split, and metrics of each (configuration, checkpoint) and of the mean of their scores, in this order.

    Raises ItmError as `evaluate_checkpoint`, and when the runs have other captions or another order of them.
    """
    from lavis_itm_plugins.evaluation import JointItems, evaluate_tiles, joint_score
    from lavis_itm_plugins.matchers.encode import encode_split

    encoded, first, largest = [], None, 1
    for config_path, checkpoint in places:
        opened = open_run(config_path, checkpoint, options=options)
        split = split or opened.default_split()
        matcher, loader = opened.matcher, opened.loader(split)
        images, captions, caption_image = encode_split(matcher, loader)
        shown = loader.dataset.text, caption_image.tolist()
        first = first or shown
        if shown != first:
            raise ItmError(
                f"{config_path} has other captions in its {split} split than {places[0][0]}, or in another order; "
                "an ensemble needs the same data"
            )
        encoded.append((images, captions, matcher.score))
        largest = max(largest, matcher.bytes_per_pair)
    itm = opened.settings.itm
    limits = {"memory_budget_mb": itm.memory_budget_mb, "folds": itm.coco_1k_folds, "bytes_per_pair": largest}
    results = [evaluate_tiles(*one, caption_image, **limits) for one in encoded]
    images, captions, scores = zip(*encoded, strict=True)
    joint = JointItems(images), JointItems(captions), joint_score(scores)
    return str(split), [*results, evaluate_tiles(*joint, caption_image, **limits)]


def evaluation_view(datasets: dict[str, Any], split: str) -> Any:
    """The split as images to rank; training captions too, for a look at overfitting."""
    from lavis_itm_plugins.data.datasets import CaptionEvalDataset
    from lavis_itm_plugins.data.joined import evaluation_set, training_set

    dataset = training_set(datasets) if split == "train" else evaluation_set(datasets, split)
    if dataset is None:
        raise ItmError(f"{', '.join(datasets)}: no {split} split; choose another --split")
    if split == "train":
        if not hasattr(dataset, "split"):
            raise ItmError("the training split of this data set cannot be ranked; choose --split val or test")
        return CaptionEvalDataset(dataset.split)
    return dataset
