"""Registries: tags, near matches, factories."""

import functools

import flax.linen as nn
import pytest

from normjax.core.arguments import field_names, required_names
from normjax.core.errors import UserError
from normjax.core.registry import Registry, compatible, with_defaults


class Scale(nn.Module):
    factor: float
    offset: float = 0.0

    def __call__(self, x):
        return self.factor * x + self.offset


def plain(width, *, depth=3):
    return width, depth


@pytest.fixture
def registry():
    registry = Registry("norm")
    registry.register("scale", "seq", "mask")(Scale)
    registry.register("plain", "grid", "seq")(plain)
    return registry


def test_register_refuses_unknown_tags_and_names_taken_twice(registry):
    with pytest.raises(ValueError, match="unknown tag 'masks'; did you mean 'mask'"):
        registry.register("other", "masks")
    with pytest.raises(ValueError, match="'scale' is registered twice"):
        registry.register("scale")


def test_lookup(registry):
    assert [entry.name for entry in registry] == ["scale", "plain"]
    assert "scale" in registry and "scales" not in registry
    assert registry["scale"].make is Scale
    assert registry["scale"].tags == {"seq", "mask"}
    with pytest.raises(UserError, match="unknown norm 'scales'; did you mean 'scale'"):
        registry["scales"]


@pytest.mark.parametrize(
    "spec", ["scale", {"name": "scale"}, {"name": "scale", "factor": 2.0}, Scale]
)
def test_factory_takes_every_form_of_spec(registry, spec):
    module = registry.factory(spec, factor=2.0, offset=1.0)()
    assert isinstance(module, Scale)
    assert (module.factor, module.offset) == (2.0, 1.0)


def test_arguments_of_the_spec_win_over_defaults(registry):
    spec = {"name": "plain", "depth": 7}
    assert registry.factory(spec, width=1, depth=2)() == (1, 7)
    assert spec == {"name": "plain", "depth": 7}, "the spec itself stays as it was"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"factor": 1.0}, "a norm needs a 'name'"),
        ({"name": "scale", "fctor": 1.0}, "'scale': 'fctor'; did you mean 'factor'"),
        ({"name": "plain", "wdth": 1}, "'plain': 'wdth'; did you mean 'width'"),
        ({"name": "scale", "parent": None}, "argument of norm 'scale': 'parent'"),
        ("nothing_near", "unknown norm 'nothing_near' "),
    ],
)
def test_factory_errors_are_one_line_with_near_matches(registry, spec, message):
    with pytest.raises(UserError) as caught:
        registry.factory(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entry_of(registry):
    entry = registry["scale"]
    wrapped = functools.partial(functools.partial(Scale, factor=1.0), offset=2.0)
    for spec in ("scale", {"name": "scale"}, Scale, wrapped):
        assert registry.entry_of(spec) == entry
    assert registry.entry_of(nn.Dense) is None


def test_field_names():
    assert field_names(Scale) == ["factor", "offset"]
    assert field_names(plain) == ["width", "depth"]
    assert required_names(Scale) == ["factor"]
    assert required_names(plain) == []


def test_defaults_give_what_is_taken_and_not_given_before():
    assert with_defaults(Scale, factor=2.0, width=3).keywords == {"factor": 2.0}
    own = functools.partial(functools.partial(Scale, factor=1.0))
    assert with_defaults(own, factor=2.0, offset=3.0)().factor == 1.0
    assert with_defaults(own, factor=2.0, offset=3.0)().offset == 3.0
    assert with_defaults(lambda **kwargs: kwargs, width=3)() == {"width": 3}


def test_compatible(registry):
    rows = [("norm", registry["scale"]), ("mixer", None)]
    assert compatible({"seq"}, rows) is None
    assert compatible({"grid", "seq"}, rows) == (
        "norm 'scale' does not accept grid input (it accepts: seq)"
    )
    assert compatible({"grid"}, [("mixer", None)]) is None
