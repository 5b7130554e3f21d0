"""A YAML section becomes a checked dataclass, or one sentence that names file and key."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lavis_itm_plugins.config.schema import parse, setting
from lavis_itm_plugins.encoders.image import ImageConfig
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseConfig
from lavis_itm_plugins.runners.settings import RunConfig


@dataclass(frozen=True)
class Inner:
    margin: float = setting(0.2, low=0, below=1)
    name: str = setting("all", choices=("all", "hardest"))


@dataclass(frozen=True)
class Outer:
    root: str = setting(help="set it to a folder")
    count: int = setting(3, low=1, high=9)
    rate: float = setting(0.1, above=0)
    fast: bool = False
    limit: float | None = setting(None, low=0)
    size: int | str = 7
    steps: list[int] = setting([], low=1)
    pair: tuple[float, ...] = (0.5,)
    extra: dict = setting({})
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None

    def __post_init__(self) -> None:
        if self.count == 8:
            raise ItmError("count is 8, which brings bad luck")


def outer(**keys):
    return parse(Outer, {"root": "data", **keys}, "a.yaml: data")


def sentence(**keys):
    with pytest.raises(ItmError) as caught:
        outer(**keys)
    return str(caught.value)


def test_defaults_and_given_values():
    assert outer() == Outer(root="data")
    made = outer(
        count=1, rate=2, limit=None, inner={"margin": 0}, steps=[1, 2], pair=[1, 2.5], maybe={"name": "hardest"}
    )
    assert (made.count, made.rate, made.limit, made.inner, made.steps) == (1, 2.0, None, Inner(margin=0.0), [1, 2])
    assert made.pair == (1.0, 2.5) and made.maybe == Inner(name="hardest")
    assert isinstance(made.rate, float) and isinstance(made.inner.margin, float)


def test_a_default_list_is_not_shared():
    outer().steps.append(1)
    outer().extra["key"] = 1
    assert outer().steps == [] and outer().extra == {}


@pytest.mark.parametrize(("text", "number"), [("1e-3", 0.001), ("2", 2.0), (" .5 ", 0.5)])
def test_a_float_may_be_text_since_yaml_reads_1e_3_so(text, number):
    assert outer(rate=text).rate == number
    assert outer(limit=text).limit == number


def test_an_omegaconf_node_reads_like_a_dictionary():
    node = OmegaConf.create({"root": "data", "steps": [3], "inner": {"name": "hardest"}})
    assert parse(Outer, node, "a.yaml: data") == outer(steps=[3], inner={"name": "hardest"})


def test_a_reference_that_leads_nowhere():
    with pytest.raises(ItmError, match=r"^data.root: Interpolation key 'nothing' not found$"):
        parse(Outer, OmegaConf.create({"root": "${nothing}"}), "data")


def test_keys_of_lavis_are_skipped_only_where_named():
    assert parse(Inner, {"arch": "x"}, "m", ignore=["arch"]) == Inner()
    assert parse(Inner, None, "m") == Inner()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"count": "many"}, "a.yaml: data.count: expected a whole number, got 'many'"),
        ({"count": 2.0}, "a.yaml: data.count: expected a whole number, got 2.0"),
        ({"count": True}, "a.yaml: data.count: expected a whole number, got True"),
        ({"count": None}, "a.yaml: data.count: expected a whole number, got None"),
        ({"rate": True}, "a.yaml: data.rate: expected a number, got True"),
        ({"rate": "fast"}, "a.yaml: data.rate: expected a number, got 'fast'"),
        ({"rate": float("nan")}, "a.yaml: data.rate: expected a finite number, got nan"),
        ({"rate": 10**400}, f"a.yaml: data.rate: expected a finite number, got {10**400}"),
        ({"rate": "1e999"}, "a.yaml: data.rate: expected a finite number, got inf"),
        ({"fast": 1}, "a.yaml: data.fast: expected true or false, got 1"),
        ({"fast": "yes"}, "a.yaml: data.fast: expected true or false, got 'yes'"),
        ({"root": 5}, "a.yaml: data.root: expected text, got 5"),
        ({"size": 1.5}, "a.yaml: data.size: expected text, got 1.5"),
        ({"steps": "12"}, "a.yaml: data.steps: expected a list, got '12'"),
        ({"steps": [1, "b"]}, "a.yaml: data.steps[1]: expected a whole number, got 'b'"),
        ({"extra": [1]}, "a.yaml: data.extra: expected a section of keys, got [1]"),
        ({"inner": 3}, "a.yaml: data.inner: expected a section of keys, got 3"),
        ({"inner": {"margin": "x"}}, "a.yaml: data.inner.margin: expected a number, got 'x'"),
    ],
)
def test_a_wrong_type_names_key_and_value(keys, expected):
    assert sentence(**keys) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"count": 0}, "data.count: 0 is out of range; give a value of at least 1"),
        ({"count": 10}, "data.count: 10 is out of range; give a value of at most 9"),
        ({"rate": 0}, "data.rate: 0.0 is out of range; give a value of more than 0"),
        ({"limit": -1}, "data.limit: -1.0 is out of range; give a value of at least 0"),
        ({"inner": {"margin": 1}}, "data.inner.margin: 1.0 is out of range; give a value of less than 1"),
        ({"steps": [5, 0]}, "data.steps: 0 is out of range; give a value of at least 1"),
        ({"inner": {"name": "hardst"}}, 'data.inner.name: unknown choice "hardst"; did you mean hardest?'),
        ({"count": 8}, "data: count is 8, which brings bad luck"),
    ],
)
def test_a_value_out_of_range(keys, expected):
    assert sentence(**keys) == f"a.yaml: {expected}"


@pytest.mark.parametrize("keys", [{"count": 1}, {"count": 9}, {"limit": 0}, {"inner": {"margin": 0.999}}])
def test_the_ends_of_a_range(keys):
    [(name, value)] = keys.items()
    read = getattr(outer(**keys), name)
    assert (read.margin if name == "inner" else read) == (value["margin"] if name == "inner" else value)


def test_an_unknown_key_names_the_nearest():
    assert sentence(cuont=3) == "a.yaml: data.cuont: unknown key; did you mean count?"
    assert sentence(inner={"margn": 3}) == "a.yaml: data.inner.margn: unknown key; did you mean margin?"
    assert sentence(inner={"zzz": 3}) == "a.yaml: data.inner.zzz: unknown key; choose from: margin, name"


def test_a_missing_key_says_what_to_give():
    with pytest.raises(ItmError, match=r"^a\.yaml: data\.root: missing; set it to a folder$"):
        parse(Outer, {}, "a.yaml: data")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"kind": "conv", "width": 20}, "model.image: width is 20; give a multiple of 8 for kind: conv"),
        ({"kind": "vit", "size": 100}, "model.image: size is 100; give a multiple of 16 for kind: vit"),
        ({"kind": "vit", "width": 200}, "model.image: width is 200; give a multiple of 64 for kind: vit"),
    ],
)
def test_sizes_that_no_network_can_have(keys, expected):
    with pytest.raises(ItmError) as caught:
        parse(ImageConfig, keys, "model.image")
    assert str(caught.value) == expected


PLAIN = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    st.sampled_from([10**400, -(10**400), "1e-3", "nan", "gru", "regions"]),
)
JUNK = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
)


def with_known_keys(config_class: type) -> st.SearchStrategy:
    """Sections whose keys are mostly right, so that the values are looked at."""
    names = list(config_class.__dataclass_fields__)
    return JUNK | st.dictionaries(st.sampled_from(names), JUNK, max_size=3)


@pytest.mark.parametrize("config_class", [Outer, VseConfig, RunConfig])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_junk_is_refused_with_a_sentence_or_read(config_class, data):
    node = data.draw(with_known_keys(config_class))
    try:
        made = parse(config_class, node, "x")
    except ItmError as error:
        assert str(error).startswith("x")
    else:
        assert isinstance(made, config_class)
