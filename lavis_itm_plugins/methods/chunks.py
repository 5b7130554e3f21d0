"""Batches beyond the memory: encoded in chunks, and chunk by chunk again in the backward pass (cached gradients).

The loss sees the vectors of the whole batch, so its gradient is that of the plain batch; held are the vectors and one
chunk's activations. (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP
2021, arXiv 2101.06983.) Random numbers are drawn again as in the first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lavis_itm_plugins.encoders.encoded import Encoded, concatenate
from lavis_itm_plugins.errors import ItmError

_OF_AN_IMAGE = ("image", "image_mask")


def encode_images(matcher: Any, samples: Mapping[str, Any], chunk: int | None = None) -> Encoded:
    """`matcher.encode_images`, in chunks of so many or, when not given, of the matcher's `encode_chunk`.

    Raises ItmError for encoders with batch statistics, which no chunk has.
    """
    own = {key: samples[key] for key in _OF_AN_IMAGE if samples.get(key) is not None}
    slices = _slices(len(samples["image"]), chunk or _chunk_of(matcher))
    parts = [{**samples, **{key: value[rows] for key, value in own.items()}} for rows in slices]
    return _in_chunks(matcher, matcher.encode_images, parts)


def encode_captions(matcher: Any, captions: Sequence[str], chunk: int | None = None) -> Encoded:
    """`matcher.encode_captions`, as `encode_images`."""
    slices = _slices(len(captions), chunk or _chunk_of(matcher))
    return _in_chunks(matcher, matcher.encode_captions, [captions[rows] for rows in slices])


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, whose activations are dropped and made again when its gradient is asked for.

    Random numbers on a GPU are drawn again only if a tensor among `args` is there.
    """
    return checkpoint(function, *args, use_reentrant=False)


def _chunk_of(matcher: Any) -> int | None:
    return getattr(matcher, "encode_chunk", None)


def _slices(count: int, size: int | None) -> list[slice]:
    if size is None or count <= size:
        return [slice(None)]
    return [slice(start, start + size) for start in range(0, count, size)]


def _in_chunks(matcher: Any, encode: Callable[[Any], Encoded], parts: Sequence[Any]) -> Encoded:
    if len(parts) == 1:
        return encode(parts[0])
    if not torch.is_grad_enabled():
        return concatenate([encode(part) for part in parts])
    _check_statistics(matcher)

    def once(part: Any, _place: torch.Tensor) -> tuple[Encoded, Any]:
        return encode(part), matcher.take_states()

    place = torch.empty(0, device=matcher.device)
    done = [recomputed(once, part, place) for part in parts]
    matcher.keep_states([states for _, states in done])
    return concatenate([encoded for encoded, _ in done])


def _check_statistics(matcher: Any) -> None:
    for name, module in matcher.named_modules():
        if isinstance(module, _BatchNorm) and module.training and not name.startswith(matcher.scorers):
            raise ItmError(
                f"encode_chunk: {matcher.arch} has batch statistics ({name}), which would be those of a chunk; leave "
                "encode_chunk out, or take a network without them (model.image.norm: layer)"
            )
