"""Presets have the size that is published of them."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from configs import finetune
from normjax import models
from normjax.core.operations import traced_multiply_adds
from normjax.families import FAMILIES, PRESETS
from normjax.mixers.ops import decay

BEHIND = {"norm", "last", "pool", "pooled", "neck", "head", "head_dist"}
BEHIND |= {"mixer", "mlp"}  # WideNet's, which all of its layers share
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


def gated_attention_as_defined(q, k, v, log_decay):
    """The products of the recurrence alone: of each token an update and a read.

    Blocks of tokens are quicker and compute more products, those inside a block.
    """
    del log_decay
    update = jnp.einsum("blhk,blhv->blhkv", k, v)
    return jnp.einsum("blhk,blhkv->blhv", q, update), None


@functools.cache
def traced(name, figures):
    """Multiply-adds of an image, and the shapes of the variables."""
    model = models.build(name, num_classes=figures.num_classes)
    images = jax.ShapeDtypeStruct((1, *figures.sides, 3), jnp.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decay, "chunked", gated_attention_as_defined)  # of ViG
        trace = jax.make_jaxpr(model.init_with_output, return_shape=True)
        jaxpr, (_, variables) = trace(jax.random.key(0), images)
    return traced_multiply_adds(jaxpr.jaxpr) / 1e9, variables["params"]


@pytest.mark.parametrize(("name", "figures"), ROWS)
def test_figures_are_those_of_the_model(name, figures):
    """Parameters to the last one, multiply-adds to one in a hundred."""
    found, params = traced(name, figures)
    sizes = [math.prod(p.shape) for p in jax.tree.leaves(params)]
    assert sum(sizes) == figures.parameters
    if figures.multiply_adds is not None:
        assert found == pytest.approx(figures.multiply_adds, rel=0.01)


@pytest.mark.parametrize(("name", "figures"), ROWS)
def test_rates_of_layers_leave_out_what_is_behind_the_blocks(name, figures):
    """Fine-tuning learns at full rate in the last norm, pooling and the head alone."""
    rules = finetune.get_config(f"{name},path=DIR").optim.groups
    if not rules:
        pytest.skip("no chain of blocks")
    paths = list(flatten_dict(traced(name, figures)[1], sep="/"))
    for rule in rules:
        assert any(re.search(rule["pattern"], path) for path in paths), rule
    free = [p for p in paths if not any(re.search(r["pattern"], p) for r in rules)]
    assert {path.partition("/")[0] for path in free} <= BEHIND


def test_figures_are_of_presets():
    for family in FAMILIES.values():
        assert family.figures.keys() <= family.presets.keys(), family.name
    assert all(name in PRESETS for f in FAMILIES.values() for name in f.figures)
