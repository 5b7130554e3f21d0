"""DBL: a training step with a momentum anchor against a plain step, and the loss against one score product.

The step: forward, backward, clipping, optimiser and `after_step`, of `itm_dbl` (momentum) and of its matcher alone on
the same batches, in turn in one process. The anchor's forward, a third of a plain step, is the bound: 1.33; the promise
is 1.45. The loss: forward and backward of `boosting_loss` on ready scores, against the product of two (B, 1024)
matrices; the promise is 0.7 at B = 1024.
Run ``python -m benchmarks boosting [--quick] [--threads 1]``, or ``python -m benchmarks.boosting --require``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.timing import cpu_seconds
from benchmarks.training import CLIP, make_batches, make_model
from lavis_itm_plugins import register
from lavis_itm_plugins.losses import boosting_loss

STEP_LIMIT, LOSS_LIMIT = 1.45, 0.7


def with_momentum(matcher: Any) -> Any:
    """`itm_dbl` around a matcher, with the same base loss."""
    from dataclasses import asdict

    from lavis_itm_plugins.methods.boost import BoostConfig
    from lavis_itm_plugins.methods.dbl import Dbl, DblConfig

    section = {"arch": matcher.arch, **asdict(matcher.config)}
    return Dbl(DblConfig(matcher=section, base_loss=matcher.config.base_loss, dbl=BoostConfig()), matcher).train()


def step_of(model: Any) -> Callable[[dict[str, Any]], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch)["loss"].backward()
        for group in model.clip_groups():
            torch.nn.utils.clip_grad_norm_(group, CLIP)
        optimizer.step()
        model.after_step()

    return step


def step_ratio(rounds: int, batch: int, dim: int, size: int) -> tuple[float, float]:
    """Median CPU seconds of a plain step, and the median ratio of the momentum step beside it."""
    batches = [{**made, "epoch": 0} for made in make_batches(2, batch, dim)]
    steps = step_of(make_model(dim, size, size)), step_of(with_momentum(make_model(dim, size, size)))
    plain, ratios = [], []
    for number in range(rounds + 1):
        seconds = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            steps[side](batches[number % 2])
            seconds[side] = time.process_time() - start
        # the first round makes the optimisers' states
        if number:
            plain.append(seconds[0])
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(plain), statistics.median(ratios)


def loss_ratios(batch: int, repeats: int) -> Iterator[tuple[str, float, float]]:
    """Name, seconds of one product and ratio of the loss to it, for both forms and both kinds of negatives."""
    images = normalize(torch.randn(batch, 1024), dim=1)
    captions = normalize(images + 0.1 * torch.randn(batch, 1024), dim=1)
    anchor = images @ captions.T
    target = (anchor + 0.05 * torch.randn(batch, batch)).requires_grad_()
    # as in training: some images come twice
    image_ids = torch.randint(0, batch, (batch,))
    positives = image_ids[:, None] == image_ids
    for form in ("relative", "absolute"):
        for negatives in ("hardest", "all"):

            def act(form: str = form, negatives: str = negatives) -> None:
                target.grad = None
                boosting_loss(target, anchor, form=form, negatives=negatives, positives=positives).backward()

            product = cpu_seconds(lambda: images @ captions.T, repeats)
            yield f"{form}, {negatives}", product, cpu_seconds(act, repeats) / product


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, which only make sure that all of it runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--require", action="store_true", help="exit with 1 if a promise is not kept")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    register()
    sizes = {"batch": 32, "dim": 64, "size": 128} if args.quick else {"batch": 128, "dim": 1024, "size": 512}
    plain, ratio = step_ratio(rounds=4 if args.quick else 12, **sizes)
    print(
        f"training step with a momentum anchor (batch {sizes['batch']}, 36 x {sizes['dim']}), {args.threads} threads: "
        f"plain {plain:.4f} CPU s, ratio {ratio:.3f} (at most {STEP_LIMIT})",
        flush=True,
    )
    failed = ratio > STEP_LIMIT
    batch = 128 if args.quick else 1024
    for name, product, share in loss_ratios(batch, repeats=10 if args.quick else 30):
        print(
            f"boosting_loss {name}, forward and backward, B {batch}: {share:.2f} of one product with D 1024 "
            f"({1000 * product:.2f} CPU ms; at most {LOSS_LIMIT} at B 1024)",
            flush=True,
        )
        failed |= share > LOSS_LIMIT and not args.quick
    return int(args.require and failed)


if __name__ == "__main__":
    sys.exit(main())
