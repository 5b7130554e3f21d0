"""Builds the wheel, installs it in a clean environment, and uses it there as a person would; run by `make wheel-check`.

Arguments are passed to pip, e.g. `--index-url URL_OF_A_CPU_INDEX`. Prints one line for each check, and ends with exit
code 1 at the first that fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
PACKAGE = "lavis_itm_plugins"
SHIPPED = (
    "py.typed",
    "configs/models/itm_vse_regions_gru.yaml",
    "configs/datasets/itm_scenes.yaml",
    "projects/baseline/train/scenes.yaml",
    "projects/coder/train/scenes.yaml",
    "concepts/scenes.csv",
)
ASK_LAVIS = 'from lavis.common.registry import registry; print(registry.get_model_class("itm_vse"))'
ASK_FOR_LOSS = """
from lavis.common.registry import registry
loss = registry.get("itm.losses.triplet_loss")
from lavis_itm_plugins.losses import triplet_loss
print(loss is triplet_loss)
"""
TINY = [
    *("model.embed_dim=16", "model.image.width=16", "model.text.word_dim=8", "model.text.hidden=8"),
    *("datasets.itm_scenes.train=40", "datasets.itm_scenes.val=8", "datasets.itm_scenes.test=8"),
    *("model.min_count=1", "run.max_epoch=1", "run.batch_size_train=20"),
]


class CheckFailed(Exception):
    """What was expected and what came instead."""


class Clean:
    """A new environment and an empty folder to work in, with nothing of the checkout on Python's path."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.work = folder / "venv" / "bin", folder / "work"
        venv.create(folder / "venv", with_pip=True)
        self.work.mkdir()
        dropped = ("PYTHONPATH", "LAVIS_ITM_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        self.environment = {**kept, "LAVIS_ITM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}

    def install(self, *arguments: str) -> None:
        run([self.bin / "python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *arguments])

    def python(self, *arguments: str, **environment: str) -> str:
        return run([self.bin / "python", *arguments], cwd=self.work, env={**self.environment, **environment})

    def command(self, *arguments: str) -> str:
        return run([self.bin / "lavis-itm", *arguments], cwd=self.work, env=self.environment)


def run(command: Sequence[str | Path], **how: object) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **how)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise CheckFailed(f"exit code {done.returncode}: {' '.join(map(str, command))}\n{tail}")
    return done.stdout


def expect(holds: bool, otherwise: object) -> None:
    if not holds:
        raise CheckFailed(str(otherwise))


def said(what: str, since: float) -> None:
    print(f"ok  {what} ({time.monotonic() - since:.0f} s)", flush=True)


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout; `build` makes an environment of its own for it."""
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT])
    [wheel] = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Nothing beside the package, and the YAML files inside it."""
    names = zipfile.ZipFile(wheel).namelist()
    distribution = "-".join(wheel.name.split("-")[:2])
    stray = [name for name in names if name.split("/")[0] not in (PACKAGE, f"{distribution}.dist-info")]
    expect(not stray, f"the wheel installs beside the package: {stray}")
    missing = [name for name in SHIPPED if f"{PACKAGE}/{name}" not in names]
    expect(not missing, f"the wheel lacks {missing}")
    litter = [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".pth"))]
    expect(not litter, f"the wheel holds {litter}")


def check_registry(clean: Clean) -> None:
    """LAVIS alone finds our names, and does not when it is switched off."""
    found = clean.python("-c", ASK_LAVIS).strip()
    expect(found == f"<class '{PACKAGE}.matchers.vse.VseMatcher'>", found)
    expect(clean.python("-c", ASK_FOR_LOSS).strip() == "True", "itm.losses.triplet_loss is not the function")


def check_switch(clean: Clean) -> None:
    # without the plugin LAVIS may need its own help to import; what counts is that ours is not there
    script = f"from {PACKAGE} import _torchvision\n_torchvision.declare_operators()\n{ASK_LAVIS}"
    found = clean.python("-c", script, LAVIS_ITM_AUTOLOAD="0").strip()
    expect(found == "None", f"with LAVIS_ITM_AUTOLOAD=0 the registry holds {found}")


def check_projects(clean: Clean) -> None:
    listed = clean.command("list", "projects")
    expect("projects/baseline/train/scenes.yaml" in listed, listed)


def check_training(clean: Clean) -> None:
    clean.command("train", "--cfg-path", "projects/baseline/train/scenes.yaml", "--options", *TINY)
    best = list(clean.work.glob("runs/*/checkpoint_best.pth"))
    expect(len(best) == 1, f"no checkpoint_best.pth below {clean.work}/runs")
    table = clean.command("evaluate", str(best[0].parent))
    expect("rsum" in table and "8 images, 40 captions" in table, table)


def check_stock_training(clean: Clean) -> None:
    """LAVIS's own train.py, with a shipped YAML by its path."""
    shutil.copy(ROOT / "tests" / "fixtures" / "stock_train.py", clean.work / "train.py")
    where = f"import {PACKAGE}.resources as r; print(r.find_config('projects/baseline/train/scenes.yaml'))"
    shipped = clean.python("-c", where).strip()
    clean.python("train.py", "--cfg-path", shipped, "--options", *TINY, "run.output_dir=stock")
    expect(bool(list(clean.work.glob("stock/*/checkpoint_best.pth"))), f"no checkpoint below {clean.work}/stock")


CHECKS = {
    "LAVIS finds itm_vse and itm.losses.triplet_loss without an import of ours": check_registry,
    "LAVIS_ITM_AUTOLOAD=0 leaves LAVIS alone": check_switch,
    "lavis-itm list projects shows the shipped ones": check_projects,
    "lavis-itm train and evaluate run on a shipped project": check_training,
    "LAVIS's train.py runs on a shipped project": check_stock_training,
}


def main(pip_arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        try:
            since = time.monotonic()
            wheel = build_wheel(Path(folder))
            check_contents(wheel)
            said(f"{wheel.name} holds the package with its YAML files, and nothing beside it", since)
            since = time.monotonic()
            clean = Clean(Path(folder))
            constraints = ["-c", str(ROOT / "constraints.txt"), *pip_arguments]
            clean.install(*constraints, TORCH)
            clean.install(*constraints, str(wheel))
            said("it installs in a clean environment", since)
            for what, check in CHECKS.items():
                since = time.monotonic()
                check(clean)
                said(what, since)
        except CheckFailed as error:
            print(f"FAILED  {error}", flush=True)
            return 1
    print("the wheel works")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
