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


def evaluate_checkpoint(
    config_path: str | Path, checkpoint: str | Path | None, *, split: str | None = None, options: Sequence[str] = ()
) -> Evaluation:
    """Build the model that a configuration describes, load a checkpoint (None: random weights), score a split.

    Raises ItmError for a missing file, a split that the data do not have, or weights that do not fit.
    """
    _autoload.install()
    from lavis import tasks
    from lavis.common.logger import setup_logger

    from lavis_itm_plugins.config.load import ProjectConfig
    from lavis_itm_plugins.data.joined import evaluation_set
    from lavis_itm_plugins.runners.loaders import EvalBatches, make_loader
    from lavis_itm_plugins.runners.settings import parse_run, with_device

    config = ProjectConfig(find_config(config_path), options)
    config.config.run.evaluate = True
    config.config.model.update(finetuned=checkpoint and str(checkpoint), load_finetuned=True, pretrained=None)
    settings = with_device(parse_run(config.run_cfg))
    setup_logger()
    task = tasks.setup_task(config)
    datasets = task.build_datasets(config)
    chosen = split or next((name for name in ("test", "val") if evaluation_set(datasets, name) is not None), "test")
    dataset = evaluation_view(datasets, chosen)
    model = task.build_model(config).to(settings.device).eval()
    batches = EvalBatches(len(dataset), settings.batch_size_eval)
    loader = make_loader(dataset, batches, workers=settings.num_workers, seed=settings.seed, pin=False)
    return Evaluation(chosen, task.evaluation(model, loader), len(dataset), len(dataset.text))


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
