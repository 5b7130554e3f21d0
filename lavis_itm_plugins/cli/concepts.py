"""Make a concept graph (build), look at one (show), or ask a trained itm_coder what it finds in a caption (explain).

examples:
  lavis-itm concepts build --captions train_caps.txt -o concepts
  lavis-itm concepts build --cfg-path my.yaml --conceptnet conceptnet-assertions-5.7.0.csv.gz --mode knn -o concepts
  lavis-itm concepts show concepts --concept dog --picture dog.png
  lavis-itm concepts explain runs/20260101-120000-itm_coder --caption "two dogs run on a beach"
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from typing import Any

from lavis_itm_plugins.cli.tables import text_table
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

RECIPE = ("size", "min_count", "source", "conceptnet", "mode", "k", "vectors", "tagger")
LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three actions and their arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="from captions, and ConceptNet", description=_build.__doc__)
    build.add_argument("--captions", help="text file, a caption in each line")
    build.add_argument("--cfg-path", help="a project, whose training captions are used")
    build.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, with --cfg-path")
    build.add_argument("--conceptnet", help="ConceptNet's assertions (.csv, .csv.gz), or scenes: the shipped ones")
    build.add_argument("--source", choices=("cooccurrence", "conceptnet", "both"), help="default: both if it is given")
    build.add_argument("--mode", choices=("cvse", "knn"), default="cvse", help="default: %(default)s")
    build.add_argument("--k", type=int, default=8, help="knn: neighbours of a concept (default: %(default)s)")
    build.add_argument("--size", type=int, default=300, help="concepts at most (default: %(default)s)")
    build.add_argument("--min-count", type=int, default=5, help="captions with a concept (default: %(default)s)")
    build.add_argument("--vectors", help="word vectors as text: Numberbatch, GloVe")
    build.add_argument("--tagger", help="a spaCy pipeline, such as en_core_web_sm; word lists when not given")
    build.add_argument("--cache", help="folder of what was read before; default LAVIS_ITM_CACHE or ~/.cache/lavis-itm")
    build.add_argument("-o", "--output", required=True, help="folder; model.concept.graph reads it")
    show = actions.add_parser("show", help="sizes, isolated concepts, strongest edges", description=_show.__doc__)
    show.add_argument("folder", help="that build wrote")
    show.add_argument("--concept", help="list what it receives from")
    show.add_argument("--count", type=int, default=10, help="edges to list or draw (default: %(default)s)")
    show.add_argument("--picture", metavar="FILE", help="draw the concept's neighbourhood (.png, .svg, .pdf)")
    explain = actions.add_parser("explain", help="concepts that a trained model finds", description=_explain.__doc__)
    explain.add_argument("run", help="run folder or checkpoint of itm_coder")
    explain.add_argument("--caption", nargs="+", required=True, help="one or more, each in quotes")
    explain.add_argument("--count", type=int, default=5, help="concepts of each (default: %(default)s)")


def run(given: argparse.Namespace) -> int:
    """Build, show or explain."""
    if getattr(given, "count", 1) < 1:
        raise ItmError(f"--count is {given.count}; give at least 1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lavis_itm_plugins").setLevel(logging.INFO)
    return {"build": _build, "show": _show, "explain": _explain}[given.action](given)


def _build(given: argparse.Namespace) -> int:
    """Choose the concepts, connect them, and write graph, vectors and, where it applies, ConceptNet's licence."""
    from lavis_itm_plugins.concepts import ConceptRecipe, make_concepts, save_concepts
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.data.scenes.store import default_cache_root

    recipe = parse(ConceptRecipe, {name: getattr(given, name) for name in RECIPE}, "concepts build")
    captions = _captions(given)
    cache = user_path(given.cache) if given.cache else default_cache_root()
    concepts = make_concepts(captions, recipe, cache / "concepts")
    print(f"{len(captions)} captions")
    _describe(concepts.graph)
    save_concepts(concepts, given.output)
    print(f"\nwrote {given.output}; train with it: model.concept.graph={given.output}")
    return 0


def _captions(given: argparse.Namespace) -> list[str]:
    if bool(given.captions) == bool(given.cfg_path):
        raise ItmError("give either --captions or --cfg-path")
    if given.captions:
        from lavis_itm_plugins.data.text import read_lines

        return read_lines(user_path(given.captions))
    print("loading LAVIS ...", flush=True)
    from lavis_itm_plugins import register

    register()
    from lavis_itm_plugins.config.load import ProjectConfig
    from lavis_itm_plugins.data.lookup import training_captions
    from lavis_itm_plugins.resources import find_config

    ProjectConfig(find_config(given.cfg_path), given.options)
    return training_captions()


