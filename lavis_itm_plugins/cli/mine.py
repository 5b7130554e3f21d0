"""Mine hard negatives of a training set: from a run, or from two .npy files of embeddings.

examples:
  lavis-itm mine runs/round_one
  lavis-itm mine runs/round_one --captions-per-image 300 --images-per-caption 60 --output candidates
  lavis-itm mine --image-embeds embeddings/image_embeds.npy --caption-embeds embeddings/caption_embeds.npy
  lavis-itm mine --image-embeds a.npy --caption-embeds b.npy --captions captions.json
  torchrun --nproc-per-node 2 -m lavis_itm_plugins.cli.main mine runs/round_one

The lists go into a folder named by a hash of what they were mined from; give it to itm_aoq as
model.candidates.source. Started again after a kill, the command goes on. In a folder that `lavis-itm encode` wrote, the
captions and what they belong to are found beside the embeddings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_itm_plugins.cli.evaluate import locate
from lavis_itm_plugins.cli.tables import text_table
from lavis_itm_plugins.errors import ItmError

if TYPE_CHECKING:
    from lavis_itm_plugins.mining import MiningSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("run", nargs="?", help="a run folder, or a YAML file with --checkpoint")
    parser.add_argument("--checkpoint", help="default: checkpoint_best.pth of the run folder")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the configuration")
    files = parser.add_argument_group("embeddings made by anybody, in place of a run")
    files.add_argument("--image-embeds", metavar="NPY", help="(images, D) float16 or float32")
    files.add_argument("--caption-embeds", metavar="NPY", help="(captions, D)")
    files.add_argument("--caption-image", metavar="NPY", help="each caption's image row; default: in equal groups")
    files.add_argument("--captions", metavar="FILE", help="texts, JSON list or one on each line; copies are left out")
    files.add_argument("--normalize", action="store_true", help="scale every embedding to length 1")
    files.add_argument("--inner-product", action="store_true", help="the plain product is the score, of any lengths")
    parser.add_argument("--output", help="folder of lists (default: candidates, in the run folder)")
    lists = parser.add_argument_group("lists")
    lists.add_argument("--captions-per-image", type=int, default=300, metavar="K", help="default: %(default)s")
    lists.add_argument("--images-per-caption", type=int, default=60, metavar="K", help="default: %(default)s")
    lists.add_argument("--keep-duplicates", action="store_true", help="keep captions with the text of an own one")
    lists.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the best-scored candidates")
    lists.add_argument("--relative-margin", type=float, metavar="M", help="drop what scores above (1 - M) x positive")
    lists.add_argument("--max-score", type=float, metavar="S", help="drop what scores above this")
    parser.add_argument("--memory-budget-mb", type=int, default=1024, metavar="MB", help="for score tiles")


def run(given: argparse.Namespace) -> int:
    """Mine, and say where the lists are and what was left out."""
    if (given.run is None) == (given.image_embeds is None):
        raise ItmError("give either a run folder, or --image-embeds with --caption-embeds")
    if given.memory_budget_mb < 1:
        raise ItmError(f"--memory-budget-mb is {given.memory_budget_mb}; give at least 1")
    from lavis_itm_plugins.distributed import rank
    from lavis_itm_plugins.mining import open_candidates

    folder = _from_files(given) if given.run is None else _from_run(given)
    if rank() == 0:
        found = open_candidates(folder)
        n_images, n_captions = len(found.negatives.captions), len(found.negatives.images)
        print(text_table(["", "count"], [[name, str(count)] for name, count in found.negatives.report.items()]))
        print(f"{n_images} images, {n_captions} captions; lists: {folder}")
        print(f"train with them: --options model.candidates.source={folder}")
    return 0


def _settings(given: argparse.Namespace) -> MiningSettings:
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.mining import MiningSettings

    filters = {name: getattr(given, name) for name in ("skip", "relative_margin", "max_score")}
    lists = {name: getattr(given, name) for name in ("captions_per_image", "images_per_caption")}
    return parse(MiningSettings, {**lists, "duplicates": not given.keep_duplicates, "filters": filters}, "mine")


def _from_run(given: argparse.Namespace) -> Path:
    settings = _settings(given)
    config_path, checkpoint = locate(given.run, given.checkpoint)
    print("loading LAVIS ...", flush=True)
    from lavis_itm_plugins.data.joined import training_set
    from lavis_itm_plugins.evaluating import open_run
    from lavis_itm_plugins.methods.candidates import mine_training_set
    from lavis_itm_plugins.methods.offline import check_trainable

    opened = open_run(config_path, checkpoint, options=given.options)
    dataset = training_set(opened.datasets)
    if dataset is None:
        raise ItmError(f"{given.run}: its data has no training split; give the data's folder with --options")
    default = Path(given.run) / "candidates" if Path(given.run).is_dir() else Path("candidates")
    return mine_training_set(
        Path(given.output) if given.output else default,
        opened.matcher,
        check_trainable(dataset),
        settings,
        batch_size=opened.settings.batch_size_eval,
        memory_budget_mb=given.memory_budget_mb,
    )


def _from_files(given: argparse.Namespace) -> Path:
    from dataclasses import asdict

    from lavis_itm_plugins.mining import DotProducts, MiningJob, build_candidates
    from lavis_itm_plugins.mining.exclusions import Exclusions
    from lavis_itm_plugins.mining.mine import caption_images
    from lavis_itm_plugins.mining.store import array_digest, text_digest

    settings, beside = _settings(given), _encoded_beside(given)
    images, captions = _array(given.image_embeds), _array(given.caption_embeds)
    scorer = DotProducts(images, captions, normalize=given.normalize)
    if not given.inner_product:
        scorer.check_unit()
    owners = caption_images(_owners(given.caption_image, len(images), len(captions)), len(images), len(captions))
    texts = _texts(given.captions) if given.captions else None
    exclusions = Exclusions(owners, len(images), captions=texts if settings.duplicates else None)
    lengths = settings.captions_per_image, settings.images_per_caption
    job = MiningJob(scorer, owners, exclusions, *lengths, settings.filters, given.memory_budget_mb)
    data: dict[str, Any] = {"n_images": len(images), "n_captions": len(captions), "caption_image": array_digest(owners)}
    if texts is not None:
        data["captions"] = text_digest(texts)
    # other arrays than those that the description is of keep what is known of them
    if all(beside.get(key) == value for key, value in data.items()):
        data = beside
    model = {"image_embeds": array_digest(images), "caption_embeds": array_digest(captions)}
    score = {"normalize": given.normalize, "inner_product": given.inner_product}
    made_from = {"data": data, "model": model, "settings": asdict(settings) | score}
    return build_candidates(given.output or "candidates", job, made_from)


def _array(path: str | None) -> Any:
    """A .npy file by memory map."""
    import numpy as np

    if path is None:
        raise ItmError("--caption-embeds is missing; give both files of embeddings")
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise ItmError(f"{path} does not exist; check its path") from None
    except (OSError, ValueError, EOFError) as error:
        raise ItmError(f"{path} cannot be read as a .npy array ({error}); is it complete?") from None


def _encoded_beside(given: argparse.Namespace) -> dict[str, Any]:
    """What `encode` says of the data of both files; it fills in the other files that it wrote and nobody gave."""
    folder = Path(given.image_embeds).parent
    files = (folder / "image_embeds.npy", folder / "caption_embeds.npy")
    if (Path(given.image_embeds), Path(given.caption_embeds or "")) != files or not (folder / "meta.json").is_file():
        return {}
    given.captions = given.captions or str(folder / "captions.json")
    given.caption_image = given.caption_image or str(folder / "caption_image.npy")
    try:
        data: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ItmError(f"{folder / 'meta.json'} is damaged; encode again") from None
    return data


def _owners(path: str | None, n_images: int, n_captions: int) -> Any:
    """Each caption's image row: as given, or in equal groups."""
    import numpy as np

    if path:
        return _array(path)
    if not n_images or n_captions % n_images:
        raise ItmError(f"{n_captions} captions are no whole number for each of {n_images} images; give --caption-image")
    return np.arange(n_captions) // (n_captions // n_images)


def _texts(path: str) -> list[str]:
    from lavis_itm_plugins.data.text import read_lines, read_text

    if not path.endswith(".json"):
        return read_lines(Path(path))
    try:
        texts = json.loads(read_text(Path(path)))
    except ValueError as error:
        raise ItmError(f"{path} is no JSON ({error}); give a list of captions") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ItmError(f"{path} holds no list of captions; give one, in the order of the embeddings")
    return texts
