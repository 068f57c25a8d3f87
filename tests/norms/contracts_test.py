"""What every norm keeps, whatever it computes; one run per row of rows.py."""

import functools
import itertools

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
from tests.norms.case import STATS, case_of
from tests.norms.rows import ROWS

DEVICES = 4
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
    return case_of(ROWS.index(request.param))


@pytest.fixture(params=FIRST_ROWS, ids=str, scope="module")
def first_case(request):
    """For contracts that compile much: the first row of every norm."""
    return case_of(ROWS.index(request.param))


def over(condition, fixture="case"):
    """Run a test on those rows only that `condition` holds for."""
    rows = ROWS if fixture == "case" else FIRST_ROWS
    chosen = marked(row for row in rows if condition(row))
    return pytest.mark.parametrize(fixture, chosen, indirect=True)


def tagged(tag):
    return lambda row: tag in NORMS[row.name].tags


def masks_of(case):
    return [None, case.mask] if "mask" in NORMS[case.row.name].tags else [None]


@pytest.mark.parametrize(
    "dtype,tolerance", [("float64", 1e-10), ("float32", 2e-5), ("bfloat16", 4e-2)]
)
def test_value_and_state_equal_the_oracle(case, dtype, tolerance):
    wide = "float64" if dtype == "float64" else "float32"
    ways = list(itertools.product(masks_of(case), (True, False)))

    def evaluated(variables, x):
        run = functools.partial(case.apply, variables, x, train=False)
        return [run(mask=mask) for mask in masks_of(case)]

    def all_ways(apply, variables, x):
        return [apply(variables, x, mask=mask, train=train) for mask, train in ways]

    def in_float64(variables, x):
        """Values in training come with the gradients of other tests."""
        trained = [case.gradients(variables, x, case.dy, m)[0] for m in masks_of(case)]
        pairs = zip(trained, jax.jit(evaluated)(variables, x), strict=True)
        return itertools.chain(*pairs)

    runs = {
        "float64": in_float64,
        # Those of other tests, too.
        "float32": functools.partial(all_ways, case.compiled),
        "bfloat16": jax.jit(functools.partial(all_ways, case.apply)),
    }
    with jax.enable_x64(dtype == "float64"):
        # The oracle sees the input as it is after rounding to the tested dtype.
        x = jnp.asarray(case.x, dtype)
        results = runs[dtype](case.variables(wide), x)
    tight = 1e-10 if dtype == "float64" else 2e-5
    for (mask, train), (y, new) in zip(ways, results, strict=True):
        where = {"err_msg": f"train={train}, {'no ' if mask is None else ''}mask"}
        close = functools.partial(np.testing.assert_allclose, **where)
        expected, stats = case.oracle(np.float64(x), mask=mask, train=train)
        close(y, expected, rtol=tolerance, atol=tolerance)
        tree_close = functools.partial(close, rtol=tight, atol=tight)
        jax.tree.map(tree_close, dict(new), stats)


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


SHARDED = (*BY_HAND, "ghost_batch_norm", "batch_channel_norm", "unified_norm")
"""One of each kind of statistics, for what the partitioner of XLA makes of it."""


def rows_with(names, condition=lambda row: True):
    """First rows that `condition` holds for; fast are those of these names."""
    slow = pytest.mark.slow
    return [
        pytest.param(row, id=str(row), marks=() if row.name in names else slow)
        for row in FIRST_ROWS
        if condition(row)
    ]


