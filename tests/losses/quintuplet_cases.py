"""Random inputs for the tests of quintuplet_loss, and its value with the gradient of each."""

from __future__ import annotations

import torch

from lavis_itm_plugins.losses import quintuplet_loss

# ours -> the archive's
OFFLINE = {
    "offline_captions": "i2thnoff",
    "offline_images": "t2ihnoff",
    "offline_pairs": "i2thnoff2",
    "partner_pairs": "t2ihnoff2",
}
Inputs = dict[str, torch.Tensor]


def value_and_gradients(inputs: Inputs, **options: object) -> tuple[torch.Tensor, Inputs]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    loss = quintuplet_loss(**leaves, **options)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def random_inputs(size: int, seed: int = 0, dtype=torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, size, generator=generator, dtype=dtype) / 4
    return {"scores": scores} | {name: torch.randn(size, generator=generator, dtype=dtype) / 4 for name in OFFLINE}
