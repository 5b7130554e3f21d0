"""Labels from sentence embeddings: cosine of captions through any BERT-type encoder, one float16 vector a caption."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path
from lavis_itm_plugins.relevance.cache import cached, digest_of, file_digest
from lavis_itm_plugins.relevance.labels import IntArray, over_captions
from lavis_itm_plugins.relevance.safetensors import read_safetensors

VERSION = 1
BATCH = 128
SAVED_EVERY = 32  # batches: what an interrupted pass repeats at most
VECTORS, PROGRESS = "vectors.npy", "progress.json"
WEIGHTS = ("pytorch_model.bin", "model.safetensors")


@dataclass(frozen=True)
class SentenceEncoder:
    """A tokeniser and a network of transformers; `encode` pools its last states over the words and normalises."""

    tokenizer: Any
    network: Any

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> SentenceEncoder:
        """From a local folder, or from the hub by name; raises ItmError when neither can be read."""
        from transformers import AutoTokenizer

        folder = user_path(name)
        if folder.is_dir() and not any((folder / file).exists() for file in WEIGHTS):
            raise ItmError(f"sentence encoder {folder} has no weights ({' or '.join(WEIGHTS)}); name a trained one")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name)
            network = _network(folder, name)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            if isinstance(error, ItmError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ItmError(f'sentence encoder "{name}" cannot be read ({reason}); give a folder or hub name') from None
        return cls(tokenizer, network.eval().to(device))

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (n, d), float32."""
        limit = min(self.tokenizer.model_max_length, self.network.config.max_position_embeddings)
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        tokens = tokens.to(self.network.device)
        states = self.network(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(2).to(states.dtype)
        return normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1).float().cpu()


def _network(folder: Path, name: str) -> Any:
    from transformers import AutoConfig, AutoModel

    if not folder.is_dir():
        return AutoModel.from_pretrained(name)
    if (folder / WEIGHTS[0]).exists():
        return AutoModel.from_pretrained(str(folder))
    # transformers of LAVIS's age reads this form only with a package that LAVIS does not bring
    network = AutoModel.from_config(AutoConfig.from_pretrained(str(folder)))
    weights = read_safetensors(folder / WEIGHTS[1])
    missing = [key for key in network.load_state_dict(weights, strict=False).missing_keys if "pooler" not in key]
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing:
        raise ItmError(f"sentence encoder {folder}: the weights lack {missing[0]}; use a folder of one network")
    return network


class SentenceSimilarity:
    """Cosine of captions, clipped at 0; `CaptionLabels` makes an image's labels of it."""

    def __init__(self, vectors: npt.NDArray[np.floating]) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def similarity(self, references: IntArray, captions: IntArray) -> npt.NDArray[np.floating]:
        """Cosines (n, m) in [0, 1] of captions (m,) and references (n,), by row."""
        return np.clip(self._unit(references) @ self._unit(captions).T, 0, 1)

    def _unit(self, rows: IntArray) -> npt.NDArray[np.float32]:
        # float16 moved the lengths off 1
        vectors = np.asarray(self.vectors[rows], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cached_sentences(captions: Sequence[str], encoder: str, root: Path, *, device: str = "cpu") -> SentenceSimilarity:
    """Vectors of the captions from the cache below `root`; embedded first where they are not there.

    The pass shows a bar on a terminal and goes on where it was interrupted. Raises ItmError for an encoder that cannot
    be read, a caption whose vector is no direction, a folder that cannot be written.
    """
    made_from = {
        "version": VERSION,
        "captions": digest_of(captions),
        "count": len(captions),
        "encoder": _identity(encoder),
    }
    folder = cached(root, "sentences", made_from, lambda part: embed(captions, encoder, part, device=device))
    return SentenceSimilarity(np.load(folder / VECTORS, mmap_mode="r"))


def _identity(encoder: str) -> Any:
    """What the vectors depend on: the content of a folder, wherever it lies, or a hub name."""
    folder = user_path(encoder)
    if not folder.is_dir():
        return encoder
    files = [folder / name for name in ("config.json", "vocab.txt", "tokenizer.json", *WEIGHTS)]
    return {file.name: file_digest(file) for file in files if file.exists()}


def embed(captions: Sequence[str], encoder: str, folder: Path, *, device: str = "cpu") -> None:
    """Write the captions' vectors (n, d) float16 into `folder`, short captions first so that little is padded."""
    network = SentenceEncoder.load(encoder, device)
    order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
    vectors, done = _open(folder, len(captions), network.network.config.hidden_size)
    starts = range(done, len(captions), BATCH)
    bar = tqdm(total=len(captions), initial=done, desc="embed captions", unit="caption", leave=False, disable=None)
    for number, start in enumerate(starts, start=1):
        rows = order[start : start + BATCH]
        vectors[rows] = _checked(network.encode([captions[row] for row in rows]), rows, captions)
        bar.update(len(rows))
        if number % SAVED_EVERY == 0 or number == len(starts):
            vectors.flush()
            _write_progress(folder, start + len(rows))
    bar.close()
    (folder / PROGRESS).unlink(missing_ok=True)


def _open(folder: Path, count: int, size: int) -> tuple[np.memmap[Any, Any], int]:
    """The file of vectors, and how many of it an interrupted pass has finished."""
    path, shape = folder / VECTORS, (count, size)
    try:
        done = int(json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["done"])
        vectors = np.lib.format.open_memmap(path, mode="r+")
        if vectors.shape == shape and vectors.dtype == np.float16 and 0 <= done <= count:
            return vectors, done
    except (OSError, ValueError, KeyError, TypeError):
        done = 0
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape), 0


