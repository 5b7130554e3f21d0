"""`lavis-itm concepts`: what it prints, what it writes, how mistakes end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from concepts.conceptnet_lines import assertions

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.concepts import load_concepts

CAPTIONS = "a man and a dog on a beach\nthe dog runs on the beach\na man sits\na red ball and a dog\n"


@pytest.fixture
def concepts(tmp_path: Path, capsys):
    """`concepts(action, ...)`: exit code, printed text, errors."""
    (tmp_path / "captions.txt").write_text(CAPTIONS)
    (tmp_path / "assertions.csv").write_bytes(assertions("dog CapableOf run 2.0, man RelatedTo dog 1.0") + b"broken\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["concepts", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def built(concepts, tmp_path: Path, *more: str) -> tuple[int, str, str]:
    places = ["--captions", tmp_path / "captions.txt", "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
    return concepts("build", *places, "--min-count", "1", *more)


def test_build_and_show(concepts, tmp_path) -> None:
    code, printed, _ = built(concepts, tmp_path, "--conceptnet", str(tmp_path / "assertions.csv"), "--mode", "knn")
    assert code == 0
    graph = load_concepts(tmp_path / "out").graph
    assert graph.graph["source"] == "both" and graph["dog"]["run"]["relations"] == "CapableOf"
    assert "4 captions" in printed and f"model.concept.graph={tmp_path / 'out'}" in printed
    assert f"edges                 {graph.number_of_edges()}\n" in printed
    assert f"known to ConceptNet   3 of {len(graph)}" in printed and "receive nothing       0" in printed
    code, printed, _ = concepts("show", tmp_path / "out")
    assert code == 0 and f"known to ConceptNet   3 of {len(graph)}" in printed
    code, printed, _ = concepts("show", tmp_path / "out", "--concept", "run", "--count", "1")
    assert code == 0
    assert printed.splitlines()[0] == "run (motion, in 1 captions) receives from"
    assert printed.splitlines()[-1].split()[0] == "dog" and printed.splitlines()[-1].split()[-1] == "CapableOf"


def test_build_from_a_project(concepts, tmp_path) -> None:
    root = tiny.write_precomp(tmp_path / "data")
    project = tiny.write_project(tmp_path / "x.yaml", tiny.project(root, tmp_path / "runs"))
    code, printed, _ = concepts("build", "--cfg-path", project, "-o", tmp_path / "out", "--size", 5)
    assert code == 0 and "120 captions" in printed and "not asked" in printed
    assert len(load_concepts(tmp_path / "out").words) == 5


def test_a_picture(concepts, tmp_path, monkeypatch) -> None:
    built(concepts, tmp_path)
    target = tmp_path / "dog.png"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        code, _, errors = concepts("show", tmp_path / "out", "--concept", "dog", "--picture", target)
        assert code == 2 and 'run: pip install "lavis-itm-plugins[plots]"' in errors
    pytest.importorskip("matplotlib")
    assert concepts("show", tmp_path / "out", "--concept", "dog", "--picture", target)[0] == 0
    assert target.read_bytes().startswith(b"\x89PNG")


def test_explain(concepts, tmp_path) -> None:
    from lavis_itm_plugins.train import run_training

    content = tiny.project(tiny.write_precomp(tmp_path / "data"), tmp_path / "runs", max_epoch=1)
    small = {"dictionary": {"size": 8}, "concept": {"min_count": 1, "word_dim": 4}, "labels": False}
    content["model"] = {"arch": "itm_coder", "model_type": "full", "matcher": content["model"], **small}
    runner = run_training(tiny.write_project(tmp_path / "x.yaml", content))
    code, printed, _ = concepts("explain", runner.folder.path, "--caption", "a red dog", "a cat", "--count", "2")
    assert code == 0
    one, other = printed.splitlines()[-2:]
    assert one.startswith("a red dog: ") and other.startswith("a cat: ")
    words = [part.split()[0] for part in one.removeprefix("a red dog: ").split(", ")]
    assert len(words) == 2 and set(words) <= set(runner._model.about_concepts["words"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "-o", "out"], "give either --captions or --cfg-path"),
        (["build", "-o", "out", "--captions", "absent.txt"], "absent.txt does not exist"),
        (["build", "-o", "out", "--captions", "captions.txt", "--size", "0"], "concepts build.size: 0 is out of range"),
        (["build", "-o", "out", "--captions", "captions.txt"], "no word occurs in 5 training captions"),
        (["build", "-o", "o", "--captions", "captions.txt", "--conceptnet", "no.csv", "--min-count", "1"], "no.csv"),
        (["show", "nowhere"], "nowhere holds no concepts.json; make it with: lavis-itm concepts build"),
        (["show", "out", "--count", "0"], "--count is 0"),
        (["explain", "nowhere.pth", "--caption", "a dog"], "checkpoint nowhere.pth does not exist"),
    ],
)
def test_mistakes_end_in_one_sentence(concepts, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = concepts(*arguments)
    assert code == 2 and errors.splitlines()[-1].startswith("error: ") and message in errors
    assert "Traceback" not in errors


def test_unknown_concepts_are_suggested(concepts, tmp_path) -> None:
    built(concepts, tmp_path)
    assert 'unknown concept "dgo"; did you mean dog' in concepts("show", tmp_path / "out", "--concept", "dgo")[2]
    assert "--picture draws the neighbourhood" in concepts("show", tmp_path / "out", "--picture", "x.png")[2]
