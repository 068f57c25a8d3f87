"""What every reparameterization owes: equations, gradients, state, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.reparam import (
    REPARAMS,
    scaled_standardize_weight,
    stable_rank_normalize,
    standardize_weight,
)
from tests.reparam.oracles import rows_of
from tests.reparam.rows import ROWS

CASES = [
    pytest.param(row, layer, id=f"{row.name}-{i}-{'x'.join(map(str, shape))}")
    for i, row in enumerate(ROWS)
    for layer in row.layers
    for shape in [next(iter(layer.values()))]
]
over = pytest.mark.parametrize(("row", "shapes"), CASES)
once = pytest.mark.parametrize(
    ("row", "shapes"), [c for c in CASES if c.values[1] is c.values[0].layers[0]]
)


class Case:
    """A reparameterization with random weights, parameters and state."""

    def __init__(self, row, shapes):
        rng = np.random.default_rng(0)
        self.row, self.reparam = (
            row,
            REPARAMS.factory({"name": row.name, **row.kwargs})(),
        )
        self.layer = {k: rng.normal(size=s) for k, s in shapes.items()}
        self.dy = {k: rng.normal(size=s) for k, s in shapes.items()}
        with jax.enable_x64(True):
            created = self.reparam.create(self.layer, jax.random.key(0))
        own, held = jax.tree.map(np.asarray, created)
        self.own = {k: rng.uniform(0.5, 2, v.shape) for k, v in own.items()}
        # Vectors of length 1 near no singular vector: what an iteration does is seen.
        self.state = {
            k: v / np.linalg.norm(v)
            for k, v in ((k, rng.normal(size=np.shape(v))) for k, v in held.items())
        }
        self.dy.setdefault("bias", rng.normal(size=next(iter(shapes.values()))[-1]))

    def run(self, dtype, train):
        trees = jax.tree.map(lambda a: jnp.asarray(a, dtype), self.trees())
        return jax.jit(self.reparam.effective, static_argnames="train")(
            *trees, train=train
        )

    def trees(self):
        return self.layer, self.own, self.state

    def expected(self, train):
        vectors, state = self.row.move(
            self.layer, self.own, self.state, self.row.kwargs, train
        )
        return self.row.value(self.layer, self.own, vectors, self.row.kwargs), state


def agrees(case, dtype, limit, train):
    with jax.enable_x64(dtype == "float64"):
        weights, state = case.run(dtype, train)
    expected = case.expected(train)
    assert jax.tree.structure(dict(weights)) == jax.tree.structure(expected[0])
    assert set(state) == set(case.reparam.held)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=limit, atol=limit),
        (dict(weights), dict(state)),
        expected,
    )
    assert {x.dtype for x in jax.tree.leaves((weights, state))} == {np.dtype(dtype)}


@over
def test_weights_and_state_equal_the_oracle(row, shapes):
    case = Case(row, shapes)
    for train in (True, False) if case.reparam.held else (True,):
        agrees(case, "float64", 1e-12, train)


@once
def test_the_same_in_float32(row, shapes):
    agrees(Case(row, shapes), "float32", 1e-5, True)


@over
def test_gradients_equal_differences_of_the_oracle(row, shapes):
    """Singular vectors are constants of the gradient, everything else is not."""
    case = Case(row, shapes)
    vectors, _ = row.move(case.layer, case.own, case.state, row.kwargs, True)

    def loss(layer, own):
        weights, _ = case.reparam.effective(layer, own, case.state, train=True)
        return sum(jnp.sum(weights[k] * case.dy[k]) for k in weights)

    def value(layer, own):
        weights = row.value(layer, own, vectors, row.kwargs)
        return sum(np.sum(weights[k] * case.dy[k]) for k in weights)

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(case.layer, case.own)
    trees = (case.layer, case.own)
    for i, tree in enumerate(trees):
        for name, array in tree.items():
            expected = np.zeros(np.shape(array))
            for index in np.ndindex(np.shape(array)):
                moved = [
                    value(*trees[:i], {**tree, name: shifted}, *trees[i + 1 :])
                    for shifted in _shifted(array, index, 1e-6)
                ]
                expected[index] = (moved[0] - moved[1]) / 2e-6
            scale = max(np.abs(expected).max(), 1e-3)
            np.testing.assert_allclose(
                gradient[i][name], expected, rtol=1e-6, atol=1e-7 * scale
            )


def _shifted(array, index, step):
    for sign in (1, -1):
        shifted = np.array(array, np.float64)
        shifted[index] += sign * step
        yield shifted


@once
def test_what_a_new_layer_gets(row, shapes):
    case = Case(row, shapes)
    layer = {k: jnp.asarray(v, jnp.float32) for k, v in case.layer.items()}
    own, held = jax.jit(case.reparam.create)(layer, jax.random.key(1))
    assert set(own) == set(case.reparam.own) and set(held) == set(case.reparam.held)
    assert {x.dtype for x in jax.tree.leaves((own, held))} <= {jnp.dtype("float32")}
    if row.start is not None:
        expected = row.start(case.layer, row.kwargs)
        for name, value in expected.items():
            np.testing.assert_allclose(own[name], value, rtol=1e-5)
    if held:  # then they are the singular vectors, and one iteration changes nothing
        run = jax.jit(case.reparam.effective, static_argnames="train")
        weights, moved = run(layer, own, held, train=True)
        matrix = rows_of(case.layer["kernel"])
        largest, rows = (
            np.linalg.norm(matrix, 2),
            rows_of(np.asarray(weights["kernel"])),
        )
        for name in {"left", "right"} & set(held):
            np.testing.assert_allclose(moved[name], held[name], atol=1e-4)
        if "sigma" in held:
            np.testing.assert_allclose(held["sigma"], largest, rtol=1e-5)
        kept = row.kwargs.get("keep_scale") or "shift" in own
        norm = own.get("gamma", largest if kept else 1)
        np.testing.assert_allclose(np.linalg.norm(rows, 2), norm, rtol=1e-4)


@once
def test_low_precision_weights_are_worked_on_in_float32(row, shapes):
    case = Case(row, shapes)
    layer = {k: jnp.asarray(v, jnp.bfloat16) for k, v in case.layer.items()}
    rounded = {k: np.asarray(v, np.float64) for k, v in layer.items()}
    own = {k: jnp.asarray(v, jnp.float32) for k, v in case.own.items()}
    state = {k: jnp.asarray(v, jnp.float32) for k, v in case.state.items()}
    run = jax.jit(case.reparam.effective, static_argnames="train")
    weights, _ = run(layer, own, state, train=True)
    vectors, _ = row.move(rounded, case.own, case.state, row.kwargs, True)
    expected = row.value(rounded, case.own, vectors, row.kwargs)
    for name in {"kernel", "scale"} & set(weights):
        assert weights[name].dtype == jnp.float32
        np.testing.assert_allclose(weights[name], expected[name], rtol=1e-4, atol=1e-5)


def test_random_start_of_scale_and_shift():
    layer = {"kernel": jnp.zeros((2, 5000))}
    own, _ = REPARAMS["scale_and_shift"].make().create(layer, jax.random.key(0))
    for name, mean in (("ssf_scale", 1), ("ssf_shift", 0)):
        assert (
            abs(own[name].mean() - mean) < 2e-3 and abs(own[name].std() - 0.02) < 1e-3
        )


@pytest.mark.parametrize("inside", [True, False])
def test_a_unit_of_equal_weights_is_zero_with_a_finite_gradient(inside):
    """d w' / d w is (I - 1/n) / epsilon, or / sqrt(epsilon): there is no variance."""
    kernel, dy = jnp.full((4, 1), 0.3), jnp.arange(4.0).reshape(4, 1)

    def loss(kernel):
        made = standardize_weight(kernel, epsilon=0.01, epsilon_inside=inside)
        return jnp.sum(made * dy), made

    gradient, made = jax.jit(jax.grad(loss, has_aux=True))(kernel)
    np.testing.assert_allclose(made, 0, atol=1e-5)
    divisor = 0.1 if inside else 0.01
    np.testing.assert_allclose(gradient, (dy - dy.mean()) / divisor, rtol=1e-5)


