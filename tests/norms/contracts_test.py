"""What every norm keeps, whatever it computes; one run per row of rows.py."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax import norms
from normjax.core.collections import OVERWRITE
from normjax.core.errors import UserError
from normjax.norms import NORMS
from tests.norms.case import STATS, Case
from tests.norms.rows import ROWS

SHARDS = [pytest.param(2, marks=pytest.mark.slow), 4]
FIRST_ROWS = list({row.name: row for row in reversed(ROWS)}.values())[::-1]


def marked(rows):
    """Further configurations of a variant are among the slow tests."""
    slow = pytest.mark.slow
    return [
        pytest.param(row, id=str(row), marks=() if row in FIRST_ROWS else slow)
        for row in rows
    ]


@pytest.fixture(params=marked(ROWS), scope="module")
def case(request):
    return Case(request.param)


@pytest.fixture(params=FIRST_ROWS, ids=str, scope="module")
def first_case(request):
    """For contracts that compile much: the first row of every norm."""
    return Case(request.param)


def over(condition, fixture="case"):
    """Run a test on those rows only that `condition` holds for."""
    rows = ROWS if fixture == "case" else FIRST_ROWS
    chosen = marked(row for row in rows if condition(row))
    return pytest.mark.parametrize(fixture, chosen, indirect=True)


def tagged(tag):
    return lambda row: tag in NORMS[row.name].tags


def masks_of(case):
    return [None, case.mask] if "mask" in NORMS[case.row.name].tags else [None]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "dtype,tolerance", [("float64", 1e-10), ("float32", 2e-5), ("bfloat16", 4e-2)]
)
def test_value_and_state_equal_the_oracle(case, dtype, tolerance, train):
    wide = "float64" if dtype == "float64" else "float32"
    with jax.enable_x64(dtype == "float64"):
        # The oracle sees the input as it is after rounding to the tested dtype.
        x = jnp.asarray(case.x, dtype)
        for mask in masks_of(case):
            y, new = jax.jit(case.apply, static_argnames="train")(
                case.variables(wide), x, mask=mask, train=train
            )
            expected, stats = case.oracle(np.float64(x), mask=mask, train=train)
            np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
            tight = 1e-10 if dtype == "float64" else 2e-5
            close = functools.partial(
                np.testing.assert_allclose, rtol=tight, atol=tight
            )
            jax.tree.map(close, dict(new), stats)


def numerical_gradient(function, x, step=1e-5):
    """Central differences of a scalar function of a float64 array."""
    gradient, flat = np.zeros_like(x), x.reshape(-1)
    for i in range(flat.size):
        kept = flat[i]
        flat[i] = kept + step
        above = function(x)
        flat[i] = kept - step
        gradient.reshape(-1)[i] = (above - function(x)) / (2 * step)
        flat[i] = kept
    return gradient


BY_HAND = (
    "layer_norm",
    "crms_norm",
    "batch_norm",
    "group_norm",
    "prepbn",
    "power_norm",
)
"""Norms by whose backward passes all others are computed."""


@pytest.mark.parametrize(
    "first_case",
    [
        pytest.param(
            row,
            id=str(row),
            marks=() if row.name in BY_HAND else pytest.mark.slow,
        )
        for row in FIRST_ROWS
        if not row.gradient
    ],
    indirect=True,
)
def test_forward_mode_is_reverse_mode_transposed(first_case):
    """And forward over reverse mode gives the slope of the gradient."""
    case, rng = first_case, np.random.default_rng(3)
    with jax.enable_x64(True):
        variables = case.variables("float64")
        at = (variables.get("params", {}), case.x)
        along = jax.tree.map(lambda t: rng.standard_normal(np.shape(t)), at)

        def output(params, x):
            return case.apply({**variables, "params": params}, x)[0]

        @jax.jit
        def products(along):
            _, pull = jax.vjp(output, *at)
            _, slope = jax.jvp(output, at, along)
            pairs = jax.tree.map(jnp.vdot, pull(case.dy), along)
            return jnp.vdot(case.dy, slope), sum(jax.tree.leaves(pairs))

        def gradient(params, x):
            def loss(*at):
                return jnp.sum(jnp.tanh(output(*at)) * case.dy)

            return jax.grad(loss, (0, 1))(params, x)

        if OVERWRITE in variables:  # what its backward pass gives is no derivative
            with pytest.raises(TypeError, match="forward-mode"):
                products(along)
            return
        forward, reverse = products(along)
        np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-9)
        _, curvature = jax.jit(lambda along: jax.jvp(gradient, at, along))(along)
        step = 1e-5

        @jax.jit
        def moved(step):
            return gradient(*jax.tree.map(lambda t, d: t + step * d, at, along))

        ahead, behind = moved(step), moved(-step)
        expected = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
        chex.assert_trees_all_close(curvature, expected, rtol=1e-4, atol=1e-6)


@over(lambda row: not row.gradient)
def test_gradients_equal_finite_differences_of_the_oracle(case):
    with jax.enable_x64(True):
        for mask in masks_of(case):
            variables = case.variables("float64")

            def loss(params, x, mask=mask, variables=variables):
                y, _ = case.apply({**variables, "params": params}, x, mask=mask)
                return jnp.sum(y * case.dy)

            params = variables.get("params", {})
            dparams, dx = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, case.x)

            def oracle_loss(x, mask=mask):
                return np.sum(case.oracle(x, mask=mask)[0] * case.dy)

            expected = numerical_gradient(oracle_loss, case.x.copy())
            np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-7)
            for path, g in jax.tree_util.tree_leaves_with_path(dparams):
                leaves = jax.tree.map(np.array, case.params)
                target = leaves
                for key in path:
                    target = target[key.key]

                def moved(_, leaves=leaves, mask=mask):
                    y, _ = case.oracle(case.x, params=leaves, mask=mask)
                    return np.sum(y * case.dy)

                expected = numerical_gradient(moved, target)
                np.testing.assert_allclose(g, expected, rtol=1e-6, atol=1e-7)


@over(lambda row: row.gradient)
def test_gradients_and_written_state_equal_the_oracle(case):
    with jax.enable_x64(True):
        for mask in masks_of(case):
            variables = case.variables("float64")

            def loss(params, overwrite, x, mask=mask, variables=variables):
                given = {**variables, "params": params, OVERWRITE: overwrite}
                return jnp.sum(case.apply(given, x, mask=mask)[0] * case.dy)

            gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            dparams, overwrite, dx = gradient(
                variables["params"], variables.get(OVERWRITE, {}), case.x
            )
            state = (case.params, case.stats, case.overwrite)
            expected = case.row.gradient(case.x, case.dy, *state, mask, case.row.kwargs)
            close = functools.partial(
                np.testing.assert_allclose, rtol=1e-10, atol=1e-10
            )
            jax.tree.map(close, (dx, dict(dparams), dict(overwrite)), expected)


@over(tagged("overwrite_with_gradient"))
def test_evaluation_and_empty_masks_keep_the_written_state(case):
    """Its next value is its gradient: where nothing is written it must not be zero."""
    variables, x = case.variables("float32"), jnp.float32(case.x)
    nothing = np.zeros_like(case.mask, bool)
    for arguments in ({"train": False}, {"train": True, "mask": nothing}):

        def loss(overwrite, arguments=arguments):
            given = {**variables, OVERWRITE: overwrite}
            return jnp.sum(case.apply(given, x, **arguments)[0] * case.dy)

        kept = jax.grad(loss)(variables[OVERWRITE])
        chex.assert_trees_all_equal(kept, variables[OVERWRITE])


@over(tagged("mask"))
def test_masked_positions_do_not_reach_statistics_or_valid_outputs(case):
    """Poison at masked positions changes nothing elsewhere."""
    mask = np.broadcast_to(
        case.mask.reshape(case.mask.shape + (1,) * (case.x.ndim - case.mask.ndim)),
        case.x.shape,
    )
    apply = jax.jit(case.apply)
    variables = case.variables("float32")
    clean = apply(variables, jnp.float32(case.x), mask=case.mask)
    poisoned = apply(
        variables, jnp.float32(np.where(mask, case.x, np.nan)), mask=case.mask
    )
    np.testing.assert_array_equal(
        np.asarray(clean[0])[mask], np.asarray(poisoned[0])[mask]
    )
    chex.assert_trees_all_equal(clean[1], poisoned[1])

    def loss(x):
        y, _ = case.apply(variables, x, mask=case.mask)
        return jnp.sum(jnp.where(mask, y * case.dy, 0.0).astype(jnp.float32))

    gradient = jax.jit(jax.grad(loss))
    large = gradient(jnp.float32(np.where(mask, case.x, 1e6)))
    np.testing.assert_array_equal(
        np.asarray(gradient(jnp.float32(case.x)))[mask], np.asarray(large)[mask]
    )
    assert np.isfinite(large).all()


@over(tagged("mask"))
def test_empty_mask_moves_no_state_and_stays_finite(case):
    variables = case.variables("float32")
    y, new = case.apply(
        variables, jnp.float32(case.x), mask=np.zeros_like(case.mask, bool)
    )
    assert np.isfinite(y).all()
    old = jax.tree_util.tree_leaves_with_path(variables.get(STATS, {}))
    for (path, before), after in zip(old, jax.tree.leaves(new), strict=True):
        if path[-1].key != "step":
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("devices", SHARDS)
def test_sharded_batch_equals_one_device(first_case, devices):
    """Value, states and gradient under jit, the batch split over devices."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    variables = first_case.variables("float32")
    mask = masks_of(first_case)[-1]

    def step(variables, x, dy, mask):
        def loss(overwrite, x):
            given = {**variables, OVERWRITE: overwrite}
            y, new = first_case.apply(given, x, mask=mask)
            return jnp.sum(y * dy), (y, new)

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return gradient(variables.get(OVERWRITE, {}), x)

    inputs = [jnp.float32(first_case.x), jnp.float32(first_case.dy), mask]
    one = jax.jit(step)(variables, *inputs)
    sharded = [a if a is None else jax.device_put(a, split) for a in inputs]
    many = jax.jit(step)(variables, *sharded)
    chex.assert_trees_all_close(one, many, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices", SHARDS)
@over(tagged("axis_name"), "first_case")
def test_axis_name_equals_one_device(first_case, devices):
    """Inside shard_map, with unequal numbers of valid positions in the shards."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    synced = norms.build(
        first_case.row.name, axis_name="data", **first_case.row.kwargs
    )()
    variables, data = first_case.variables("float32"), PartitionSpec("data")

    def step(norm, variables, x, dy, mask):
        def loss(overwrite, x):
            given = {**variables, OVERWRITE: overwrite}
            y, new = norm.apply(given, x, mask=mask, train=True, mutable=[STATS])
            return jnp.sum(y * dy), (y, new.get(STATS, {}))

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        (overwrite, dx), (y, new) = gradient(variables.get(OVERWRITE, {}), x)
        return y, dx, (new, overwrite)

    inputs = [jnp.float32(first_case.x), jnp.float32(first_case.dy), first_case.mask]
    one = jax.jit(functools.partial(step, first_case.norm))(variables, *inputs)
    many = jax.jit(
        jax.shard_map(
            functools.partial(step, synced),
            mesh=mesh,
            in_specs=(PartitionSpec(), data, data, data),
            out_specs=(data, data, PartitionSpec()),
        )
    )(variables, *inputs)
    chex.assert_trees_all_close(one, many, rtol=1e-5, atol=1e-5)


def test_jit_traces_once_per_shape_and_equals_eager(case):
    variables, x = case.variables("float32"), jnp.float32(case.x)
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(case.apply, n=1))
    y, new = traced(variables, x)
    eager = case.apply(variables, x)
    chex.assert_trees_all_close((y, new), eager, rtol=1e-5, atol=1e-5)
    traced(variables, x + 1)


@pytest.mark.parametrize(
    "given,asked,result",
    [
        ("float32", None, "float32"),
        ("bfloat16", None, "promoted"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_dtypes(first_case, given, asked, result):
    """Result as flax.linen decides it; parameters and statistics stay float32."""
    norm = norms.build(first_case.row.name, dtype=asked, **first_case.row.kwargs)()
    x = jnp.asarray(first_case.x, given)
    variables = norm.init(jax.random.key(0), x, train=True)
    y, new = norm.apply(variables, x, train=True, mutable=[STATS])
    if result == "promoted":
        result = "float32" if variables.get("params") else given
    assert y.dtype == result
    for leaf in jax.tree.leaves((variables, new)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_constant_and_large_mean_inputs(case):
    variables = case.variables("float32")
    constant = case.apply(variables, jnp.full(case.row.shape, 3.0))
    chex.assert_tree_all_finite(constant)
    if not case.row.large_mean:
        return
    rng = np.random.default_rng(3)
    x = jnp.float32(rng.normal(1e4, 1.0, (16, 64, 32)))
    plain = norms.build(
        case.row.name, **{**case.row.kwargs, "use_scale": False, "use_bias": False}
    )()
    y, _ = plain.apply(
        plain.init(jax.random.key(0), x, train=True), x, train=True, mutable=[STATS]
    )
    assert abs(float(jnp.std(y)) - 1) < 1e-2


def test_evaluation_changes_no_state_and_training_does(case):
    variables, x = case.variables("float32"), jnp.float32(case.x)
    if not case.stats:
        return
    _, kept = case.apply(variables, x, train=False)
    chex.assert_trees_all_equal(kept, variables[STATS])
    _, moved = case.apply(variables, x, train=True)
    pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(variables[STATS]), strict=True)
    assert any((a != b).any() for a, b in pairs)
    case.norm.apply(variables, x, train=False)  # nothing has to be mutable


def test_initialisation_touches_no_statistics(case):
    x = jnp.float32(case.x)
    trained = case.norm.init(jax.random.key(0), x, train=True)
    evaluated = case.norm.init(jax.random.key(0), x, train=False)
    chex.assert_trees_all_equal(trained, evaluated)


@pytest.mark.slow
def test_inside_remat_and_scan(first_case):
    """Two layers by nn.scan over nn.remat equal two calls one after the other."""
    norm = norms.build(first_case.row.name, **first_case.row.kwargs)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return norm(name="norm")(x, train=True), None

    scanned = nn.scan(
        nn.remat(Layer),
        variable_axes={"params": 0, STATS: 0, OVERWRITE: 0},
        split_rngs={"params": True},
        length=2,
    )()
    x, variables = jnp.float32(first_case.x), first_case.variables("float32")
    stacked = {
        k: {"norm": jax.tree.map(lambda a: jnp.stack([a, a]), v)}
        for k, v in variables.items()
    }

    def through_scan(overwrite, x):
        given = {**stacked, OVERWRITE: {"norm": overwrite}}
        (y, _), new = scanned.apply(given, x, None, mutable=[STATS])
        return jnp.sum(y * first_case.dy), (y, new.get(STATS, {}).get("norm", {}))

    def by_hand(overwrite, x):
        layers = [jax.tree.map(lambda a, i=i: a[i], overwrite) for i in range(2)]
        y1, new1 = first_case.apply({**variables, OVERWRITE: layers[0]}, x)
        y2, new2 = first_case.apply({**variables, OVERWRITE: layers[1]}, y1)
        new = jax.tree.map(lambda a, b: jnp.stack([a, b]), new1, new2)
        return jnp.sum(y2 * first_case.dy), (y2, new)

    overwrite = stacked.get(OVERWRITE, {}).get("norm", {})
    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(overwrite, x)
        for f in (through_scan, by_hand)
    ]
    chex.assert_trees_all_close(*results, rtol=2e-4, atol=2e-4)


@over(lambda row: hasattr(NORMS[row.name].make, "inference_affine"))
def test_folded_form_equals_evaluation(case, x64):
    tree = {"params": case.params, STATS: case.stats}
    affine = case.norm.inference_affine(tree)
    if affine is None:  # then it must not be affine
        zero, one, two = (case.oracle(k * case.x, train=False)[0] for k in range(3))
        assert np.abs(two - 2 * one + zero).max() > 1e-3
        return
    expected, _ = case.oracle(case.x, train=False)
    x = np.asarray(affine.before.apply({}, case.x)) if affine.before else case.x
    actual = x * np.asarray(affine.scale) + np.asarray(affine.shift)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_every_registered_norm_has_a_row():
    assert {row.name for row in ROWS} == {entry.name for entry in NORMS}


@pytest.mark.parametrize("name", [e.name for e in NORMS if "batch_stats" in e.tags])
def test_forgotten_train_flag_raises(name):
    kwargs = {"decay_steps": 5} if name == "prepbn" else {}
    norm = norms.build(name, **kwargs)()
    with pytest.raises(UserError, match="train=True or train=False"):
        norm.init(jax.random.key(0), jnp.zeros((2, 3, 4)))
