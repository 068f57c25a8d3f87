"""Presets have the size that is published of them."""

import math

import jax
import jax.numpy as jnp
import pytest

from normjax import models
from normjax.core.operations import traced_multiply_adds
from normjax.families import FAMILIES, PRESETS

LONG = ("favit", "sgformer", "ms_mlp", "fcaformer", "groupmamba")
"""Families that take several seconds to trace."""


def marks_of(family, name):
    """The first of a family is its smallest one, the last its largest."""
    names = list(family.figures)
    if name == names[0] and family.name not in LONG:
        return ()
    slow = (pytest.mark.slow,)
    return slow if name in (names[0], names[-1]) else (*slow, pytest.mark.long)


ROWS = [
    pytest.param(
        name,
        figures,
        id=name,
        marks=marks_of(family, name),
    )
    for family in FAMILIES.values()
    for name, figures in family.figures.items()
]


@pytest.mark.parametrize(("name", "figures"), ROWS)
def test_figures_are_those_of_the_model(name, figures):
    """Parameters to the last one, multiply-adds to one in a hundred."""
    model = models.build(name, num_classes=figures.num_classes)
    images = jax.ShapeDtypeStruct((1, *figures.sides, 3), jnp.float32)
    trace = jax.make_jaxpr(model.init_with_output, return_shape=True)
    jaxpr, (_, variables) = trace(jax.random.key(0), images)
    sizes = [math.prod(p.shape) for p in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == figures.parameters
    if figures.multiply_adds is not None:
        found = traced_multiply_adds(jaxpr.jaxpr) / 1e9
        assert found == pytest.approx(figures.multiply_adds, rel=0.01)


def test_figures_are_of_presets():
    for family in FAMILIES.values():
        assert family.figures.keys() <= family.presets.keys(), family.name
    assert all(name in PRESETS for f in FAMILIES.values() for name in f.figures)
