"""What one process and each of two compute for test_lavis_two_ranks.py: losses, gradients, queues, re-ranking."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lavis_tiny
import numpy as np
import torch
from lavis.models.albef_models import compute_sim_matrix as albef_matrix
from lavis.runners.runner_base import RunnerBase
from omegaconf import OmegaConf
from runners.ranks import fork, rank, size, start_group
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

IMAGE_IDS = [0, 1, 2, 0, 3, 4, 2]
CAPTIONS = ["a red ball", "two dogs", "a cat on a box", "the ball", "one star", "the tiny blue ring is next", "a cat"]
IN_CHUNKS = ("clip", "blip")
# LAVIS cannot re-rank more than the pictures of a rank's share
AS_LAVIS, K_TEST = ("clip", "blip", "albef"), 3


class Pictures(Dataset):
    """Five pictures with seven captions."""

    text, image, txt2img = CAPTIONS, list(range(5)), dict(enumerate(IMAGE_IDS))

    def __init__(self) -> None:
        self.pixels = torch.rand(5, 3, lavis_tiny.SIZE, lavis_tiny.SIZE, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, item: int) -> dict:
        return {"image": self.pixels[item], "index": item}

    def collater(self, items: list) -> dict:
        return torch.utils.data.default_collate(items)


def main(folder: Path) -> None:
    from lavis_itm_plugins import register
    from lavis_itm_plugins.registry import registered

    register()
    start_group()
    results = {}
    for network in lavis_tiny.NETWORKS:
        torch.manual_seed(0)
        # two ranks in chunks equal one process with the whole batch
        keys = {"objective": "itc", "encode_chunk": 2 if size() > 1 and network in IN_CHUNKS else None}
        section = OmegaConf.create(lavis_tiny.section(network, folder / "vocab.txt", **keys))
        model = registered("model")[f"itm_{network}"].from_config(section).double().train()
        if network == "blip2":
            # BLIP-2's own norm always computes in single precision
            model.network.ln_vision.__class__ = torch.nn.LayerNorm
        wrapped = DistributedDataParallel(model) if size() > 1 else model
        data = Pictures()
        own = np.array_split(np.arange(len(IMAGE_IDS)), size())[rank()]
        for step in range(2):
            batch = {
                "image": data.pixels[torch.tensor(IMAGE_IDS)[own]],
                "text_input": [CAPTIONS[i] for i in own],
                "image_id": torch.tensor(IMAGE_IDS)[own],
                "epoch": step,
                "iters": 0,
                "num_iters_per_epoch": 1,
            }
            loss = wrapped(batch)["loss"]
            loss.backward()
            model.after_step()
            results[f"{network}.loss_{step}"] = loss.detach()
        results |= {f"{network}.{name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
        results |= {f"{network}.{name}": value for name, value in model.named_buffers()}
        if network != "clip":
            results |= reranked(network, model, data)
        if network in AS_LAVIS:
            results |= as_lavis_scores(network, model.float().eval(), data)
    if rank() == 0:
        torch.save(results, folder / f"ranks_{size()}.pt")


@torch.no_grad()
def as_lavis_scores(network: str, model: object, data: Pictures) -> dict[str, torch.Tensor]:
    """Image by caption, by LAVIS's code and ours from the same loaders of LAVIS's: its default one, and the other."""
    data.pixels = data.pixels.float()
    scores = {"ours": model.compute_sim_matrix(lavis_loader(data), {"k_test": K_TEST})}
    for who, loader in {
        "default": lavis_loader(data),
        "whole": lavis_loader(data, use_dist_eval_sampler=False),
    }.items():
        if network == "clip":
            # LAVIS reads 77 tokens whatever the network has
            model.network.tokenizer = lambda texts: model.tokens(texts)
            scores[f"lavis_{who}"] = model.network.compute_sim_matrix(loader)
        else:
            scores[f"lavis_{who}"] = albef_matrix(model=model.network, data_loader=loader, k_test=K_TEST)
    data.pixels = data.pixels.double()
    return {f"{network}.scores.{who}": torch.from_numpy(np.array(given[0])) for who, given in scores.items()}


def lavis_loader(data: Pictures, **run: bool) -> object:
    """What LAVIS's runner evaluates from; by default a rank gets its share of the pictures."""
    runner = RunnerBase.__new__(RunnerBase)
    runner.config = SimpleNamespace(run_cfg=OmegaConf.create({"device": "cpu", "distributed": size() > 1, **run}))
    runner._device = None
    return runner.create_loaders([data], 0, [2], [False], [data.collater])[0]


def reranked(network: str, model: object, data: Pictures) -> dict[str, torch.Tensor]:
    """Both directions, from batches of two: the last one, of one picture, is dealt to one rank."""
    from lavis_itm_plugins.runners.loaders import EvalBatches, make_loader

    loader = make_loader(data, EvalBatches(len(data), 2), workers=0, seed=0, pin=False)
    scores = model.compute_sim_matrix(loader, SimpleNamespace(get=lambda key: 3))
    return {f"{network}.reranked_{number}": torch.from_numpy(np.array(given)) for number, given in enumerate(scores)}


if __name__ == "__main__":
    sys.exit(fork(partial(main, Path(sys.argv[1])), [1, 2]))
