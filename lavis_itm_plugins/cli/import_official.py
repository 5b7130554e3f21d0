"""Make a run folder of a released checkpoint: VSE++, VSE-infinity, SCAN, BFAN, VSRN, SGRAF, DBL, AOQ.

examples:
  lavis-itm import-official scan/model_best.pth.tar --vocab vocab/f30k_precomp_vocab.json -o runs/scan
  lavis-itm import-official bfan.pth.tar --network bfan --vocab vocab.json --data data/coco_precomp -o runs/bfan
  lavis-itm evaluate runs/scan
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lavis_itm_plugins.errors import ItmError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("checkpoint", help="the released file; read without executing anything in it")
    parser.add_argument("--vocab", metavar="FILE", help="the release's JSON vocabulary")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the new run folder")
    parser.add_argument("--data", default="data/f30k_precomp", help="features it is evaluated on (default %(default)s)")
    parser.add_argument(
        "--network", help="vsepp, vse_infty, scan, bfan, vsrn, sgraf or dbl; default: found in the file"
    )
    parser.add_argument("--bert", help="folder or hub name of the BERT of a VSE-infinity checkpoint")


def run(given: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    folder = Path(given.output)
    if (folder / "config.yaml").exists():
        raise ItmError(f"{folder} holds a run already; choose another folder")
    from lavis_itm_plugins import register

    register()
    from lavis_itm_plugins.encoders.vocabulary import Vocabulary
    from lavis_itm_plugins.matchers.official import official_matcher
    from lavis_itm_plugins.matchers.official_file import OfficialCheckpoint

    vocabulary = Vocabulary.load(given.vocab) if given.vocab else None
    checkpoint = OfficialCheckpoint.read(given.checkpoint)
    matcher = official_matcher(checkpoint, vocabulary, network=given.network, bert=given.bert)
    write_run(folder, matcher, given.data)
    parameters = sum(parameter.numel() for parameter in matcher.parameters())
    print(f"{folder}: {matcher.arch}, {parameters:,} parameters; go on with: lavis-itm evaluate {folder}")
    return 0


def write_run(folder: Path, matcher: Any, data: str) -> None:
    """Configuration, weights and vocabulary, as a run of the trainer leaves them; raises ItmError when it cannot."""
    from dataclasses import asdict

    from omegaconf import OmegaConf

    from lavis_itm_plugins.checkpoints import write_checkpoint

    model_type = next(iter(matcher.PRETRAINED_MODEL_CONFIG_DICT))
    content = {
        "model": {"arch": matcher.arch, "model_type": model_type, **asdict(matcher.config)},
        "datasets": {"itm_precomp": {"root": data}},
        "run": {
            "task": "itm_retrieval",
            "runner": "itm_runner",
            "evaluate": True,
            "batch_size_eval": 128,
            "test_splits": ["test"],
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")
    except OSError as error:
        raise ItmError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    write_checkpoint(folder / "checkpoint_best.pth", {"model": matcher.state_dict(), "config": content})
    matcher.write_assets(folder)
