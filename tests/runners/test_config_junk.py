"""Whatever stands in a project file or an override: it is read, or our own error says why not."""

import copy
from pathlib import Path

import pytest
import tiny
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "itm_vse", "1e-3", "${run.seed}", "${", "???", "a.b", "=", "[1", "{", "train", "!!x"]),
)
keys = st.one_of(st.text(max_size=6), st.sampled_from(["arch", "name", "kind", "itm", "image", "type", "run"]))
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)


def paths(node: dict, above: tuple = ()) -> list[tuple]:
    """Every key of nested sections, as a path."""
    found = []
    for key, value in node.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += paths(value, (*above, key))
    return found


VALID = tiny.project(Path("data"), Path("runs"), itm={"ema": 0.9, "patience": 2})
VALID["model"]["base_loss"] = {"name": "triplet", "margin": 0.2}
PROCESSOR = {"name": "blip_image_eval", "image_size": 32}
PAIRS = {
    **VALID,
    "datasets": {
        "itm_pairs": {
            "annotations": "a.csv",
            "vis_processor": {"train": {**PROCESSOR, "name": "blip_image_train"}, "eval": PROCESSOR},
            "text_processor": {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption", "max_words": 9}},
        }
    },
}
changes = st.lists(
    st.tuples(st.sampled_from(paths(VALID)), st.sampled_from(["replace", "remove", "add"]), keys, junk),
    min_size=1,
    max_size=3,
)


def changed(list_of_changes: list[tuple], valid: dict = VALID) -> dict:
    """The valid project with keys replaced, removed and added."""
    content = copy.deepcopy(valid)
    for path, how, key, value in list_of_changes:
        section = content
        for part in path[:-1]:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        if how == "remove":
            section.pop(path[-1], None)
        else:
            section[path[-1] if how == "replace" else key] = value
    return content


def read(path: Path, options: list[str]) -> str | None:
    """The error's sentence, or None for a file that is read."""
    from lavis_itm_plugins.config.load import ProjectConfig

    try:
        ProjectConfig(path, options)
    except ItmError as error:
        assert str(error).startswith((str(path), "--options: "))
        return str(error)
    return None


@pytest.mark.parametrize("valid", [VALID, PAIRS])
def test_the_valid_project_is_read(valid, tmp_path):
    assert read(tiny.write_project(tmp_path / "p.yaml", valid), []) is None


@RELAXED
@given(changes)
def test_any_change_is_read_or_refused(tmp_path, list_of_changes):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(changed(list_of_changes)), encoding="utf-8")
    read(path, [])


@RELAXED
@given(st.sampled_from(paths(VALID)), st.sampled_from(["", ".", ".x", "[0]"]), st.one_of(scalars, junk))
def test_any_override_is_read_or_refused(tmp_path, path, suffix, value):
    file = tiny.write_project(tmp_path / "p.yaml", VALID)
    read(file, [f"{'.'.join(path)}{suffix}={value}"])


pairs_paths = st.sampled_from([path for path in paths(PAIRS) if "itm_pairs" in path])


@RELAXED
@given(pairs_paths, st.sampled_from(["replace", "remove", "add"]), keys, junk)
def test_any_change_of_a_section_with_processors_is_read_or_refused(tmp_path, path, how, key, value):
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(changed([(path, how, key, value)], PAIRS)), encoding="utf-8")
    read(file, [])


@RELAXED
@given(pairs_paths, st.sampled_from(["", ".", ".x", "[0]"]), st.one_of(scalars, junk))
def test_any_override_of_a_section_with_processors_is_read_or_refused(tmp_path, path, suffix, value):
    file = tiny.write_project(tmp_path / "p.yaml", PAIRS)
    read(file, [f"{'.'.join(path)}{suffix}={value}"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("vis_processor=foo", "vis_processor: expected a section of keys, got 'foo'"),
        ("vis_processor=[1]", "vis_processor: expected a section of keys, got [1]"),
        ("vis_processor.train=3", "vis_processor.train: expected a section of keys, got 3"),
        ("vis_processor.train.name=[1]", 'vis_processor.train.name: unknown processor "[1]"; choose from: '),
        ("text_processor=0", "text_processor: expected a section of keys, got 0"),
        (
            "vis_processor.train.image_sizee=3",
            "vis_processor.train.image_sizee: unknown key of blip_image_train; did you mean image_size",
        ),
    ],
)
def test_a_processor_that_is_none_is_named(option, message, tmp_path):
    path = tiny.write_project(tmp_path / "p.yaml", PAIRS)
    assert read(path, [f"datasets.itm_pairs.{option}"]).startswith(f"{path}: datasets.itm_pairs.{message}")


def test_our_task_under_another_runner_has_its_settings_checked(tmp_path):
    path = tiny.write_project(tmp_path / "p.yaml", VALID)
    said = read(path, ["run.runner=runner_base", "run.itm.clip_gradd=1"])
    assert said == f"{path}: run.itm.clip_gradd: unknown key; did you mean clip_grad?"


@RELAXED
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode), junk.map(yaml.dump).map(str.encode)))
def test_any_file_is_refused(tmp_path, content):
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    assert read(path, [])


@pytest.mark.parametrize("value", ["nan", ".inf", "-1", "0", "'0.1'", "[]", "{}", "null", "true"])
def test_every_number_of_the_run_section_is_checked(value, tmp_path):
    """A wrong learning rate or batch size never gets as far as the data."""
    path = tiny.write_project(tmp_path / "p.yaml", VALID)
    for key in ("init_lr", "batch_size_train", "beta2", "itm.ema"):
        said = read(path, [f"run.{key}={value}"])
        if said is None:
            assert (key, value) in {("init_lr", "'0.1'"), ("beta2", "'0.1'"), ("itm.ema", "'0.1'"), ("itm.ema", "null")}
        else:
            assert f"run.{key}: " in said