def test_below_the_floor_scaled_standardization_is_linear():
    kernel = jnp.asarray([[1e-4], [-1e-4], [0.0]])

    def first(kernel):
        return scaled_standardize_weight(kernel, jnp.ones(1))[0, 0]

    gradient = jax.jit(jax.grad(first))(kernel)
    expected = (np.array([1, 0, 0]) - 1 / 3) / 1e-2
    np.testing.assert_allclose(gradient[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("rank", [1.0, 1.5, 3.0, 100.0])
def test_spectral_norm_and_stable_rank_of_the_result(rank):
    matrix = np.random.default_rng(0).normal(size=(12, 7))
    left, values, right = np.linalg.svd(matrix.T)
    stable = (values**2).sum() / values[0] ** 2
    assert 3 < stable < 7
    vectors = jnp.asarray(left[:, 0], jnp.float32), jnp.asarray(right[0], jnp.float32)
    run = jax.jit(stable_rank_normalize, static_argnames="stable_rank")
    made = run(jnp.float32(matrix), *vectors, stable_rank=rank)
    new = np.linalg.svd(np.asarray(made), compute_uv=False)
    np.testing.assert_allclose(new[0], 1, rtol=1e-5)
    expected = min(rank, stable)
    np.testing.assert_allclose((new**2).sum() / new[0] ** 2, expected, rtol=1e-5)


def test_a_matrix_of_rank_one_has_a_finite_gradient():
    kernel = jnp.ones((3, 2))
    left, right = jnp.full(2, 2**-0.5), jnp.full(3, 3**-0.5)

    def first(kernel):
        return stable_rank_normalize(kernel, left, right, stable_rank=1.0)[0, 0]

    gradient = jax.jit(jax.grad(first))(kernel)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "sigma_reparam",
            {"gamma_init": "ones"},
            "gamma_init 'ones'; did you mean 'one'",
        ),
        ("stable_rank_normalization", {"rank_ratio": 0.0}, "rank_ratio > 0"),
        ("stable_rank_normalization", {"iterations": 0}, "iterations must be"),
        ("weight_standardisation", {}, "did you mean 'weight_standardization'"),
        ("weight_compander", {"width_": 1.0}, "did you mean 'width'"),
    ],
)
def test_errors(name, arguments, message):
    with pytest.raises(UserError) as caught:
        REPARAMS.factory({"name": name, **arguments})()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_registered_reparameterization_has_a_row():
    assert {row.name for row in ROWS} == {entry.name for entry in REPARAMS}


def test_what_is_pruned_after_training():
    """Other than in training, zeros stay."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3)) * (rng.random((4, 3)) < 0.5)
    a, b = rng.normal(size=(4, 2)), rng.normal(size=(2, 3))
    rule = REPARAMS.factory({"name": "lora_prune", "rank": 2, "alpha": 3.0})()
    own = {"lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}
    layer, added = {"kernel": jnp.asarray(kernel)}, 1.5 * a @ b
    for train, mask in ((True, 1), (False, kernel != 0)):
        made, _ = rule.effective(layer, own, {}, train=train)
        np.testing.assert_allclose(made["kernel"], kernel + mask * added, rtol=1e-5)
