"""Check a data set before training (verify), or bring it into another form (convert).

examples:
  lavis-itm data verify captions.csv --images photos
  lavis-itm data verify data/f30k_precomp
  lavis-itm data verify --cfg-path my.yaml
  lavis-itm data convert dataset_coco.json --to jsonl -o coco.jsonl
  lavis-itm data convert train=train.json val=val.json --images photos --to precomp -o features --model resnet50
"""

from __future__ import annotations

import argparse
from typing import Any

from lavis_itm_plugins.cli.tables import text_table
from lavis_itm_plugins.errors import ItmError

FORMATS = ("karpathy", "lavis", "csv", "tsv", "jsonl", "folder")
OUTPUTS = ("karpathy", "lavis", "csv", "jsonl", "precomp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add both actions and their arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verify = actions.add_parser("verify", help="look at every caption and picture", description=_verify.__doc__)
    convert = actions.add_parser("convert", help="write another form", description=_convert.__doc__)
    for action in (verify, convert):
        action.add_argument(
            "source",
            nargs="*",
            metavar="PATH",
            help="annotation file, folder of images with .txt files, or train=FILE val=FILE test=FILE",
        )
        action.add_argument("--images", help="folder that image names are relative to; default: the annotation file's")
        action.add_argument("--format", choices=FORMATS, help="default: from the file")
    verify.add_argument("--cfg-path", help="verify the data sets of a project instead")
    verify.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, with --cfg-path")
    verify.add_argument("--no-checksum", action="store_true", help="leave the sha256 sums out")
    convert.add_argument("--to", required=True, choices=OUTPUTS, help="precomp: features in the SCAN layout")
    convert.add_argument("-o", "--output", required=True, help="file, or folder for lavis and precomp")
    _add_feature_arguments(convert.add_argument_group("features (--to precomp)"))


def _add_feature_arguments(group: Any) -> None:
    group.add_argument("--model", default="resnet50", help="timm model, or lavis:ARCH:TYPE (default: %(default)s)")
    group.add_argument("--no-pretrained", action="store_true", help="random weights; nothing is downloaded")
    group.add_argument("--image-size", type=int, default=224, help="side in pixels (default: %(default)s)")
    group.add_argument("--grid", type=int, help="average the regions to GRID x GRID; default: as the model gives them")
    group.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    group.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    group.add_argument("--workers", type=int, default=0, help="processes that decode pictures (default: %(default)s)")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")


def run(given: argparse.Namespace) -> int:
    """Verify or convert."""
    return _verify(given) if given.action == "verify" else _convert(given)


def _verify(given: argparse.Namespace) -> int:
    """Print a table of each split, everything that is wrong, and checksums; exit code 2 when the data are unusable."""
    from lavis_itm_plugins.data.sources import configured, verify_source

    if bool(given.source) == bool(given.cfg_path):
        raise ItmError("give either a data set or --cfg-path")
    if given.cfg_path:
        sources = configured(given.cfg_path, given.options)
    else:
        sources = [{"source": _source(given.source), "images": given.images, "format": given.format}]
    reports = [verify_source(**source, checksums=not given.no_checksum) for source in sources]
    for report in reports:
        print(f"\n{report.title}\n{text_table(report.header, report.rows)}")
        for line in report.findings.lines():
            print(line)
        for name, checksum in report.checksums:
            print(f"sha256 {checksum}  {name}")
    unusable = [report for report in reports if report.findings.fatal]
    if unusable:
        kinds = sorted(kind for report in unusable for kind in report.findings.fatal_kinds)
        raise ItmError(f"{unusable[0].title} cannot be used as it is ({', '.join(kinds)}); mend what is named above")
    print("\nusable: nothing found that hinders training")
    return 0


def _convert(given: argparse.Namespace) -> int:
    """Write annotations in another format, or encode the pictures into features that itm_precomp reads."""
    from lavis_itm_plugins.data.annotations import read_annotations

    if not given.source:
        raise ItmError("give the data set to convert: an annotation file, a folder, or train=FILE val=FILE")
    annotations = read_annotations(_source(given.source), images=given.images, format=given.format)
    if given.to == "precomp":
        print(f"features: {_extract(annotations, given)}")
        print("train on them: set datasets.itm_precomp.root to that folder")
        return 0
    from lavis_itm_plugins.data.annotation_writers import write_annotations

    for path in write_annotations(annotations, given.to, given.output):
        print(f"wrote {path}")
    print(f"image names are relative to {annotations.root}: set datasets.itm_pairs.images to it")
    return 0


def _extract(annotations: Any, given: argparse.Namespace) -> Any:
    for name, least in (("image_size", 16), ("batch_size", 1), ("grid", 1), ("workers", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise ItmError(f"--{name.replace('_', '-')} is {value}; give at least {least}")
    from lavis_itm_plugins import register

    print("loading LAVIS ...", flush=True)
    register()
    from lavis_itm_plugins.data.extract import Recipe, extract_features

    recipe = Recipe(
        *(given.model, not given.no_pretrained, given.image_size, given.grid, given.dtype, given.batch_size)
    )
    return extract_features(annotations, given.output, recipe, device=given.device, workers=given.workers)


def _source(given: list[str]) -> str | dict[str, str]:
    """One path, or a mapping from `train=FILE val=FILE`."""
    pairs = [item.partition("=") for item in given]
    if all(separator and split in ("train", "val", "test") for split, separator, _ in pairs):
        return {split: path for split, _, path in pairs}
    if len(given) > 1:
        raise ItmError(f"{' '.join(given)}: give one path, or each as train=FILE, val=FILE or test=FILE")
    return given[0]