def _describe(graph: Any) -> None:
    """Sizes of a graph, and which concepts receive nothing."""
    from lavis_itm_plugins.concepts import summarise

    summary = summarise(graph)
    kinds = Counter(kind for _, kind in graph.nodes(data="kind"))
    degrees = sorted((degree for _, degree in graph.in_degree()), reverse=True)
    known = f"{summary.covered} of {summary.concepts} ({100 * summary.coverage:.0f} %)"
    rows = [
        ["concepts", ", ".join(f"{count} of kind {kind}" for kind, count in kinds.items())],
        ["edges", str(summary.edges)],
        ["edges into a concept", f"mean {sum(degrees) / len(degrees):.1f}, most {degrees[0]}"],
        ["known to ConceptNet", known if graph.graph["source"] != "cooccurrence" else "not asked"],
        ["receive nothing", _some(summary.isolated)],
    ]
    print("\n".join(f"{name:<21} {value}" for name, value in rows))


def _some(names: tuple[str, ...]) -> str:
    """How many, and the first ones by name."""
    more = ", ..." if len(names) > LISTED else ""
    return f"{len(names)} ({', '.join(names[:LISTED])}{more})" if names else "0"


def _show(given: argparse.Namespace) -> int:
    """Print what a graph is like; with --concept what that concept receives from, with --picture a drawing of it."""
    from lavis_itm_plugins.concepts import load_concepts, strongest

    graph = load_concepts(given.folder).graph
    if given.picture and not given.concept:
        raise ItmError("--picture draws the neighbourhood of a concept; give --concept too")
    if not given.concept:
        _describe(graph)
        return 0
    edges = strongest(graph, given.concept, given.count)
    about = graph.nodes[given.concept]
    print(f"{given.concept} ({about['kind']}, in {about['count']} captions) receives from")
    rows = [[name, f"{weight:.4f}", relations or "captions"] for name, weight, relations in edges]
    print(text_table(["", "weight", "from"], rows) if rows else "nothing")
    if given.picture:
        _draw(graph, given.concept, [name for name, *_ in edges], given.picture)
        print(f"wrote {given.picture}")
    return 0


def _draw(graph: Any, concept: str, neighbours: list[str], path: str) -> None:
    """A concept amid its strongest neighbours, and the edges among them."""
    from lavis_itm_plugins.optional import require

    require("matplotlib", "plots", "a picture of the graph")
    import matplotlib
    import networkx as nx

    matplotlib.use("Agg")
    from matplotlib import pyplot

    near = graph.subgraph([concept, *neighbours]).to_undirected()
    colours = {"object": "tab:blue", "property": "tab:orange", "motion": "tab:green"}
    place = nx.spring_layout(near, seed=0, weight="weight")
    figure, axes = pyplot.subplots(figsize=(8, 6))
    kinds = [colours[near.nodes[node]["kind"]] for node in near]
    nx.draw_networkx(near, place, ax=axes, node_color=kinds, edge_color="lightgrey", node_size=700, font_size=9)
    names = {(a, b): text for a, b, text in near.edges(data="relations") if text}
    nx.draw_networkx_edge_labels(near, place, names, ax=axes, font_size=6)
    axes.set_axis_off()
    try:
        figure.savefig(path, bbox_inches="tight", dpi=150)
    except (OSError, ValueError) as error:
        raise ItmError(f"cannot write {path}: {error}; give a .png, .svg or .pdf in a folder that exists") from None
    finally:
        pyplot.close(figure)


def _explain(given: argparse.Namespace) -> int:
    """Print the concepts with the largest shares in each caption's concept vector."""
    target = user_path(given.run)
    checkpoint = target / "checkpoint_best.pth" if target.is_dir() else target
    print("loading LAVIS ...", flush=True)
    from lavis_itm_plugins import register

    register()
    from lavis_itm_plugins.methods.coder import Coder

    coder = Coder.from_pretrained("full")
    coder.load_checkpoint(checkpoint)
    vectors = coder.eval().tower(coder.scored_tower)[0].encode_captions(given.caption).pooled
    for caption, found in zip(given.caption, coder.top_concepts(vectors, "caption", given.count), strict=True):
        print(f"{caption}: {', '.join(f'{word} {share:.2f}' for word, share in found)}")
    return 0
