"""Forward and backward of triplet (hardest) and InfoNCE on a score matrix: ours against the official forms.

References, written out below: VSE++ / SCAN / DBL build two B x B matrices of hinges; open_clip (single process) takes
two products, one per direction. Both start from the embeddings, as the products are part of the step.
Run ``python -m benchmarks.losses [--quick] [--threads 2]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lavis_itm_plugins.losses import infonce_loss, triplet_loss


def official_triplet(images: Tensor, captions: Tensor) -> Tensor:
    scores = images @ captions.T
    own = scores.diag().view(-1, 1)
    own_image = torch.eye(len(scores)) > 0.5
    rows = (0.2 + scores - own.expand_as(scores)).clamp(min=0).masked_fill(own_image, 0)
    columns = (0.2 + scores - own.T.expand_as(scores)).clamp(min=0).masked_fill(own_image, 0)
    return rows.max(1)[0].sum() + columns.max(0)[0].sum()


def official_infonce(images: Tensor, captions: Tensor) -> Tensor:
    labels = torch.arange(len(images))
    return (cross_entropy(images @ captions.T / 0.05, labels) + cross_entropy(captions @ images.T / 0.05, labels)) / 2


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "triplet hardest": (official_triplet, lambda images, captions: triplet_loss(images @ captions.T)),
    "infonce": (official_infonce, lambda images, captions: infonce_loss(images @ captions.T)),
}


def milliseconds(loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, captions: Tensor, repeats: int) -> float:
    """The fastest of ``repeats`` steps, in CPU time: other jobs on the machine only ever add."""
    times = []
    for _ in range(repeats):
        images.grad = captions.grad = None
        start = time.process_time()
        loss(images, captions).backward()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="B = 128 only, fewer repeats")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for batch in (128,) if args.quick else (128, 1024):
        images = normalize(torch.randn(batch, 1024), dim=1)
        captions = normalize(images + 0.1 * torch.randn(batch, 1024), dim=1).requires_grad_()
        images.requires_grad_()
        for name, (official, ours) in LOSSES.items():
            torch.testing.assert_close(ours(images, captions), official(images, captions), rtol=1e-4, atol=1e-5)
            repeats = 10 if args.quick else 40
            reference, fast = (milliseconds(loss, images, captions, repeats) for loss in (official, ours))
            print(
                f"{name}, B {batch}, D 1024, {args.threads} threads: official {reference:.2f} CPU ms, "
                f"ours {fast:.2f} ms, ratio {reference / fast:.2f}"
            )


if __name__ == "__main__":
    main()
