"""State written in the backward pass, where another module decides who writes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms
from normjax.core.collections import BATCH_STATS, OVERWRITE
from normjax.core.overwrite import keep

INNER = {
    "power_norm": {"name": "power_norm", "warmup_steps": 2, "num_groups": 2},
    "unified_norm": {"name": "unified_norm", "warmup_steps": 2, "window": 3},
}
SHAPE = (4, 5, 6)


def test_keep_passes_the_gradient_and_returns_the_state():
    x, state = jnp.array([1.0, 2.0]), {"a": jnp.array([3.0, 4.0]), "b": jnp.float32(5)}
    gradient = jax.jit(jax.grad(lambda x, s: jnp.sum(keep(x, s) ** 2), (0, 1)))
    dx, kept = gradient(x, state)
    np.testing.assert_array_equal(dx, 2 * x)
    chex.assert_trees_all_equal(kept, state)


def drawn(tree, rng):
    """Random positive values for every floating leaf, 5 for the counters."""
    return jax.tree.map(
        lambda a: (
            jnp.asarray(rng.uniform(0.5, 1.5, a.shape), a.dtype)
            if a.dtype.kind == "f"
            else jnp.full_like(a, 5)
        ),
        tree,
    )


def pullback(norm, variables, x, dy):
    """(gradient of x, next state, other new state) of a training call."""

    def loss(overwrite, x):
        given = {**variables, OVERWRITE: overwrite}
        y, new = norm.apply(given, x, train=True, mutable=[BATCH_STATS])
        return jnp.sum(y * dy), new[BATCH_STATS]

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (overwrite, dx), stats = gradient(variables[OVERWRITE], x)
    return dx, overwrite, stats


@pytest.mark.parametrize("step,weight", [(0, 1.0), (4, 0.5), (9, 0.0)])
@pytest.mark.parametrize("inner", INNER)
def test_prepbn_writes_what_the_norm_inside_would(inner, step, weight):
    """In warmup nothing, then what the norm writes given its share of the gradient."""
    rng = np.random.default_rng(0)
    norm = norms.build(
        "prepbn", warmup_steps=2, decay_steps=4, batch_norm=INNER[inner]
    )()
    x, dy = (jnp.float32(rng.normal(size=SHAPE)) for _ in range(2))
    variables = drawn(dict(norm.init(jax.random.key(0), x, train=True)), rng)
    variables[BATCH_STATS]["step"] = jnp.int32(step)
    dx, overwrite, stats = pullback(norm, variables, x, dy)
    own = {name: tree["batch_norm"] for name, tree in variables.items()}
    if weight == 1:
        chex.assert_trees_all_equal(overwrite, variables[OVERWRITE])
        chex.assert_trees_all_equal(stats["batch_norm"], own[BATCH_STATS])
        return
    plain = norms.build(INNER[inner])()
    expected = pullback(plain, own, x, (1 - weight) * dy)
    inside = (overwrite["batch_norm"], stats["batch_norm"])
    chex.assert_trees_all_close(inside, expected[1:], rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), inside[0], own[OVERWRITE])
    assert all(jax.tree.leaves(moved))
    if weight == 0:
        np.testing.assert_allclose(dx, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", INNER)
def test_prepbn_folds_if_the_norm_inside_does(inner):
    norm = norms.build("prepbn", decay_steps=4, batch_norm=INNER[inner])()
    variables = norm.init(jax.random.key(0), jnp.zeros(SHAPE), train=False)
    affine = norm.inference_affine(variables)
    # A PowerNorm has groups here, whose scaling stays in front.
    assert (affine.before is not None) == (inner == "power_norm")


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_floor_bounds_a_collapsed_scale(floor):
    """phi far below the batch: without a floor one update throws nu away."""
    norm = norms.build("power_norm", num_groups=None, warmup_steps=0, floor=floor)()
    x = jnp.float32(np.random.default_rng(0).normal(size=SHAPE))
    variables = drawn(
        norm.init(jax.random.key(0), x, train=True), np.random.default_rng(1)
    )
    variables[BATCH_STATS]["phi"] = jnp.full(SHAPE[-1], 1e-6)
    _, overwrite, _ = pullback(norm, variables, x, jnp.zeros(SHAPE))
    growth = jnp.max(jnp.abs(overwrite["nu"] / variables[OVERWRITE]["nu"]))
    assert (growth < 2) if floor else (growth > 1000)
