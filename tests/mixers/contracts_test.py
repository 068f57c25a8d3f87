"""What every token mixer keeps, whatever it computes; one run per row of rows.py."""

import functools
import inspect
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import mixers
from normjax.mixers import MIXERS
from tests.mixers.case import case_of, valid
from tests.mixers.rows import ROWS

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
    """For contracts that compile much: the first row of every mixer."""
    return case_of(ROWS.index(request.param))


def over(condition, fixture="case"):
    """Run a test on those rows only that `condition` holds for."""
    rows = ROWS if fixture == "case" else FIRST_ROWS
    chosen = marked(row for row in rows if condition(row))
    return pytest.mark.parametrize(fixture, chosen, indirect=True)


def masked(row):
    return "mask" in MIXERS[row.name].tags


def test_every_mixer_and_every_tag_has_a_row():
    assert {row.name for row in ROWS} == {entry.name for entry in MIXERS}
    causal = {row.name for row in ROWS if row.causal}
    assert causal == {entry.name for entry in MIXERS if "causal" in entry.tags}
    for row in ROWS:
        layout = "grid" if len(row.shape) == 4 else "seq"
        assert layout in MIXERS[row.name].tags, str(row)


def test_value_equals_the_oracle(case):
    for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-5)):
        with jax.enable_x64(dtype == "float64"):
            y = case.compiled(case.cast(dtype), jnp.asarray(case.x, dtype))
        assert (y.shape, y.dtype) == (case.row.shape, dtype)
        expected = case.oracle(case.x)
        close = {"rtol": tolerance, "atol": tolerance * np.abs(expected).max()}
        np.testing.assert_allclose(y, expected, err_msg=dtype, **close)


