"""Released checkpoints as our matchers: VSE++, VSE-infinity, SCAN, BFAN, VSRN, SGRAF, DBL, and AOQ's copies of them.

Sizes come from the weights, what they do not show from the options in the file; names of weights are mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.encoders.vocabulary import Vocabulary
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.matchers.base import DESCRIPTION, Matcher, load_strictly
from lavis_itm_plugins.matchers.bfan import BfanMatcher
from lavis_itm_plugins.matchers.official_file import NETWORKS, OfficialCheckpoint
from lavis_itm_plugins.matchers.scan import ScanMatcher
from lavis_itm_plugins.matchers.sgraf import SgrafMatcher
from lavis_itm_plugins.matchers.vse import VseMatcher
from lavis_itm_plugins.matchers.vsrn import VsrnMatcher

# Official prefix: ours; None where the official code has weights that it never uses.
IMAGE_NAMES: dict[str, str | None] = {
    "fc.": "image_encoder.projection.fc.",
    "mlp.layers.0.": "image_encoder.projection.mlp.first.",
    "mlp.layers.1.": "image_encoder.projection.mlp.second.",
    "mlp.bns.0.": "image_encoder.projection.mlp.norm.",
    "mlp.bns.1.": None,
    "gpool.": "image_encoder.pooling.gpo.",
    "img_rnn.": "reasoning.img_rnn.",
    "Rs_GCN_": "reasoning.Rs_GCN_",
    "bn.": "reasoning.bn.",
}
TEXT_NAMES: dict[str, str | None] = {
    "embed.": "text_encoder.words.embed.",
    "rnn.": "text_encoder.words.rnn.",
    "cap_rnn.": "text_encoder.words.rnn.",
    "gpool.": "text_encoder.pooling.gpo.",
    "bert.pooler.": None,
    "bert.": "text_encoder.words.bert.",
    "linear.": "text_encoder.projection.",
}
OTHER_NAMES: dict[str, str | None] = {"encoder.": "captioner.encoder.", "decoder.": "captioner.decoder.", "": "scorer."}

_AGGREGATES = {"Mean": "mean", "Max": "max", "Sum": "sum", "LogSumExp": "lse"}
# The official code never cuts a caption.
_MAX_WORDS = 512


def official_matcher(
    checkpoint: OfficialCheckpoint,
    vocabulary: Vocabulary | None,
    *,
    network: str | None = None,
    bert: str | None = None,
) -> Matcher:
    """The matcher of a released checkpoint, in evaluation mode; `network` is one of NETWORKS, found when not given.

    `vocabulary` is that of the release (none for a BERT, which `bert` names). Raises ItmError for what does not fit.
    """
    network = network or checkpoint.network()
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    _check_options(checkpoint)
    kind, section = SECTIONS[network](checkpoint)
    section["text"] = {**_text_section(checkpoint, vocabulary, bert), **section.pop("text", {})}
    if section["text"]["kind"] == "bert":
        vocabulary = None
    source = str(checkpoint.path)
    model = kind(parse(kind.config_class, section, source), vocabulary)
    state = renamed(checkpoint.image, IMAGE_NAMES) | renamed(checkpoint.text, TEXT_NAMES)
    if hasattr(model, "scorer") or getattr(model, "captioner", None) is not None:
        state |= renamed(checkpoint.other, OTHER_NAMES)
    # newer versions of transformers keep the places as a buffer
    state |= {key: value for key, value in model.state_dict().items() if key.endswith("embeddings.position_ids")}
    load_strictly(model, {**state, DESCRIPTION: model.get_extra_state()}, source)
    return model.eval()


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Weights under our names; what has no name of ours keeps its own, so that loading says which it is."""
    result = {}
    for key, value in state.items():
        theirs = next((prefix for prefix in names if key.startswith(prefix)), None)
        ours = "" if theirs is None else names[theirs]
        if ours is not None:
            result[ours + key.removeprefix(theirs or "")] = value
    return result


def _check_options(checkpoint: OfficialCheckpoint) -> None:
    """Refuse what our matchers cannot be."""
    refused = {"no_imgnorm": True, "no_txtnorm": True, "measure": "order", "use_abs": True}
    for name, value in refused.items():
        if checkpoint.options.get(name) == value:
            raise ItmError(f"{checkpoint.path} was trained with {name} = {value}, which no matcher here has")