@pytest.mark.parametrize(
    "first_case", rows_with(BY_HAND, lambda row: not row.gradient), indirect=True
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
        given = case.variables("float64"), jnp.asarray(case.x), case.dy
        for mask in masks_of(case):
            _, (dparams, _, dx) = case.gradients(*given, mask)

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
            given = case.variables("float64"), jnp.asarray(case.x), case.dy
            _, (dparams, overwrite, dx) = case.gradients(*given, mask)
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

    @jax.jit
    def both(overwrite):
        def loss(overwrite, arguments):
            given = {**variables, OVERWRITE: overwrite}
            return jnp.sum(case.apply(given, x, **arguments)[0] * case.dy)

        ways = ({"train": False}, {"train": True, "mask": nothing})
        return [jax.grad(loss)(overwrite, way) for way in ways]

    for kept in both(variables[OVERWRITE]):
        chex.assert_trees_all_equal(kept, variables[OVERWRITE])


@over(tagged("mask"))
def test_masked_positions_do_not_reach_statistics_or_valid_outputs(case):
    """Poison at masked positions changes nothing elsewhere."""
    mask = np.broadcast_to(
        case.mask.reshape(case.mask.shape + (1,) * (case.x.ndim - case.mask.ndim)),
        case.x.shape,
    )
    poisoned, large = (np.where(mask, case.x, poison) for poison in (np.nan, 1e6))
    variables = case.variables("float32")
    apply = functools.partial(case.compiled, variables, mask=case.mask, train=True)
    clean, dirty = apply(jnp.float32(case.x)), apply(jnp.float32(poisoned))
    np.testing.assert_array_equal(
        np.asarray(clean[0])[mask], np.asarray(dirty[0])[mask]
    )
    chex.assert_trees_all_equal(clean[1], dirty[1])
    with jax.enable_x64(True):
        variables, dy = case.variables("float64"), np.where(mask, case.dy, 0.0)
        gradients = [
            case.gradients(variables, jnp.asarray(x), dy, case.mask)[1]
            for x in (case.x, large)
        ]
    (dparams, _, dx), (large_dparams, _, large_dx) = gradients
    chex.assert_trees_all_close(dparams, large_dparams, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(np.asarray(dx)[mask], np.asarray(large_dx)[mask])
    assert np.isfinite(large_dx).all()


@over(tagged("mask"))
def test_empty_mask_moves_no_state_and_stays_finite(case):
    variables = case.variables("float32")
    nothing = np.zeros_like(case.mask, bool)
    y, new = case.compiled(variables, jnp.float32(case.x), mask=nothing, train=True)
    assert np.isfinite(y).all()
    old = jax.tree_util.tree_leaves_with_path(variables.get(STATS, {}))
    for (path, before), after in zip(old, jax.tree.leaves(new), strict=True):
        if path[-1].key != "step":
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("first_case", rows_with(SHARDED), indirect=True)
def test_sharded_batch_equals_one_device(first_case):
    """Value, states and gradient under jit, the batch split over devices."""
    case, mask = first_case, masks_of(first_case)[-1]
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    with jax.enable_x64(True):
        variables = case.variables("float64")
        inputs = [jnp.asarray(case.x), case.dy, mask]
        one = case.gradients(variables, *inputs)
        sharded = [a if a is None else jax.device_put(a, split) for a in inputs]
        many = jax.jit(case.with_gradients)(variables, *sharded)
    chex.assert_trees_all_close(one, many, rtol=1e-5, atol=1e-5)


@over(tagged("axis_name"), "first_case")
def test_axis_name_equals_one_device(first_case):
    """Inside shard_map, with unequal numbers of valid positions in the shards."""
    case = first_case
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    synced = norms.build(case.row.name, axis_name="data", **case.row.kwargs)()
    data, same = PartitionSpec("data"), PartitionSpec()
    many = jax.shard_map(
        functools.partial(case.with_gradients, norm=synced),
        mesh=mesh,
        in_specs=(same, data, data, data),
        out_specs=((data, same), (same, same, data)),
    )
    with jax.enable_x64(True):
        given = case.variables("float64"), jnp.asarray(case.x), case.dy, case.mask
        one, several = case.gradients(*given), jax.jit(many)(*given)
    chex.assert_trees_all_close(one, several, rtol=1e-5, atol=1e-5)


def test_the_next_step_is_the_same_program(case):
    """State has the types that it had, weak ones too: nothing is traced again."""
    variables, x = case.variables("float32"), jnp.float32(case.x)
    _, new = jax.eval_shape(case.apply, variables, x)

    def typed(leaf):
        aval = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
        return aval.shape, aval.dtype, aval.weak_type

    before = jax.tree.map(typed, variables.get(STATS, {}))
    assert jax.tree.map(typed, dict(new)) == before


@pytest.mark.slow
def test_eager_equals_compiled(first_case):
    variables, x = first_case.variables("float32"), jnp.float32(first_case.x)
    y, new = first_case.compiled(variables, x, mask=None, train=True)
    eager = first_case.apply(variables, x)
    chex.assert_trees_all_close((y, new), eager, rtol=1e-5, atol=1e-5)


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
    x = jax.ShapeDtypeStruct(first_case.row.shape, given)

    def run(x):
        variables = norm.init(jax.random.key(0), x, train=True)
        return variables, norm.apply(variables, x, train=True, mutable=[STATS])

    variables, (y, new) = jax.eval_shape(run, x)
    if result == "promoted":
        result = "float32" if variables.get("params") else given
    assert y.dtype == result
    for leaf in jax.tree.leaves((variables, new)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_constant_and_large_mean_inputs(case):
    variables = case.variables("float32")
    level = jnp.full(case.row.shape, 3.0, jnp.float32)
    constant = case.compiled(variables, level, mask=None, train=True)
    chex.assert_tree_all_finite(constant)
    if not case.row.large_mean:
        return
    rng = np.random.default_rng(3)
    x = jnp.float32(rng.normal(1e4, 1.0, (16, 64, 32)))
    plain = norms.build(
        case.row.name, **{**case.row.kwargs, "use_scale": False, "use_bias": False}
    )()

    @jax.jit
    def run(x):
        variables = plain.init(jax.random.key(0), x, train=True)
        return plain.apply(variables, x, train=True, mutable=[STATS])[0]

    y = run(x)
    assert abs(float(jnp.std(y)) - 1) < 1e-2


def test_evaluation_changes_no_state_and_training_does(case):
    variables, x = case.variables("float32"), jnp.float32(case.x)
    if not case.stats:
        return
    _, kept = case.compiled(variables, x, mask=None, train=False)
    chex.assert_trees_all_equal(kept, variables[STATS])
    _, moved = case.compiled(variables, x, mask=None, train=True)
    pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(variables[STATS]), strict=True)
    assert any((a != b).any() for a, b in pairs)
    # Nothing has to be mutable.
    jax.eval_shape(lambda: case.norm.apply(variables, x, train=False))


def test_initialisation_touches_no_statistics(case):
    x = jnp.float32(case.x)

    @jax.jit
    def both(x):
        return [case.norm.init(jax.random.key(0), x, train=t) for t in (True, False)]

    trained, evaluated = both(x)
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