def _write_progress(folder: Path, done: int) -> None:
    temporary = folder / f".{PROGRESS}.tmp"
    temporary.write_text(json.dumps({"done": done}), encoding="utf-8")
    os.replace(temporary, folder / PROGRESS)


def _checked(vectors: Tensor, rows: Sequence[int], captions: Sequence[str]) -> npt.NDArray[np.float16]:
    """The vectors as float16; ItmError for one that is not finite or has no direction: its labels would be NaN."""
    bad = (~vectors.isfinite().all(dim=1) | (vectors.norm(dim=1) < 0.5)).nonzero()[:, 0].tolist()
    if bad:
        row = rows[bad[0]]
        raise ItmError(f"caption {row} ({captions[row]!r}) has no usable vector; mend it, or use another encoder")
    return vectors.numpy().astype(np.float16)


def sentence_relevance(image_embeds: Any, caption_embeds: Any, *, mask: Any = None, reduce: str = "max") -> Any:
    """Cosine of each caption with the captions of each image: their maximum or mean.

    Args:
        image_embeds: (n, C, E), vectors of each image's captions, of any length; array or tensor.
        caption_embeds: (m, E).
        mask: bool (n, C), True for a caption, where images have fewer than C; at least one each.
        reduce: "max" | "mean".

    Returns:
        (n, m), not clipped, as `image_embeds` came: array or tensor on its device. An image's own captions get their
        cosine too; `CaptionLabels` makes it 1.

    Raises:
        ItmError: shapes that do not fit, an image without captions, a vector that is zero or not finite.

    >>> sentence_relevance(np.array([[[1.0, 0.0], [0.0, 2.0]]]), np.array([[1.0, 1.0], [3.0, 0.0]])).round(3)
    array([[0.707, 1.   ]])
    """
    images, captions = torch.as_tensor(image_embeds), torch.as_tensor(caption_embeds)
    if images.ndim != 3 or captions.ndim != 2 or images.shape[2] != captions.shape[1]:
        raise ItmError(f"embeddings of shape {tuple(images.shape)}, {tuple(captions.shape)}; give (n, C, E) and (m, E)")
    real = torch.ones(images.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask).cpu()
    if real.dtype != torch.bool or real.shape != images.shape[:2]:
        raise ItmError(f"mask is {real.dtype} of shape {tuple(real.shape)}; give bool {tuple(images.shape[:2])}")
    if not real.any(dim=1).all():
        raise ItmError(f"image {int(real.any(dim=1).int().argmin())} has no caption; leave it out")
    cosines = _directions(images[real.to(images.device)], "image_embeds") @ _directions(captions, "caption_embeds").T
    labels = over_captions(cosines.detach().cpu().numpy(), real.sum(dim=1).tolist(), reduce)
    return torch.as_tensor(labels, device=images.device) if isinstance(image_embeds, Tensor) else labels


def _directions(vectors: Tensor, name: str) -> Tensor:
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    lengths = wide.norm(dim=1, keepdim=True)
    if not (lengths.isfinite() & (lengths > 0)).all():
        raise ItmError(f"{name} holds a vector that is zero or not finite; it has no cosine")
    return wide / lengths
