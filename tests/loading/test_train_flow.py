"""LAVIS's train.py on a CPU, run by our command, by itself under torchrun, and by the steps that come with us."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis_itm_plugins import resources, train
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.resources import config_file, find_config

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PROJECT = str(FIXTURES / "tiny_clip" / "project.yaml")
STOCK = str(FIXTURES / "stock_train.py")

# registers LAVIS's tiny CLIP in place of our modules, then runs what the arguments say
LAUNCHER = """
import runpy, sys
from lavis_itm_plugins import registration
registration.MODULES = ("tiny_clip",)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def tiny(tmp_path):
    """Images, annotations and the launcher; the environment that the project file needs."""
    colours = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    for number, pixels in enumerate(colours):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{n}.png", "image_id": n, "caption": f"picture number {n}"} for n in range(12)]
    (tmp_path / "train.json").write_text(json.dumps(rows[:8]))
    (tmp_path / "val.json").write_text(json.dumps([{**row, "caption": [row["caption"]]} for row in rows[8:]]))
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    return {"TINY": str(tmp_path), "PYTHONPATH": str(FIXTURES)}


def logged(folder):
    """The numbers of the one run below a folder, and the checkpoint's presence."""
    [log] = (folder / "output").glob("*/log.txt")
    assert (log.parent / "checkpoint_best.pth").is_file()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"')]
    shutil.rmtree(folder / "output")
    return lines


def test_stock_train_and_our_own_steps_give_the_same_run(run_python, tiny, tmp_path):
    ours = str(Path(train.__file__))
    logs = []
    for script in ([STOCK], []):
        done = run_python(["launcher.py", ours, *script, "--cfg-path", PROJECT, "--options", "run.seed=3"], **tiny)
        assert done.returncode == 0, done.stderr
        logs.append(logged(tmp_path))
    assert logs[0] == logs[1]
    assert float(logs[0][0]["train_loss"]) > 0 and logs[0][1]["val_agg_metrics"] > 0


def test_stock_train_runs_on_two_gloo_processes(run_python, tiny, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = run_python([*torchrun, "launcher.py", STOCK, "--cfg-path", PROJECT], **tiny)
    assert done.returncode == 0, done.stderr
    assert logged(tmp_path)[1]["val_agg_metrics"] > 0


def test_a_mistake_ends_in_one_sentence_and_code_2(run_python, tmp_path):
    (tmp_path / "typo.yaml").write_text(Path(PROJECT).read_text().replace("arch: clip", "arch: clipp"))
    done = run_python(["-m", "lavis_itm_plugins.train", "--cfg-path", "typo.yaml"], TINY=".")
    assert done.returncode == 2
    sentence = 'error: typo.yaml: model.arch: unknown model "clipp"; did you mean clip'
    assert done.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_said_before_lavis_is_loaded(capsys):
    assert train.main(["--cfg-path", "no/such.yaml"]) == 2
    assert train.main([STOCK + "x", "--cfg-path", PROJECT]) == 2
    assert train.main(["--cfg-path", PROJECT, "--option", "run.seed=1", "--nonsense"]) == 2
    missing, no_script, unknown = capsys.readouterr().err.splitlines()
    assert missing.startswith("error: no/such.yaml: no such file; ")
    assert no_script.startswith(f"error: {STOCK}x: no such file; ")
    assert unknown == "error: --nonsense: unknown argument; the arguments are --cfg-path and --options"


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package folder as a wheel has it, with two projects in it, and another current folder."""
    package = tmp_path / "package"
    for name in ("projects/dbl/train/f30k.yaml", "projects/aoq/train/coco.yaml", "configs/models/vse.yaml"):
        (package / name).parent.mkdir(parents=True)
        (package / name).touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(resources, "PACKAGE", package)
    return package


def test_a_shipped_project_is_found_from_anywhere_but_yours_comes_first(shipped):
    assert find_config("projects/dbl/train/f30k.yaml") == shipped / "projects/dbl/train/f30k.yaml"
    assert find_config("dbl/train/f30k.yaml") == shipped / "projects/dbl/train/f30k.yaml"
    Path("projects/dbl/train").mkdir(parents=True)
    Path("projects/dbl/train/f30k.yaml").touch()
    assert find_config("projects/dbl/train/f30k.yaml") == Path("projects/dbl/train/f30k.yaml")


def test_a_missing_project_names_the_nearest_ones(shipped):
    with pytest.raises(ItmError, match=r"^projects/dbl/train/f30.yaml: no such file; did you mean projects/dbl"):
        find_config("projects/dbl/train/f30.yaml")
    with pytest.raises(ItmError, match=r"did you mean projects/aoq/train/coco.yaml\?$"):
        find_config("coco.yml")
    with pytest.raises(ItmError, match=r"the shipped ones are in .*package/projects$"):
        find_config("zzz")


def test_default_files_are_absolute_in_a_wheel_and_in_a_checkout(shipped, monkeypatch):
    assert config_file("models/vse.yaml") == shipped / "configs/models/vse.yaml"
    monkeypatch.setattr(resources, "PACKAGE", shipped / "inner")
    assert config_file("models/vse.yaml") == shipped / "configs/models/vse.yaml"
