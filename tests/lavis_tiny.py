"""LAVIS's networks so small that they train in a moment, on pictures of scenes, with a vocabulary of a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny

from lavis_itm_plugins.encoders.tokenizers import SPECIAL

NETWORKS = ("clip", "blip", "albef", "blip2")
SIZE = 32
COLOURS = "red green blue yellow purple orange white black gray grey brown pink cyan"
THINGS = "circle square triangle star cross ring ball box dog cat picture scene"
GRAMMAR = "a an the of on in and two three one with to left right above below behind is are next"
WORDS = f"{GRAMMAR} {COLOURS} {THINGS}".split()


def write_words(folder: Path) -> Path:
    """A `vocab.txt`, letters included, so that every word can be spelled."""
    letters = [chr(ord("a") + i) for i in range(26)]
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters), ".", ",", *"0123456789"]
    path = folder / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    return path


def section(network: str, words: Path, **keys: Any) -> dict[str, Any]:
    """The `model` section of `itm_NETWORK` at the smallest size."""
    sizes: dict[str, Any] = {"vit": {"size": SIZE, "patch": 16, "width": 64, "layers": 2, "heads": 2}, "embed_dim": 16}
    if network == "clip":
        del sizes["vit"]["heads"]
        sizes["text"] = {"width": 32, "layers": 2, "heads": 2, "context": 16}
    else:
        sizes["bert"] = {"width": 32, "layers": 2, "heads": 2, "hidden": 48, "dropout": 0.0}
        sizes["tokenizer_path"] = str(words)
    if network == "albef":
        sizes["bert"]["fusion_layer"] = 1
    sizes |= {"queries": 4} if network == "blip2" else {}
    sizes |= {"queue_size": 40} if network in ("blip", "albef") else {}
    own = {name: {**sizes[name], **keys.pop(name, {})} for name in ("vit", "bert", "text") if name in sizes}
    return {"arch": f"itm_{network}", "model_type": "small", **sizes, **own, **keys}


def project(model: dict[str, Any], folder: Path, name: str, **run: Any) -> dict[str, Any]:
    """A project on 12 pictures of 32 pixels: 60 captions in two epochs of four steps."""
    content = tiny.project(folder, folder / "runs", itm={"run_name": name, **run.pop("itm", {})}, **run)
    content["model"] = model
    scenes = {"train": 12, "val": 4, "test": 4, "size": SIZE, "cache": str(folder)}
    content["datasets"] = {"itm_scenes": scenes}
    content["run"] |= {"init_lr": 1e-3, "itm": content["run"]["itm"]}
    return content
