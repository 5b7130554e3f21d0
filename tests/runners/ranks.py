"""What one process, or each of several, computes for test_two_ranks.py: losses with gradients, training, evaluation.

`torchrun ... ranks.py FOLDER` is one of several; `ranks.py FOLDER SIZES...` imports LAVIS once and forks processes for
each number of them. Rank 0 writes `FOLDER/ranks_SIZE.pt`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

LOSSES = {
    "hardest": {"name": "triplet", "negatives": "hardest"},
    "all": {"name": "triplet", "negatives": "all"},
    "infonce": {"name": "infonce"},
}
# the same images on several ranks, and a number of items that no two or three ranks share evenly
IMAGE_IDS = [0, 1, 2, 0, 3, 4, 2, 5, 1, 0, 6]
GLOBAL_BATCH = 18  # of 115 captions: the last batch has seven, which two or three ranks share unevenly


def main(folder: Path) -> None:
    from lavis_itm_plugins import register

    register()
    torch.use_deterministic_algorithms(True)
    start_group()
    results = {name: loss_and_gradients(settings) for name, settings in LOSSES.items()}
    results |= {f"evaluation_{images}": evaluate(folder, images) for images in (5, 7)}
    results["training"] = train_in_float64(folder)
    results["resumed"] = resume(folder)
    if rank() == 0:
        torch.save(results, folder / f"ranks_{size()}.pt")
    if size() > 1:
        dist.destroy_process_group()


def size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def start_group() -> None:
    """By LAVIS's own function, and only once though several runs follow."""
    from lavis.common import dist_utils

    args = type("Args", (dict,), {"__setattr__": dict.__setitem__, "__getattr__": dict.get})(device="cpu")
    dist_utils.init_distributed_mode(args)
    assert args.distributed == (size() > 1 or "RANK" in os.environ)

    def already(run: Any) -> None:
        run.update(args)

    dist_utils.init_distributed_mode = already


def small_matcher(**base_loss: Any) -> Any:
    """An itm_vse without randomness in its forward pass, float64."""
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.encoders.vocabulary import Vocabulary
    from lavis_itm_plugins.matchers.vse import VseConfig, VseMatcher

    section = tiny.project(Path("."), Path("."))["model"]
    section["image"].update(dim=8, dropout=0.0)
    section["text"].update(dropout=0.0)
    keys = ("embed_dim", "min_count", "image", "text")
    torch.manual_seed(0)
    config = parse(VseConfig, {**{key: section[key] for key in keys}, "base_loss": base_loss}, "model")
    words = Vocabulary.from_captions([" ".join((*tiny.COLOURS, *tiny.THINGS, "a"))], min_count=1)
    return VseMatcher(config, words).double()


def loss_and_gradients(base_loss: dict[str, Any]) -> dict[str, Any]:
    """Of this rank's part of one fixed batch."""
    model = small_matcher(**base_loss)
    wrapped = DistributedDataParallel(model) if size() > 1 else model
    features = torch.from_numpy(np.random.default_rng(1).normal(size=(len(IMAGE_IDS), 3, 8)))
    captions = [f"a {tiny.COLOURS[i % 5]} {tiny.THINGS[n % 8]}" for n, i in enumerate(IMAGE_IDS)]
    own = np.array_split(np.arange(len(IMAGE_IDS)), size())[rank()]
    batch = {
        "image": features[own],
        "text_input": [captions[i] for i in own],
        "image_id": torch.tensor(IMAGE_IDS)[own],
        "epoch": 0,
    }
    loss = wrapped(batch)["loss"]
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def evaluate(folder: Path, images: int) -> dict[str, Any]:
    """Metrics and scores of a few images in batches of three: the third rank gets none of five."""
    from omegaconf import OmegaConf

    from lavis_itm_plugins.data.datasets import CaptionEvalDataset
    from lavis_itm_plugins.data.precomp import read_precomp
    from lavis_itm_plugins.matchers import encode
    from lavis_itm_plugins.runners.loaders import EvalBatches, make_loader
    from lavis_itm_plugins.tasks.retrieval import ItmRetrievalTask

    encode.CAPTIONS_AT_ONCE = 8
    dataset = CaptionEvalDataset(read_precomp(folder / f"data_{images}", "val"))
    loader = make_loader(dataset, EvalBatches(images, 3), workers=0, seed=0, pin=False)
    task = ItmRetrievalTask(cfg=OmegaConf.create({"use_dist_eval_sampler": True}))
    model = small_matcher().float()
    metrics = task.evaluation(model, loader)
    assert (metrics is None) == (rank() > 0)
    scores, _ = model.compute_sim_matrix(loader)
    return {"metrics": metrics, "scores": torch.from_numpy(scores)}


def project(folder: Path, name: str, dropout: float, **run: Any) -> Path:
    """A project with the same global batch on any number of ranks."""
    options = {"batch_size_train": GLOBAL_BATCH // size(), "batch_size_eval": 3, "use_dist_eval_sampler": True, **run}
    content = tiny.project(folder / "data_7", folder / "runs", **options, itm={"run_name": f"{name}_{size()}"})
    content["model"]["image"]["dropout"] = dropout
    content["model"]["text"].update(dropout=dropout, output_dropout=dropout)
    # the path by rank: all ranks write it
    return tiny.write_project(folder / f"{name}_{size()}_{rank()}.yaml", content)


def train_in_float64(folder: Path) -> dict[str, Any]:
    """Weights and metrics after two epochs through the runner."""
    from lavis_itm_plugins.data.features import FeatureFile
    from lavis_itm_plugins.train import run_training

    stock = FeatureFile.fetch
    FeatureFile.fetch = lambda *given: stock(*given).double()
    torch.set_default_dtype(torch.float64)
    runner = run_training(project(folder, "float64", 0.0))
    torch.set_default_dtype(torch.float32)
    FeatureFile.fetch = stock
    weights = {name: value for name, value in runner._model.state_dict().items() if torch.is_tensor(value)}
    return {"weights": weights, "metrics": runner.folder.metric_lines()}


def resume(folder: Path) -> dict[str, Any]:
    """The folders of a run with dropout, and of the same run stopped by a signal to the last rank, then resumed."""
    from lavis_itm_plugins.runners import loop
    from lavis_itm_plugins.train import run_training

    whole = run_training(project(folder, "whole", 0.2))
    stock, calls = loop._Stepper.accumulate, []

    def accumulate(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 9 and rank() == size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(*given)

    loop._Stepper.accumulate = accumulate
    try:
        run_training(project(folder, "stopped", 0.2))
    except SystemExit as end:
        assert end.code == 128 + signal.SIGTERM
    loop._Stepper.accumulate = stock
    assert len(calls) == 9
    stopped = run_training(project(folder, "stopped", 0.2, resume_ckpt_path="auto"))
    return {"whole": str(whole.folder.path), "stopped": str(stopped.folder.path)}


def fork(act: Any, sizes: list[int]) -> int:
    """Run `act` in forked processes, for each number of them; 0 when all ended well."""
    import lavis  # noqa: F401  imported before the fork

    failed = 0
    for processes in sizes:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for number in range(processes):
            child = os.fork()
            if child == 0:
                shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
                os.environ.update(shared, RANK=str(number), LOCAL_RANK=str(number))
                act()
                sys.stdout.flush()
                os._exit(0)
            children.append(child)
        failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return failed


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if len(sys.argv) > 2:
        sys.exit(fork(partial(main, target), [int(number) for number in sys.argv[2:]]))
    main(target)
