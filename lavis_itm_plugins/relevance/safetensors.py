"""Read a `.safetensors` file without the package of that name, which LAVIS does not bring."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the file: 8 bytes with the length of a JSON header, the header, raw values.

    Raises ItmError when the file is cut short, or something else.
    """
    content = bytearray(path.read_bytes())
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        return {name: _tensor(content, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ItmError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from None


def _tensor(content: bytearray, start: int, entry: dict) -> Tensor:
    first, end = entry["data_offsets"]
    dtype = DTYPES[entry["dtype"]]
    values = torch.frombuffer(content, dtype=dtype, count=(end - first) // dtype.itemsize, offset=start + first)
    return values.reshape(entry["shape"]).clone()
