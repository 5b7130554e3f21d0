"""Our decorators may run twice, clash in words, and keep LAVIS's own checks."""

from typing import ClassVar

import pytest
from lavis.common.registry import registry as lavis_registry
from lavis.datasets.builders import dataset_zoo
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.models import model_zoo
from lavis.models.base_model import BaseModel
from lavis.tasks.base_task import BaseTask

from lavis_itm_plugins import registration, registry
from lavis_itm_plugins.errors import ItmError


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """LAVIS's tables are put back after each test."""
    tables = {kind: _copy(table) for kind, table in lavis_registry.mapping.items()}
    monkeypatch.setattr(type(lavis_registry), "mapping", tables)
    monkeypatch.setattr(model_zoo, "model_zoo", dict(model_zoo.model_zoo))
    monkeypatch.setattr(dataset_zoo, "dataset_zoo", dict(dataset_zoo.dataset_zoo))


def _copy(table):
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in table.items()}


def define(base=object):
    """The same class statement, executed once more: what importlib.reload does."""

    class Probe(base):
        PRETRAINED_MODEL_CONFIG_DICT: ClassVar = {"tiny": "/nowhere.yaml"}
        DATASET_CONFIG_DICT: ClassVar = {"default": "/nowhere.yaml"}

    return Probe


class Other(BaseModel):
    pass


KINDS = {
    "model": (registry.register_model, BaseModel),
    "task": (registry.register_task, BaseTask),
    "runner": (registry.register_runner, object),
    "builder": (registry.register_builder, BaseDatasetBuilder),
    "lr_scheduler": (registry.register_lr_scheduler, object),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_class_twice_is_quiet_and_keeps_the_first(kind):
    decorate, base = KINDS[kind]
    first, second = define(base), define(base)
    assert decorate("probe")(first) is first
    assert decorate("probe")(second) is second
    assert registry.registered(kind)["probe"] is first
    assert "probe" in registry.names(kind)


def test_another_class_of_the_same_name_is_a_clash_said_in_one_sentence():
    registry.register_model("probe")(define(BaseModel))
    with pytest.raises(ItmError, match=r'^model name "probe" of .*Other is taken by .*Probe; choose another name$'):
        registry.register_model("probe")(Other)


def test_a_name_of_lavis_is_not_overwritten():
    with pytest.raises(ItmError, match='model name "clip"'):
        registry.register_model("clip")(Other)


def test_lavis_still_checks_the_base_class():
    with pytest.raises(AssertionError, match="must inherit BaseModel"):
        registry.register_model("probe")(define())


def test_losses_live_in_the_registry_state():
    def first_loss(scores):
        return scores

    def second_loss(scores):
        return scores

    registry.register_loss("probe_loss")(first_loss)
    registry.register_loss("probe_loss")(first_loss)
    assert lavis_registry.get("itm.losses.probe_loss") is first_loss
    with pytest.raises(ItmError, match='loss name "probe_loss"'):
        registry.register_loss("probe_loss")(second_loss)


def test_registering_everything_twice_is_quiet_and_fills_lavis_lists(monkeypatch, recwarn):
    monkeypatch.setattr(registration, "MODULES", ())
    registry.register_model("probe")(define(BaseModel))
    registry.register_builder("probe")(define(BaseDatasetBuilder))
    registration.register_all()
    registration.register_all()
    assert model_zoo.model_zoo["probe"] == ["tiny"]
    assert "probe" in dataset_zoo.get_names()
    assert callable(lavis_registry.get("itm.losses.triplet_loss"))
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_a_module_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(registration, "MODULES", ("lavis_itm_plugins.no_such_module",))
    with pytest.raises(ImportError, match=r"^lavis_itm_plugins.no_such_module cannot be imported \(ModuleNotFound"):
        registration.register_all()
