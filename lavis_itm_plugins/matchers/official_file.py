"""Checkpoints of the field's released code: read without executing anything, and told apart.

Their files hold lists of state dictionaries beside the parsed command line, an `argparse.Namespace`; that class and
NumPy's plain numbers are the only objects that are opened (an allow-list of torch's `weights_only` reader).
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError

# scores such as best_rsum are saved as NumPy numbers
ALLOWED = (
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    np.core.multiarray.scalar,
)

NETWORKS = ("vsepp", "vse_infty", "scan", "bfan", "vsrn", "sgraf", "dbl")


@dataclass(frozen=True)
class OfficialCheckpoint:
    """State dictionaries of the image encoder, the text encoder and what there is beside them, and the options."""

    path: Path
    image: dict[str, Tensor]
    text: dict[str, Tensor]
    other: dict[str, Tensor]
    options: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> OfficialCheckpoint:
        """Raises ItmError when the file is missing, damaged, of another form, or holds objects that could run code."""
        path = Path(path)
        content = _opened(path)
        model = content.get("model", content) if isinstance(content, Mapping) else content
        options = content.get("opt") if isinstance(content, Mapping) else None
        options = vars(options) if isinstance(options, argparse.Namespace) else dict(options or {})
        if isinstance(model, (list, tuple)) and 2 <= len(model) <= 3 and all(map(_is_state, model)):
            image, text, *rest = (_plain(part) for part in model)
            return cls(path, image, text, rest[0] if rest else {}, options)
        if _is_state(model) and any(key.startswith(("img_enc.", "module.img_enc.")) for key in model):
            parts = [_below(_plain(model), prefix) for prefix in ("img_enc.", "txt_enc.", "sim_enc.")]
            return cls(path, *parts, options)
        raise ItmError(
            f"{path} is no checkpoint of a released network: expected `model`, a list of two or three state "
            "dictionaries, or one whose names begin with img_enc., txt_enc. and sim_enc."
        )

    def network(self) -> str:
        """One of NETWORKS, by the names of weights and, between networks of the same weights, by the options."""
        if "sim_tranloc_w.weight" in self.other:
            return "sgraf"
        if "sim_tran_w.weight" in self.other:
            return "dbl"
        if any(key.startswith("Rs_GCN_1.") for key in self.image):
            return "vsrn"
        if any(key.startswith("gpool.") for key in self.image):
            return "vse_infty"
        if "focal_type" in self.options:
            return "bfan"
        if "cross_attn" in self.options or "raw_feature_norm" in self.options:
            return "scan"
        if not any(key.endswith("_reverse") for key in self.text):
            return "vsepp"
        raise ItmError(f"{self.path} does not say whether it is SCAN's or BFAN's; say it with --network")


def _opened(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ItmError(f"checkpoint {path} does not exist") from None
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise ItmError(
            f"checkpoint {path} holds more than weights and options ({reason.strip()}); it is not opened, because that "
            "could execute code"
        ) from None
    # torch's readers raise many types on bytes that are no checkpoint; none of them is ours to tell apart
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ItmError(f"checkpoint {path} is damaged or no checkpoint ({first}); use another one") from None


def _is_state(part: Any) -> bool:
    return isinstance(part, Mapping) and bool(part) and all(isinstance(value, Tensor) for value in part.values())


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of `DataParallel`, and with a weight norm multiplied out."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if "fc.weight_g" in plain:
        direction = plain.pop("fc.weight_v")
        plain["fc.weight"] = plain.pop("fc.weight_g") * direction / direction.norm()
    return plain


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
