"""Cases of the official SCAN, BFAN, SGRAF and DBL code in float64 (tests/fixtures/golden_scoring.npz, an extract)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import FIXTURES
from torch import Tensor, nn

from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer, bfan_scores, scan_scores

FILE = FIXTURES / "golden_scoring.npz"


@cache
def arrays(path: Path = FILE) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by case and name; one that starts with @ is another's, under that name."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            value = file[key]
            if value.dtype.kind == "U" and str(value).startswith("@"):
                value = file[str(value)[1:]]
            case, _, name = key.partition("/")
            cases.setdefault(case, {})[name] = value
    return {
        case: cases[case] for case in cases if case.startswith(("scan_t2i", "scan_i2t", "bfan", "sgraf", "dbl_mss"))
    }


class Case:
    """One case as tensors of a type: `case["in/images"]`; settings as plain values: `case.setting("sim_dim")`."""

    def __init__(self, name: str, dtype: torch.dtype, path: Path = FILE) -> None:
        self.name, self.dtype, self.arrays = name, dtype, arrays(path)[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.from_numpy(np.array(self.arrays[name]))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def setting(self, name: str) -> Any:
        return self.arrays[f"hp/{name}"].item()

    def prefixed(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self[name] for name in self.arrays if name.startswith(prefix)}

    def module(self) -> nn.Module | None:
        """The network with the case's weights; None for SCAN and BFAN."""
        if self.name.startswith(("scan", "bfan")):
            return None
        regions, dim = self["in/images"].shape[1:]
        sim_dim = len(self["w/sim_eval_w.weight"][0])
        if self.name.startswith("dbl"):
            normalize = not ("hp/no_simnorm" in self and self.setting("no_simnorm"))
            scorer: nn.Module = DBLScorer(dim, sim_dim, normalize=normalize)
        else:
            module, steps = self.setting("module_name"), self.setting("sgr_step")
            scorer = SGRAFScorer(dim, sim_dim, module=module, steps=steps, regions=regions, dropout=0.0)
        scorer.to(self.dtype).load_state_dict(self.prefixed("w/"))
        return scorer.train("bn_train" in self.name)

    def scores(self, module: nn.Module | None, images: Tensor, captions: Tensor) -> Tensor:
        lengths, regions = self["in/lengths"], self.prefixed("in/").get("regions")
        if module is not None:
            return module(images, captions, lengths, regions)
        smooth = float(self.setting("lambda_softmax"))
        if self.name.startswith("bfan"):
            focal = self.setting("focal_type")
            return bfan_scores(images, captions, lengths, focal=focal, lambda_softmax=smooth, regions=regions)
        return scan_scores(
            *(images, captions, lengths),
            direction=self.name.split("_")[1],
            aggregate=self.setting("agg_func"),
            lambda_softmax=smooth,
            lambda_lse=float(self.setting("lambda_lse")),
            feature_norm=self.setting("raw_feature_norm"),
            regions=regions,
        )
