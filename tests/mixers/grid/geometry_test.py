"""Mixers of feature maps: which grids they take, what they become in special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import mixers
from normjax.core.errors import UserError

RNG = np.random.default_rng(5)
HEADS = {"num_heads": 2}


def abstract(name, shape, **arguments):
    mixer = mixers.build(name, **{**HEADS, **arguments})()
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return mixer, jax.eval_shape(mixer.init, jax.random.key(0), x)


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("window", (6, 8, 4), {"window_size": 4}, "of 4x4 do not cover a grid of 6x8"),
        (
            "window",
            (6, 4, 4),
            {"window_size": (2, 3)},
            "2x3 do not cover a grid of 6x4",
        ),
        (
            "window_sla",
            (6, 6, 4),
            {"window_size": 3, "shift": 3},
            "shift 3 of windows of 3x3: it must be between 0 and 2",
        ),
        (
            "spatial_reduction",
            (6, 7, 4),
            {"sr_ratio": 2},
            "a grid of 6x7 does not reduce by 2 (sr_ratio)",
        ),
        (
            "cross_shaped_window",
            (6, 4, 4),
            {"split_size": 3},
            "windows of 6x3 do not cover a grid of 6x4",
        ),
        (
            "cross_shaped_window",
            (4, 4, 6),
            {"split_size": 2, "num_heads": 3},
            "3 heads of width 6 do not split into vertical and horizontal stripes",
        ),
        ("sla", (4, 4, 5), {}, "width 5 does not split into 2 heads"),
        ("window", (4, 4, 5), {}, "width 5 does not split into 2 heads"),
    ],
)
def test_grids_that_do_not_fit(name, shape, arguments, message):
    with pytest.raises(UserError) as caught:
        abstract(name, shape, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "before", "after"),
    [
        ("sla", {}, (4, 4), (4, 6)),
        ("focused_linear", {}, (4, 4), (6, 4)),
        ("window", {"window_size": 4}, (4, 4), (3, 6)),
        ("spatial_reduction_sla", {"sr_ratio": 2}, (4, 4), (8, 8)),
        ("cross_shaped_window_sla", {"split_size": 2}, (4, 4), (6, 6)),
    ],
)
def test_tables_of_another_size(name, arguments, before, after):
    mixer, variables = abstract(name, (*before, 4), **arguments)
    x = jax.ShapeDtypeStruct((1, *after, 4), jnp.float32)
    with pytest.raises(UserError, match=r"was initialised with a table of .* fixed"):
        jax.eval_shape(mixer.apply, variables, x)


def test_windows_serve_every_grid_that_they_cover():
    mixer, variables = abstract("window", (8, 8, 4), window_size=4)
    x = jax.ShapeDtypeStruct((1, 4, 12, 4), jnp.float32)
    assert jax.eval_shape(mixer.apply, variables, x).shape == x.shape


@pytest.mark.parametrize(("layer", "shift"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_windows_shift_by_half_in_odd_layers(layer, shift):
    x = jnp.asarray(RNG.normal(size=(1, 6, 6, 4)), jnp.float32)
    arguments = {"window_size": 3, **HEADS}
    given = mixers.build("window", shift=shift, **arguments)()
    variables = jax.jit(given.init)(jax.random.key(1), x)
    implied = mixers.build("window", layer=layer, **arguments)()
    np.testing.assert_array_equal(
        given.apply(variables, x), implied.apply(variables, x)
    )


@pytest.mark.parametrize("core", ["sla", "focused_linear"])
@pytest.mark.parametrize("geometry", ["window", "spatial_reduction"])
def test_one_window_and_no_reduction_are_the_whole_map(core, geometry):
    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 6)), jnp.float32)
    whole = mixers.build(core, **HEADS)()
    params = whole.init(jax.random.key(2), x)["params"]
    same = dict(params)
    if geometry == "spatial_reduction":
        parts = jax.tree.map(lambda t: jnp.split(t, 3, -1), dict(same.pop("qkv")))
        same["q"] = {name: part[0] for name, part in parts.items()}
        same["kv"] = {
            name: jnp.concatenate(part[1:], -1) for name, part in parts.items()
        }
    other = mixers.build(f"{geometry}_{core}", **HEADS)()
    expected = jax.jit(whole.apply)({"params": params}, x)
    actual = jax.jit(other.apply)({"params": same}, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_queries_that_are_all_zero_have_finite_gradients():
    x, mixer = jnp.zeros((1, 3, 3, 4)), mixers.build("sla", **HEADS)()
    variables = mixer.init(jax.random.key(3), x)

    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(mixer.apply(variables, x)))(x)

    assert np.isfinite(gradient(x)).all()


def test_pooling_of_a_constant_is_zero_up_to_the_border():
    y = mixers.build("pooling")()(jnp.full((1, 5, 4, 2), 3.0))
    np.testing.assert_allclose(y, np.zeros((1, 5, 4, 2)), atol=1e-6)


def test_even_pooling():
    with pytest.raises(ValueError, match="even size 2x2"):
        mixers.build("pooling", pool_size=2)()(jnp.zeros((1, 4, 4, 2)))
