"""AdaB2N with task numbers, which the contracts of all norms do not give."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from normjax import norms
from normjax.core.collections import BATCH_STATS, LOSSES
from tests.norms.case import Case
from tests.norms.contracts_test import numerical_gradient
from tests.norms.part_rows import ROWS, adab2n

ROW = next(row for row in ROWS if row.name == "adab2n")
IDS = np.array([0, 2, 0, 2])


@pytest.fixture(scope="module")
def case():
    return Case(ROW)


def apply(norm, variables, x, mask=None):
    y, new = norm.apply(
        variables, x, mask=mask, train=True, task_ids=IDS, mutable=[BATCH_STATS, LOSSES]
    )
    return y, new[BATCH_STATS], new[LOSSES]["adab2n"][0]


def oracle(case, x, params, mask):
    y, new = adab2n(x, params, case.stats, mask, True, ROW.kwargs, IDS)
    return y, new


def moments_left(case, x, params, mask, target):
    """The regulariser, its target (the new running statistics) held still."""
    _, new = oracle(case, x, params, mask)
    eta = 1 / new["inverse_rate"]
    batch = {k: (new[k] - (1 - eta) * case.stats[k]) / eta for k in ("mean", "var")}
    return sum(np.mean((batch[k] - target[k]) ** 2) for k in batch)


@pytest.mark.parametrize("masked", [False, True])
def test_value_state_loss_and_gradients_equal_the_oracle(case, masked, x64):
    mask = case.mask if masked else None
    variables = case.variables("float64")
    y, stats, loss = apply(case.norm, variables, case.x, mask)
    expected, new = oracle(case, case.x, case.params, mask)
    chex.assert_trees_all_close((y, dict(stats)), (expected, new), rtol=1e-10)
    assert stats["task"] == 2
    target = moments_left(case, case.x, case.params, mask, new)
    np.testing.assert_allclose(loss, target, rtol=1e-9)

    def objective(params, x):
        y, _, loss = apply(case.norm, {**variables, "params": params}, x, mask)
        return jnp.sum(y * case.dy) + loss

    def expected_objective(params, x):
        y, _ = oracle(case, x, params, mask)
        return np.sum(y * case.dy) + moments_left(case, x, params, mask, new)

    params = {k: v.copy() for k, v in case.params.items()}
    grads, dx = jax.grad(objective, argnums=(0, 1))(variables["params"], case.x)
    by_x = functools.partial(expected_objective, params)
    np.testing.assert_allclose(
        dx, numerical_gradient(by_x, case.x.copy()), rtol=1e-6, atol=1e-6
    )
    for name, gradient in grads.items():
        by_params = lambda _: expected_objective(params, case.x)  # noqa: E731
        numerical = numerical_gradient(by_params, params[name])
        np.testing.assert_allclose(gradient, numerical, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("devices", [2, 4])
def test_axis_name_equals_one_device(case, devices):
    mesh, data = Mesh(np.array(jax.devices()[:devices]), "d"), PartitionSpec("d")
    variables = case.variables("float32")
    mutable = [BATCH_STATS, LOSSES]

    def step(norm, variables, x, dy, mask, ids):
        def loss(params, x):
            given = {**variables, "params": params}
            y, new = norm.apply(
                given, x, mask=mask, train=True, task_ids=ids, mutable=mutable
            )
            return jnp.sum(y * dy), (y, new)

        grads, (y, new) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            variables["params"], x
        )
        return grads[1], y, (grads[0], new)

    inputs = [jnp.float32(case.x), jnp.float32(case.dy), case.mask, IDS]
    one = jax.jit(functools.partial(step, case.norm))(variables, *inputs)
    synced = norms.build("adab2n", axis_name="d", **ROW.kwargs)()
    many = jax.jit(
        jax.shard_map(
            functools.partial(step, synced),
            mesh=mesh,
            in_specs=(PartitionSpec(), data, data, data, data),
            out_specs=(data, data, PartitionSpec()),
        )
    )(variables, *inputs)
    chex.assert_trees_all_close(one, many, rtol=1e-5, atol=1e-5)


def test_first_task_equals_no_tasks(case):
    variables = case.variables("float32")
    variables[BATCH_STATS] = {**variables[BATCH_STATS], "task": jnp.int32(0)}
    x = jnp.float32(case.x)
    run = functools.partial(
        case.norm.apply, variables, x, train=True, mutable=[BATCH_STATS, LOSSES]
    )
    chex.assert_trees_all_close(run(), run(task_ids=0 * IDS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_rate_of_the_running_average(kappa):
    """eta = m**kappa, then eta / (eta + (1 - m)**kappa): 1 / n for 0, m for 1."""
    norm = norms.build("adab2n", kappa=kappa, momentum=0.9)()
    x = jax.random.normal(jax.random.key(0), (4, 3))
    variables, eta = norm.init(jax.random.key(0), x, train=True), 0.1**kappa
    for n in range(1, 6):
        _, new = norm.apply(variables, x, train=True, mutable=[BATCH_STATS])
        variables = {**variables, **new}
        rate = 1 / variables[BATCH_STATS]["inverse_rate"]
        np.testing.assert_allclose(rate, eta, rtol=1e-5)
        np.testing.assert_allclose(rate, {0: 1 / n, 1: 0.1}.get(kappa, eta), rtol=1e-5)
        eta = eta / (eta + 0.9**kappa)


def test_task_context_reaches_norms_inside_a_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = norms.build("adab2n")(name="first")(x, train=train)
            return norms.build("adab2n")(name="second")(nn.relu(x), train=train)

    x = jax.random.normal(jax.random.key(0), (4, 7, 6))
    model = Model()
    variables = model.init(jax.random.key(0), x, train=True)

    @jax.jit
    def step(variables, ids):
        with norms.task_context(ids):
            return model.apply(variables, x, train=True, mutable=[BATCH_STATS])[1]

    stats = step(variables, IDS)[BATCH_STATS]
    assert stats["first"]["task"] == stats["second"]["task"] == 2
