"""Write the embeddings of a split to plain .npy files.

examples:
  lavis-itm encode runs/20260101-120000-itm_vse --split train --output embeddings
  lavis-itm encode my.yaml --checkpoint checkpoint.pth --float16

The folder gets image_embeds.npy (images, D), caption_embeds.npy (captions, D), caption_image.npy (each caption's image
row), captions.json and meta.json (which data, which weights).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lavis_itm_plugins.cli.evaluate import locate
from lavis_itm_plugins.errors import ItmError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("run", help="a run folder, or a YAML file")
    parser.add_argument("--split", default="train", choices=("train", "val", "test"), help="default: %(default)s")
    parser.add_argument("--checkpoint", help="default: checkpoint_best.pth of the run folder")
    parser.add_argument("--output", default="embeddings", help="folder to write (default: %(default)s)")
    parser.add_argument("--float16", action="store_true", help="half the size of float32")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the configuration")


def run(given: argparse.Namespace) -> int:
    """Encode and write."""
    config_path, checkpoint = locate(given.run, given.checkpoint)
    print("loading LAVIS ...", flush=True)
    from lavis_itm_plugins.data.joined import training_set
    from lavis_itm_plugins.distributed import rank
    from lavis_itm_plugins.evaluating import open_run
    from lavis_itm_plugins.matchers.encode import encode_split

    opened = open_run(config_path, checkpoint, options=given.options)
    matcher, loader = opened.matcher, opened.loader(given.split)
    images, captions, caption_image = encode_split(matcher, loader)
    if images.pooled is None or captions.pooled is None:
        raise ItmError(f"{matcher.arch} has no single vector for an image or a caption; nothing to write")
    if rank() == 0:
        arrays = images.pooled, captions.pooled, caption_image
        _write(Path(given.output), given, matcher, loader.dataset, arrays, training_set(opened.datasets))
    return 0


def _write(
    folder: Path, given: argparse.Namespace, matcher: Any, dataset: Any, arrays: tuple[Any, Any, Any], training: Any
) -> None:
    import numpy as np

    from lavis_itm_plugins.data.fingerprint import fingerprint
    from lavis_itm_plugins.methods.candidates import model_identity, training_identity
    from lavis_itm_plugins.mining.store import data_identity, write_json

    images, captions, caption_image = arrays
    dtype = np.float16 if given.float16 else np.float32
    if given.split == "train":
        # as itm_aoq knows it, which may train with lists that are mined from these files
        data = training_identity(training)
    else:
        data = data_identity(dataset.text, caption_image, len(images), fingerprint(dataset), given.split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "image_embeds.npy", images.float().cpu().numpy().astype(dtype))
        np.save(folder / "caption_embeds.npy", captions.float().cpu().numpy().astype(dtype))
        np.save(folder / "caption_image.npy", caption_image)
        (folder / "captions.json").write_text(json.dumps(dataset.text), encoding="utf-8")
        write_json(folder / "meta.json", {"data": data, "model": model_identity(matcher)})
    except OSError as error:
        raise ItmError(f"cannot write {folder}: {error.strerror or error}; choose another --output") from None
    print(
        f"{len(images)} images and {len(captions)} captions of {given.split}, {images.shape[1]} values each: {folder}"
    )
