"""What one process, and each of two, trains for test_lavis_matrix.py: `lavis_matrix_ranks.py FOLDER clip:plain ...`.

LAVIS is imported once. Float64, without dropout, the same global batch: the weights after two epochs go to
`FOLDER/NETWORK_METHOD_SIZE.pt`. What every rank draws by itself, the negatives of LAVIS's matching loss, is left out.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import tiny
import torch
import torch.distributed as dist
from methods.lavis_matrix import model_section, project
from runners.ranks import fork, rank, size, start_group

GLOBAL_BATCH = 20


def main(folder: Path, cases: list[tuple[str, str]]) -> None:
    from lavis_itm_plugins import register
    from lavis_itm_plugins.data.pictures import DecodedPictures
    from lavis_itm_plugins.matchers import blip2

    register()
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    stock = DecodedPictures.fetch
    DecodedPictures.fetch = lambda *given: stock(*given).double()
    # BLIP-2's own norm always computes in single precision
    blip2.LayerNorm = torch.nn.LayerNorm
    start_group()
    for network, method in cases:
        if method == "dbl_frozen" and size() == 1 and (network, "plain") not in cases:
            train(folder, network, "plain")
        train(folder, network, method)
    if size() > 1:
        dist.destroy_process_group()


def train(folder: Path, network: str, method: str) -> None:
    """One case; the frozen anchor is what one process trained plainly."""
    from lavis_itm_plugins.train import run_training

    objective = "itc" if method in ("plain", "dbl_momentum", "aoq") else "plain"
    anchor = str(folder / "runs" / f"{network}_plain_1")
    model = model_section(network, method, folder, objective, dropout=0.0, anchor=anchor)
    run = {"batch_size_train": GLOBAL_BATCH // size(), "batch_size_eval": 3, "k_test": None}
    content = project(folder, f"{network}_{method}_{size()}", model, **run)
    # the path by rank: all ranks write it
    path = tiny.write_project(folder / f"{network}_{method}_{size()}_{rank()}.yaml", content)
    state = run_training(path)._model.state_dict()
    if rank() == 0:
        weights = {name: value for name, value in state.items() if torch.is_tensor(value)}
        torch.save(weights, folder / f"{network}_{method}_{size()}.pt")


if __name__ == "__main__":
    wanted = [tuple(case.split(":")) for case in sys.argv[2:]]
    sys.exit(fork(partial(main, Path(sys.argv[1]), wanted), [1, 2]))