def test_bfloat16_is_close_to_the_oracle(first_case):
    case = first_case
    mixer = case.build(dtype=jnp.bfloat16)
    # The oracle sees input and parameters as they are after rounding.
    x = jnp.asarray(case.x, jnp.bfloat16)
    params = case.cast(jnp.bfloat16)
    y = jax.jit(mixer.apply)({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    expected = case.oracle(np.float64(x), jax.tree.map(np.float64, params))
    # In the mean: a denominator close to zero enlarges single errors.
    error = np.sqrt(np.mean((np.float64(y) - expected) ** 2))
    assert error <= 1e-1 * np.sqrt(np.mean(expected**2))


def test_value_and_gradients_equal_the_oracle(case):
    """With a mask where there is one. Gradients along random directions: one number per
    direction and array."""
    step, mask = 1e-6, case.masks()[-1]
    dy = case.dy if mask is None else case.dy * mask[..., None]
    with jax.enable_x64(True):
        given = case.cast("float64"), jnp.asarray(case.x), mask
        y, gradients = case.value_and_gradients(*given)
    expected = valid(case.oracle(case.x, mask=mask), mask)
    close = {"rtol": 1e-10, "atol": 1e-10 * np.abs(expected).max()}
    np.testing.assert_allclose(valid(y, mask), expected, **close)
    leaves, tree = jax.tree.flatten((case.params, case.x))
    for i, g in enumerate(jax.tree.leaves(gradients)):
        for _ in range(2):
            direction = case.rng.normal(size=g.shape)

            def moved(by, i=i, direction=direction):
                new = [*leaves[:i], leaves[i] + by * direction, *leaves[i + 1 :]]
                params, x = jax.tree.unflatten(tree, new)
                return np.sum(case.oracle(x, params, mask) * dy)

            expected = (moved(step) - moved(-step)) / (2 * step)
            actual, size = np.sum(np.asarray(g) * direction), np.linalg.norm(g)
            np.testing.assert_allclose(actual, expected, 1e-6, 1e-6 * size + 1e-7)


@pytest.mark.parametrize(
    "first_case",
    [
        pytest.param(
            row,
            id=str(row),
            marks=() if row.name in ("sla", "gated_linear") else pytest.mark.slow,
        )
        for row in FIRST_ROWS
    ],
    indirect=True,
)
def test_forward_mode_is_reverse_mode_transposed(first_case):
    case = first_case
    with jax.enable_x64(True):
        at = case.cast("float64"), jnp.asarray(case.x)
        along = jax.tree.map(lambda t: case.rng.normal(size=t.shape), at)

        @jax.jit
        def products(along):
            _, pull = jax.vjp(case.apply, *at)
            _, slope = jax.jvp(case.apply, at, along)
            pairs = jax.tree.map(jnp.vdot, pull(jnp.asarray(case.dy)), along)
            return jnp.vdot(case.dy, slope), sum(jax.tree.leaves(pairs))

        np.testing.assert_allclose(*products(along), rtol=1e-9, atol=1e-9)


@over(masked)
def test_padding_reaches_no_token(case):
    """Poison at masked positions changes neither values nor gradients elsewhere."""
    mask = case.mask
    poisoned, large = (np.where(mask[..., None], case.x, t) for t in (np.nan, 1e6))
    with jax.enable_x64(True):
        run, params = case.value_and_gradients, case.cast("float64")
        (clean, gradients), (dirty, _), (_, large_gradients) = (
            run(params, jnp.asarray(x), mask) for x in (case.x, poisoned, large)
        )
    np.testing.assert_array_equal(valid(clean, mask), valid(dirty, mask))
    (dparams, dx), (large_dparams, large_dx) = gradients, large_gradients
    chex.assert_trees_all_close(dparams, large_dparams, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(valid(dx, mask), valid(large_dx, mask))
    assert np.isfinite(large_dx).all()


@over(masked)
def test_masks_in_inference(case):
    """In float32: some tokens, all, and none. Nothing is differentiated here."""
    params, x, some = case.cast("float32"), jnp.float32(case.x), case.mask
    for mask in (some, np.ones_like(some)):
        y = valid(case.compiled(params, x, mask), mask)
        expected = valid(case.oracle(case.x, mask=mask), mask)
        np.testing.assert_allclose(y, expected, 2e-5, 2e-5 * np.abs(expected).max())
    assert np.isfinite(case.compiled(params, x, np.zeros_like(some))).all()
    poisoned = jnp.where(some[..., None], x, jnp.nan)
    clean, dirty = (valid(case.compiled(params, t, some), some) for t in (x, poisoned))
    np.testing.assert_array_equal(clean, dirty)


@over(lambda row: row.causal)
def test_no_position_sees_a_later_one(case):
    """And each sees itself, in rows that are causal."""
    with jax.enable_x64(True):
        params, x = case.cast("float64"), jnp.asarray(case.x)
        y = np.asarray(case.compiled(params, x))
        for i in range(case.row.shape[1]):
            later = x.at[:, i:].add(case.dy[:, i:])
            moved = np.abs(np.asarray(case.compiled(params, later)) - y)
            assert moved[:, :i].max(initial=0) <= 1e-12 * np.abs(y).max(), i
            assert moved[:, i].max() > 1e-6, i  # rectified scores may all be 0 in one


def sequential(row):
    """Mixers that know of documents, on sequences of the length of the contracts."""
    call = inspect.signature(MIXERS[row.name].make.__call__)
    return "positions" in call.parameters and len(row.shape) == 3


@over(sequential)
def test_packed_documents_give_what_each_gives_alone(case):
    """And no gradient crosses from one to the other."""
    cut, length = 3, case.row.shape[1]
    places = np.concatenate((np.arange(cut), np.arange(length - cut)))
    places = np.tile(places, (case.row.shape[0], 1))

    def packed(params, x):
        return case.mixer.apply({"params": params}, x, positions=jnp.asarray(places))

    def all_ways(params, x):
        def per_position(x):
            return jnp.sum(packed(params, x) * case.dy, axis=(0, 2))

        alone = [case.apply(params, t) for t in (x[:, :cut], x[:, cut:])]
        return jax.jacrev(per_position)(x), packed(params, x), alone

    with jax.enable_x64(True):
        given = case.cast("float64"), jnp.asarray(case.x)
        jacobian, y, alone = jax.jit(all_ways)(*given)
    np.testing.assert_allclose(y, np.concatenate(alone, 1), rtol=1e-9, atol=1e-9)
    seen = np.abs(jacobian).max((1, 3)) > 0
    np.testing.assert_array_equal(seen[:cut, cut:] | seen[cut:, :cut].T, False)
    assert seen.diagonal().all()


@over(sequential, "first_case")
def test_padding_in_front_changes_nothing(first_case):
    """Tokens behind padding give what they give without it."""
    case = first_case
    pad = 2
    mask = np.arange(case.row.shape[1]) >= pad
    mask = np.tile(mask, (case.row.shape[0], 1))
    with jax.enable_x64(True):
        apply, params = case.compiled, case.cast("float64")
        padded = apply(params, jnp.asarray(case.x), mask)[:, pad:]
        alone = apply(params, jnp.asarray(case.x[:, pad:]))
    np.testing.assert_allclose(padded, alone, rtol=1e-9, atol=1e-9)


def reads(row):
    return getattr(mixers.build(row.name, **row.kwargs)(), "reads", ())


@over(reads, "first_case")
def test_folded_scale_and_shift_equal_a_scaled_and_shifted_input(first_case):
    """`reads` names all that reads the input, and all of it is linear; of further
    configurations in tests/fusion/layers_test.py."""
    case = first_case
    a, c = case.rng.uniform(0.5, 1.5, (2, case.row.shape[-1]))
    params = jax.tree.map(np.array, case.params)
    layers = [
        functools.reduce(operator.getitem, name.split("/"), params)
        for name in case.mixer.reads
    ]
    if any("bias" not in layer for layer in layers):
        c = np.zeros_like(c)
    for layer in layers:
        kernel = layer["kernel"]
        if "bias" in layer:
            shift = np.einsum("i,...io->...o", c, kernel)
            bias = layer["bias"]
            layer["bias"] = bias + shift.reshape(-1, bias.size).sum(0)
        layer["kernel"] = kernel * a[:, None]
    with jax.enable_x64(True):
        apply = case.compiled
        folded = apply(params, jnp.asarray(case.x))
        expected = apply(case.cast("float64"), jnp.asarray(a * case.x + c))
    np.testing.assert_allclose(folded, expected, rtol=1e-9, atol=1e-9)


@over(lambda row: MIXERS[row.name].make.writes, "first_case")
def test_a_scaled_and_shifted_last_layer_scales_and_shifts_the_output(first_case):
    """`writes` names the linear layer whose output is the mixer's."""
    case = first_case
    a, c = case.rng.uniform(0.5, 1.5, (2, case.row.shape[-1]))
    params = jax.tree.map(np.array, case.params)
    path = case.mixer.writes.split("/")
    layer = functools.reduce(operator.getitem, path, params)
    layer["kernel"] = layer["kernel"] * a
    if "bias" in layer:
        layer["bias"] = layer["bias"] * a + c
    else:
        c = np.zeros_like(c)
    with jax.enable_x64(True):
        apply = case.compiled
        folded = apply(params, jnp.asarray(case.x))
        plain = apply(case.cast("float64"), jnp.asarray(case.x))
        expected = np.asarray(plain) * a + c
    np.testing.assert_allclose(folded, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_eager_equals_compiled(first_case):
    params, x = first_case.cast("float32"), jnp.float32(first_case.x)
    y = first_case.compiled(params, x)
    chex.assert_trees_all_close(y, first_case.apply(params, x), rtol=1e-5, atol=1e-5)


def test_dtypes(first_case):
    """Result as flax.linen decides it; parameters stay float32."""
    for given, asked, result in (
        ("float32", None, "float32"),
        ("bfloat16", None, "promoted"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
    ):
        mixer = first_case.build(**({} if asked is None else {"dtype": asked}))
        x = jax.ShapeDtypeStruct(first_case.row.shape, given)
        y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(0), x)
        if result == "promoted":
            result = "float32" if variables.get("params") else given
        assert y.dtype == result, f"{given} with dtype={asked}"
        types = {leaf.dtype.name for leaf in jax.tree.leaves(variables)}
        assert types <= {"float32"}
