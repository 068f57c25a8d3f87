"""Sums promised in float32: their products in programs compiled for a TPU."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from normjax import mixers
from normjax.core.arguments import field_names
from normjax.core.dense import BlockDiagonalDense, SplitDense, ZeroMeanDense
from normjax.core.operations import multiply_adds
from normjax.plan.hlo import parse
from normjax.plan.topology import devices_of, prepare
from tests.mixers.rows import ROWS as MIXERS
from tests.norms.case import Case
from tests.norms.rows import ROWS as NORMS

PAIRWISE = {
    *("softmax", "differential", "mixture_of_head", "pattention", "local_attention"),
    *("grouped_query", "hard", "soft_causal", "prefix_attention"),
    *("rela", "gated_rela", "rala_softmax", "window", "cross_shaped_window"),
    *("spatial_reduction", "linear_spatial_reduction", "whole_map"),
    *("overlapping_spatial_reduction", "task_convolved", "graph_transformer"),
    *("halo", "global_context", "super_token", "global_cosine"),
    *("aggregated", "aggregated_mixture_of_head", "inception", "factorization"),
    *("self_guided", "self_guided_hybrid", "locally_enhanced", "forward_cross"),
}
"""Mixers with a weight for each pair: their products follow JAX's default."""

WINDOWED = {"liger": "BTNH"}
"""Beside their sums a window of softmax, named so, whose products follow JAX's."""

KEY = jax.random.key(0)
LAYERS = (nn.Dense, SplitDense, BlockDiagonalDense, ZeroMeanDense, nn.Conv)
LAYERS_ALONE = {"pooling", "identity", "raft", "mix_shift", "efficient_modulation"}
LAYERS_ALONE |= {"ulsam", "monarch", "group_mamba"}
"""Mixers whose sums, where there are any, are no products on a TPU."""


def first_rows(rows):
    return {row.name: row for row in reversed(rows)}


def products(function, *arguments):
    """(name, whether in full precision) of the products of a program for a TPU."""
    device = devices_of("v5e:1x1")[0]
    place = jax.sharding.SingleDeviceSharding(device)
    given = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments
    )
    text = jax.jit(function).lower(*given).compile().as_text()
    lines = [
        instruction.line
        for computation in parse(text or "").computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode in ("dot", "convolution")
    ]
    names = [line.partition('op_name="')[2].partition('"')[0] for line in lines]
    assert all(names)
    full = ["{highest,highest}" in line for line in lines]
    return list(zip(names, full, strict=True))


def layers_of(function, *arguments):
    """Names of the layers that a function calls."""
    names = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, LAYERS):
            names.add(context.module.name)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(function, *arguments)
    return names


def gradient(apply):
    """Of everything that is no integer, in one program with the value."""

    def loss(variables, x):
        out = apply(variables, x)
        return sum(jnp.sum(jnp.square(y.astype(jnp.float32))) for y in out)

    return jax.value_and_grad(loss, (0, 1), allow_int=True)


def mixer_products(row, dtype):
    """(products of sums, products of layers), as `products` gives them."""
    known = field_names(mixers.MIXERS[row.name].make)
    types = {name: dtype for name in ("dtype", "param_dtype") if name in known}
    mixer = mixers.build(row.name, **row.kwargs, **types)()
    x = jax.ShapeDtypeStruct(row.shape, dtype)
    variables = jax.eval_shape(mixer.init, KEY, x)
    apply = gradient(lambda variables, x: [mixer.apply(variables, x)])
    layers = layers_of(mixer.apply, variables, x)
    sums, projections = [], []
    for name, exact in products(apply, variables, x):
        of_layer = layers & set(re.split(r"[/.]", name))
        (projections if of_layer else sums).append((name, exact))
    return sums, projections


def linear_mixers(*without):
    rows = first_rows(MIXERS)
    assert rows.keys() > PAIRWISE
    return [
        pytest.param(row, id=name, marks=() if name == "sla" else pytest.mark.slow)
        for name, row in rows.items()
        if name not in PAIRWISE and name not in without
    ]


def of_norms():
    """(function, arguments): norms with products, in training, with gradients."""
    cases, variables, xs = {}, {}, {}
    for name, row in first_rows(NORMS).items():
        case = Case(row)
        given = case.variables("float32"), jnp.asarray(case.x, "float32")
        if multiply_adds(case.apply, *given):
            cases[name], (variables[name], xs[name]) = case, given

    def run(variables, xs):
        return [
            case.apply(variables[name], xs[name])[0] for name, case in cases.items()
        ]

    assert cases.keys() >= {"ghost_batch_norm", "region_norm_learnable"}
    return gradient(run), (variables, xs)


@pytest.fixture(autouse=True)
def without_a_tpu():
    pytest.importorskip("libtpu")
    prepare(["v5e:1x1"])


@pytest.mark.parametrize("row", linear_mixers())
def test_sums_of_linear_mixers_are_exact(row):
    sums, projections = mixer_products(row, jnp.float32)
    window = WINDOWED.get(row.name)
    sums = [each for each in sums if window is None or window not in each[0]]
    assert all(exact for _, exact in sums), sums
    assert not any(exact for _, exact in projections), projections
    assert sums or row.name in LAYERS_ALONE


LOGARITHMS = "ij,bhnjx->bhnix"  # of decays, float32: their sums are products


# They average float32, and transform its frequencies.
@pytest.mark.parametrize("row", linear_mixers("pooling", "monarch"))
def test_bfloat16_is_multiplied_at_full_speed(row):
    sums, projections = mixer_products(row, jnp.bfloat16)
    exact = [name for name, exact in sums + projections if exact]
    exact = [name for name in exact if LOGARITHMS not in name]
    assert not exact, exact


def test_products_of_norms_are_exact():
    function, arguments = of_norms()
    found = products(function, *arguments)
    assert found and all(exact for _, exact in found), found