def _text_section(checkpoint: OfficialCheckpoint, vocabulary: Vocabulary | None, bert: str | None) -> dict[str, Any]:
    text = checkpoint.text
    if any(key.startswith("bert.") for key in text):
        if not bert:
            raise ItmError(f"{checkpoint.path} has a BERT; say which with --bert, a folder or a hub name")
        return {"kind": "bert", "bert": bert, "max_words": _MAX_WORDS}
    if vocabulary is None:
        raise ItmError(f"{checkpoint.path} needs the vocabulary of its release; give its JSON file with --vocab")
    rows, word_dim = text["embed.weight"].shape
    if rows != len(vocabulary):
        raise ItmError(
            f"{checkpoint.path} has {rows} words, the vocabulary {len(vocabulary)}; give the one it was trained with"
        )
    hidden = next(value.shape[1] for key, value in text.items() if key.endswith("rnn.weight_hh_l0"))
    both = any(key.endswith("_reverse") for key in text)
    sizes = {"word_dim": word_dim, "hidden": hidden, "bidirectional": both, "merge": "mean"}
    return {"kind": "gru", **sizes, "max_words": _MAX_WORDS}


def _image_section(checkpoint: OfficialCheckpoint, **more: Any) -> dict[str, Any]:
    """Keys that all networks have."""
    embed_dim, dim = checkpoint.image["fc.weight"].shape
    return {"embed_dim": embed_dim, "image": {"dim": dim, "projection": "linear", "pooling": "mean", **more}}


def _vsepp(checkpoint: OfficialCheckpoint) -> tuple[type[Matcher], dict[str, Any]]:
    return VseMatcher, {**_image_section(checkpoint), "text": {"pooling": "last"}}


def _vse_infty(checkpoint: OfficialCheckpoint) -> tuple[type[Matcher], dict[str, Any]]:
    residual = any(key.startswith("mlp.") for key in checkpoint.image)
    projection = {"projection": "residual", "norm": "batch"} if residual else {}
    return VseMatcher, {**_image_section(checkpoint, **projection | {"pooling": "gpo"}), "text": {"pooling": "gpo"}}


def _scan(checkpoint: OfficialCheckpoint) -> tuple[type[Matcher], dict[str, Any]]:
    options = checkpoint.options
    section = {
        "direction": options.get("cross_attn", "t2i"),
        "aggregate": _AGGREGATES.get(options.get("agg_func", "LogSumExp"), options.get("agg_func")),
        "lambda_softmax": options.get("lambda_softmax", 9.0),
        "lambda_lse": options.get("lambda_lse", 6.0),
        "feature_norm": options.get("raw_feature_norm", "clipped_l2norm"),
    }
    return ScanMatcher, {**_image_section(checkpoint), **section}


def _bfan(checkpoint: OfficialCheckpoint) -> tuple[type[Matcher], dict[str, Any]]:
    options = checkpoint.options
    section = {"focal": options.get("focal_type", "equal"), "lambda_softmax": options.get("lambda_softmax", 20.0)}
    return BfanMatcher, {**_image_section(checkpoint), **section}


def _vsrn(checkpoint: OfficialCheckpoint) -> tuple[type[Matcher], dict[str, Any]]:
    form = "f30k" if "bn.weight" in checkpoint.image else "coco"
    section = {**_image_section(checkpoint), "form": form, "text": {"pooling": "last"}}
    other = checkpoint.other
    if "encoder.vid2hid.weight" in other:
        hidden, word_dim = len(other["encoder.vid2hid.weight"]), other["decoder.embedding.weight"].shape[1]
        section["captioning"] = {"weight": 1.0, "hidden": hidden, "word_dim": word_dim}
    return VsrnMatcher, section


def _sgraf(checkpoint: OfficialCheckpoint) -> tuple[type[Matcher], dict[str, Any]]:
    other = checkpoint.other
    section = {
        "sim_dim": len(other["sim_tranloc_w.weight"]),
        "regions": len(other["v_global_w.embedding_local.1.weight"]),
        "text": {"dropout": 0.4},
    }
    steps = {key.split(".")[1] for key in other if key.startswith("SGR_module.")}
    reasoning = {"module": "SGR", "steps": len(steps)} if steps else {"module": "SAF"}
    return SgrafMatcher, {**_image_section(checkpoint), **section, **reasoning}


def _dbl(checkpoint: OfficialCheckpoint) -> tuple[type[Matcher], dict[str, Any]]:
    section = {
        "module": "DBL",
        "sim_dim": len(checkpoint.other["sim_tran_w.weight"]),
        "normalize": not checkpoint.options.get("no_simnorm", False),
        "text": {"dropout": 0.4},
    }
    return SgrafMatcher, {**_image_section(checkpoint), **section}


SECTIONS: dict[str, Callable[[OfficialCheckpoint], tuple[type[Matcher], dict[str, Any]]]] = {
    "vsepp": _vsepp,
    "vse_infty": _vse_infty,
    "scan": _scan,
    "bfan": _bfan,
    "vsrn": _vsrn,
    "sgraf": _sgraf,
    "dbl": _dbl,
}
