"""Make the relevance labels that itm_bcls trains with (build), or look at them before training (show).

examples:
  lavis-itm relevance build --cfg-path projects/bcls/train/precomp.yaml --options datasets.itm_precomp.root=data/f30k
  lavis-itm relevance build --cfg-path my.yaml --source sentence --encoder models/all-MiniLM-L6-v2
  lavis-itm relevance show --cfg-path my.yaml --examples 20
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from lavis_itm_plugins.cli.tables import text_table
from lavis_itm_plugins.errors import ItmError

SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add both actions and their arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="compute them and keep them on the disk", description=_build.__doc__)
    show = actions.add_parser("show", help="quantiles and examples", description=_show.__doc__)
    for action in (build, show):
        action.add_argument("--cfg-path", required=True, help="YAML file of a project; its training captions are used")
        action.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the project")
        action.add_argument(
            "--source", choices=("cider", "sentence", "scenes"), help="default: the project's, or cider"
        )
        action.add_argument("--encoder", help="folder or hub name of a sentence encoder (sentence)")
        action.add_argument("--reduce", choices=("max", "mean"), help="over an image's captions")
        action.add_argument("--cache", help="folder of computed labels; default LAVIS_ITM_CACHE or ~/.cache/lavis-itm")
    build.add_argument("--device", default="auto", help="auto, cpu or cuda, of the encoder (default: %(default)s)")
    show.add_argument("--examples", type=int, default=10, help="pairs with high labels to print (default: %(default)s)")
    show.add_argument("--sample", type=int, default=1000, help="images and captions looked at (default: %(default)s)")


def run(given: argparse.Namespace) -> int:
    """Build or show."""
    for name in ("examples", "sample"):
        if getattr(given, name, 1) < (name == "sample"):
            raise ItmError(f"--{name} is {getattr(given, name)}; give at least {int(name == 'sample')}")
    print("loading LAVIS ...", flush=True)
    config, labels = _labels(given)
    return _build(config, labels) if given.action == "build" else _show(given, labels)


def _labels(given: argparse.Namespace) -> tuple[Any, Any]:
    """The settings of the labels, and the labels; computed where they are not on the disk."""
    from lavis_itm_plugins import register

    register()
    from lavis_itm_plugins.config.load import ProjectConfig
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.data.relevance import LabelConfig, training_labels
    from lavis_itm_plugins.resources import find_config

    project = ProjectConfig(find_config(given.cfg_path), given.options)
    chosen = {name: getattr(given, name) for name in ("source", "encoder", "reduce", "cache")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    config = parse(
        LabelConfig, {**(project.model_cfg.get("labels") or {}), **chosen}, f"{given.cfg_path}: model.labels"
    )
    started = time.monotonic()
    labels = training_labels(config, device=getattr(given, "device", "auto"))
    print(
        f"labels from {config.source} of {labels.n_images} images and {len(labels.caption_image)} captions: "
        f"{time.monotonic() - started:.1f} s"
    )
    return config, labels


def _build(config: Any, labels: Any) -> int:
    """Compute the labels of the training captions and keep them; goes on where it was interrupted."""
    if config.source == "scenes":
        print("the truth of scenes is part of the data; nothing has to be kept")
        return 0
    size = sum(file.stat().st_size for file in config.root.rglob("*.npy"))
    print(f"kept in {config.root} ({size / 2**20:.1f} MiB with what was there before)")
    return 0


def _show(given: argparse.Namespace, labels: Any) -> int:
    """Print the quantiles of labels of pairs that do not match, of their differences, and pairs with high labels."""
    import numpy as np

    from lavis_itm_plugins.data.lookup import training_texts
    from lavis_itm_plugins.relevance import gap_quantile
    from lavis_itm_plugins.relevance.labels import sampled_block

    images, captions, block = sampled_block(labels, given.sample)
    if not np.isfinite(block).any():
        raise ItmError("there is no pair of an image and another image's caption; labels need at least two images")
    gaps = [gap_quantile(labels, share) for share in SHARES]
    rows = [
        [f"{100 * share:g}%", f"{value:.4f}", f"{gap:.4f}"]
        for share, value, gap in zip(SHARES, np.nanquantile(block, SHARES), gaps, strict=True)
    ]
    print(text_table(["share of pairs", "label up to", "difference up to"], rows))
    texts = training_texts()[0]
    flat = np.argsort(-np.nan_to_num(block, nan=-1), axis=None, kind="stable")[: given.examples]
    for image, caption in np.stack(np.unravel_index(flat, block.shape), axis=1):
        own = _shown_caption(labels, int(images[image]), int(captions[caption]))
        print(f"{block[image, caption]:.3f}  image {images[image]}: {texts[own]}")
        print(f"       caption of image {labels.caption_image[captions[caption]]}: {texts[captions[caption]]}")
    return 0


def _shown_caption(labels: Any, image: int, caption: int) -> int:
    if hasattr(labels, "nearest"):
        return int(labels.nearest(image, caption))
    return int((labels.caption_image == image).argmax())
