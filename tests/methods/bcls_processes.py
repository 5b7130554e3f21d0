"""A small itm_bcls whose vectors are its parameters; and, as a script, what test_bcls.py needs other processes for.

`bcls_processes.py FOLDER` imports LAVIS once and forks: loss and gradients of one and of two ranks, a run, and one that
is killed and resumed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from lavis_itm_plugins import register
from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.encoders.encoded import Encoded

register()
from lavis_itm_plugins.matchers.base import Matcher  # noqa: E402
from lavis_itm_plugins.methods.base_loss import BaseLoss  # noqa: E402
from lavis_itm_plugins.methods.bcls import BCLS, BclsConfig  # noqa: E402


class Vectors(Matcher):
    """A matcher whose parameters are the vectors themselves, by position in the batch."""

    def __init__(self, images: torch.Tensor, captions: torch.Tensor, base_loss: BaseLoss) -> None:
        super().__init__(None)
        self.images, self.captions = torch.nn.Parameter(images), torch.nn.Parameter(captions)
        self.config = SimpleNamespace(base_loss=base_loss)

    def encode_images(self, samples):
        return Encoded(normalize(self.images[samples["image"]], dim=1))

    def encode_captions(self, captions):
        return Encoded(normalize(self.captions[[int(caption) for caption in captions]], dim=1))


class Table:
    """Labels that are written down, one caption an item; images may share an id."""

    def __init__(self, values: np.ndarray, image_ids: np.ndarray) -> None:
        self.values, self.caption_image, self.n_images = values, image_ids, len(values)
        self.asked: list[tuple] = []

    def labels(self, images, captions):
        self.asked.append((images, captions))
        return self.values[np.ix_(captions, captions)].copy()


def method_of(images, captions, labels, ids, **keys) -> BCLS:
    config = parse(BclsConfig, {"matcher": {"arch": "itm_vse"}, **keys}, "model")
    model = BCLS(config, Vectors(torch.from_numpy(images), torch.from_numpy(captions), config.base_loss))
    model.source = Table(labels, ids)
    return model


def batch_of(rows, ids, **more):
    return {
        "image": torch.as_tensor(rows),
        "text_input": [str(row) for row in rows],
        "image_id": torch.as_tensor(ids)[torch.as_tensor(rows)],
        "index": torch.as_tensor(rows),
        **more,
    }


def random_method(size=9, **keys) -> tuple[BCLS, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = np.array([0, 1, 2, 0, 3, 4, 2, 5, 6])[:size]
    labels = rng.random((size, size))
    labels[ids[:, None] == ids] = 1
    return method_of(rng.normal(size=(size, 4)), rng.normal(size=(size, 4)), labels, ids, **keys), ids


def loss_and_gradients(folder: Path, number: int = 0, size: int = 1) -> None:
    """Of this rank's part of one batch, in which an image is on both ranks; the first rank writes them."""
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=size)
    model, ids = random_method(kendall={"window": 4, "stride": 2, "surrogate": "softplus"})
    wrapped = DistributedDataParallel(model) if size > 1 else model
    loss = wrapped(batch_of(np.array_split(np.arange(9), size)[number], ids))["loss"]
    loss.backward()
    if number == 0:
        found = {"loss": loss.detach(), **{name: value.grad for name, value in model.named_parameters()}}
        torch.save(found, folder / f"ranks_{size}.pt")


def run(folder: Path, *options: str, kill_at: int | None = None) -> None:
    """Train the project in the folder, until the step that kills."""
    from lavis_itm_plugins.runners import loop
    from lavis_itm_plugins.train import run_training

    stock, calls = loop._Stepper.accumulate, []

    def accumulate(*given):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(*given)

    loop._Stepper.accumulate = accumulate
    run_training(folder / "project.yaml", options)


def fork(act: Callable[[], None]) -> int:
    """The process that acts and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        act()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    name = "run.itm.run_name=killed"
    together = [partial(loss_and_gradients, target, number, 2) for number in range(2)]
    together += [partial(loss_and_gradients, target), partial(run, target, "run.itm.run_name=whole")]
    # in the sixth step of the second epoch
    victim = partial(run, target, name, kill_at=8 + 6)
    children = [fork(act) for act in (*together, victim)]
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [0, 0, 0, 0, -signal.SIGKILL], ends
    resumed = fork(partial(run, target, name, "run.resume_ckpt_path=auto"))
    assert os.waitstatus_to_exitcode(os.waitpid(resumed, 0)[1]) == 0
