"""What `import torch` and `import lavis` do once the package is installed; each test is one fresh process."""

import sys
from types import ModuleType

import pytest

from lavis_itm_plugins import _autoload

REPORT = """
import sys
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase
from lavis_itm_plugins import _autoload
_autoload.install()
print("model", registry.get_model_class("probe_model"))
print("task", registry.get_task_class("probe_task").model is registry.get_model_class("probe_model"))
print("repaired", RunnerBase.model.fget.__module__)
print("finders", sum(type(finder).__name__ == "_Finder" for finder in sys.meta_path))
"""


@pytest.mark.parametrize("first", ["lavis", "torch", "torchvision", "lavis_itm_plugins.probe_model"])
def test_lavis_knows_us_whatever_is_imported_first(run_python, probe, first):
    done = run_python(probe + f"import {first}\n" + REPORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "model <class 'lavis_itm_plugins.probe_model.ProbeModel'>",
        "task True",
        "repaired lavis_itm_plugins.compat.device",
        "finders 1",
    ]
    assert "lavis-itm-plugins could not" not in done.stderr


def test_the_installed_package_is_found_by_lavis_alone(run_python):
    """No line of ours before the import: this is what stock train.py does, through the entry point."""
    script = """
from lavis.common.registry import registry
from lavis_itm_plugins import losses
print(registry.get_model_class("itm_vse"), registry.get_task_class("itm_retrieval"))
print(registry.get_runner_class("itm_runner"), registry.get_builder_class("itm_scenes"))
print(registry.get("itm.losses.triplet_loss") is losses.triplet_loss)
from lavis.datasets.builders import dataset_zoo
from lavis.models import model_zoo
print("itm_vse" in model_zoo.model_zoo, "itm_scenes" in dataset_zoo.get_names())
"""
    done = run_python(script)
    assert done.returncode == 0 and "lavis-itm-plugins could not" not in done.stderr, done.stderr
    models_and_task, runner_and_builder, *rest = done.stdout.splitlines()
    assert "None" not in models_and_task + runner_and_builder
    assert rest == ["True", "True True"]


def test_switched_off_leaves_lavis_alone_until_asked(run_python, probe):
    script = """
import sys
from lavis_itm_plugins import _torchvision
_torchvision.declare_operators()
from lavis.common import dist_utils
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase
print(registry.get_model_class("probe_model"), registry.get("itm"), RunnerBase.model.fget.__module__)
print(dist_utils.init_distributed_mode.__module__, [f for f in sys.meta_path if type(f).__name__ == "_Finder"])
lavis_itm_plugins.register()
lavis_itm_plugins.register()
print(registry.get_model_class("probe_model").__name__, RunnerBase.model.fget.__module__)
"""
    done = run_python(probe + script, LAVIS_ITM_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "None None lavis.runners.runner_base",
        "lavis.common.dist_utils []",
        "ProbeModel lavis_itm_plugins.compat.device",
    ]


@pytest.mark.parametrize("warnings_are", ["default", "error::RuntimeWarning"])
def test_a_broken_registration_leaves_torch_and_lavis_usable(run_python, probe, warnings_are):
    script = """
registration.MODULES += ("lavis_itm_plugins.no_such_module",)
import torch
import lavis
from lavis.common.registry import registry
print(torch.ones(2).sum().item(), registry.get_model_class("clip").__name__)
"""
    done = run_python(probe + script, PYTHONWARNINGS=warnings_are)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2.0 CLIP"]
    assert "lavis_itm_plugins.no_such_module cannot be imported (ModuleNotFoundError: No module named" in done.stderr
    assert "run `lavis-itm doctor`" in done.stderr and "LAVIS_ITM_AUTOLOAD=0" in done.stderr


def test_a_persons_own_torchvision_workaround_still_runs(run_python):
    script = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision
"""
    done = run_python(script)
    if "Only a single TORCH_LIBRARY" in done.stderr:
        pytest.skip("torchvision's own operators load here: no workaround is needed, and none works")
    assert done.returncode == 0 and "lavis-itm-plugins could not" not in done.stderr, done.stderr


def test_the_finder_asks_the_others_and_does_not_recurse(monkeypatch):
    class Asking:
        """Another package's finder of the same kind, which asks us back."""

        def find_spec(self, fullname, path=None, target=None):
            return finder.find_spec(fullname, path, target)

    finder = _autoload._Finder()
    monkeypatch.setattr(sys, "meta_path", [finder, Asking(), *sys.meta_path])
    spec = finder.find_spec("lavis")
    assert spec is not None and spec.loader.exec_module.__name__ == "exec_module"
    assert finder.find_spec("json") is None


def test_only_the_module_itself_is_wrapped():
    seen = []

    class Shared:
        """A zip archive's loader executes every module in it."""

        def exec_module(self, module):
            seen.append(module.__name__)

    def wrapper():
        seen.append("wrapper")
        return _autoload._around_torchvision()

    loader = Shared()
    _autoload._wrap_execution(loader, "lavis", wrapper)
    loader.exec_module(ModuleType("lavis.models"))
    assert seen == ["lavis.models"]
    loader.exec_module(ModuleType("lavis"))
    assert seen == ["lavis.models", "wrapper", "lavis"]
