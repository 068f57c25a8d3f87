"""What the norms inside PRepBN sow arrives in every phase; NumPy says what it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms
from normjax.core.errors import UserError
from tests.norms.case import Case
from tests.norms.contracts_test import numerical_gradient
from tests.norms.part_rows import adab2n
from tests.norms.row import Row

SOWN = ["batch_stats", "losses", "diagnostics", "intermediates"]
PHASES = {"warmup": 0, "decay": 3, "end": 9}


def case_of(inner, phase, **arguments):
    given = {"warmup_steps": 2, "decay_steps": 4, "batch_norm": inner, **arguments}
    return Case(Row("prepbn", lambda *_: None, given, stats={"step": PHASES[phase]}))


def trained(case, x=None, mask=None):
    """(variables, y, what the call left)."""
    variables = case.variables("float64")
    x = case.x if x is None else x
    apply = jax.jit(
        lambda x: case.norm.apply(variables, x, mask=mask, train=True, mutable=SOWN)
    )
    return variables, *apply(x)


def distance(x, stats):
    """The regulariser of AdaB2N, from its equations."""
    axes = tuple(range(x.ndim - 1))
    values = {"mean": x.mean(axes), "var": x.var(axes)}
    eta = 1 / stats["inverse_rate"]
    eta = eta / (eta + 0.9**0.5)
    return sum(
        np.mean((new - ((1 - eta) * stats[name] + eta * new)) ** 2)
        for name, new in values.items()
    )


@pytest.mark.parametrize("phase", PHASES)
def test_terms_of_the_loss_arrive_with_their_gradient(phase, x64):
    case = case_of({"name": "adab2n", "num_tasks": 3}, phase)
    stats = {k: np.array(v) for k, v in case.stats["batch_norm"].items()}
    _, _, new = trained(case)
    (term,) = new["losses"]["batch_norm"]["adab2n"]
    expected = 0.0 if phase == "warmup" else distance(case.x, stats)
    np.testing.assert_allclose(term, expected, rtol=1e-12)

    def loss(x):
        _, _, new = trained(case, x)
        return new["losses"]["batch_norm"]["adab2n"][0]

    # The running statistics are constants of the gradient.
    moved = {}
    for name, new in (("mean", case.x.mean((0, 1))), ("var", case.x.var((0, 1)))):
        eta = 1 / stats["inverse_rate"]
        eta = eta / (eta + 0.9**0.5)
        moved[name] = (1 - eta) * stats[name] + eta * new

    def held(x):
        values = {"mean": x.mean((0, 1)), "var": x.var((0, 1))}
        return sum(np.mean((values[k] - moved[k]) ** 2) for k in moved)

    gradient = numerical_gradient(held, case.x.copy())
    if phase == "warmup":
        gradient *= 0
    np.testing.assert_allclose(jax.grad(loss)(case.x), gradient, rtol=1e-5, atol=1e-9)


def test_the_gradient_knows_what_the_call_knew(x64):
    """Tasks are given by a context, which is closed when the backward pass runs."""
    case = case_of({"name": "adab2n", "num_tasks": 3}, "end")
    case.stats["batch_norm"]["task"] = np.int32(1)
    variables, tasks = case.variables("float64"), np.array([0, 1, 1, 2])

    @jax.jit
    def loss(params):
        with norms.task_context(jnp.asarray(tasks)):
            y, _ = case.norm.apply(
                {**variables, "params": params}, case.x, train=True, mutable=SOWN
            )
        return jnp.sum(y * case.dy)

    gradient = jax.grad(loss)(variables["params"])["batch_norm"]["task_weight"]
    inner = {k: np.array(v) for k, v in case.params["batch_norm"].items()}

    def oracle(psi):
        given = (case.x, {**inner, "task_weight": psi}, case.stats["batch_norm"])
        return np.sum(adab2n(*given, None, True, {}, tasks)[0] * case.dy)

    expected = numerical_gradient(oracle, inner["task_weight"])
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.parametrize("phase", PHASES)
def test_diagnostics_arrive(phase, x64):
    """NaN, which is no measurement, where the norm is not evaluated."""
    case = case_of({"name": "power_norm", "warmup_steps": 1}, phase)
    _, _, new = trained(case)
    left = new["diagnostics"]
    assert set(left) == {"lam", "batch_norm"}
    measured = {
        "power_norm_nu": np.abs(case.overwrite["batch_norm"]["nu"]).max(),
        "power_norm_phi": case.stats["batch_norm"]["phi"].min(),
    }
    for name, value in measured.items():
        expected = np.nan if phase == "warmup" else value
        np.testing.assert_allclose(left["batch_norm"][name], [expected], rtol=1e-12)


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_sown_deeper_and_twice(phase, x64):
    """Under the path of the norm that sows, once for each call of a shared one."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            given = {"decay_steps": 4, "warmup_steps": 2}
            inner = {"name": "filled_batch_norm", "token_scaling": False}
            norm = norms.build("prepbn", batch_norm=inner, **given)(name="norm")
            return norm(norm(x, train=True), train=True)

    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 5, 3)))
    variables = Twice().init(jax.random.key(0), x)
    variables["batch_stats"]["norm"]["step"] = jnp.int32(PHASES[phase])
    _, new = Twice().apply(variables, x, mutable=SOWN)
    means = new["intermediates"]["norm"]["batch_norm"]["batch_norm"]["mean"]
    assert len(means) == 2
    expected = np.nan * np.ones(3) if phase == "warmup" else np.asarray(x).mean((0, 1))
    np.testing.assert_allclose(means[0], expected, rtol=1e-10)


def test_padding_reaches_neither_norm(x64):
    """Not even in warm-up, where a norm over positions is replaced."""
    for phase in PHASES:
        case = case_of("repbn", phase, layer_norm="instance_norm")
        valid = case.mask[..., None]
        other = np.where(valid, case.x, 1e3)
        results = [trained(case, x, case.mask)[1] for x in (case.x, other)]
        ours, theirs = (np.where(valid, y, 0) for y in results)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layer_norm", ["none", "crms_norm", "simple_rms_norm"])
def test_norms_without_parameters_are_replaced_as_well(layer_norm, x64):
    case = case_of("batch_norm", "decay", layer_norm=layer_norm)
    x, params = case.x, case.params["batch_norm"]
    batch = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)
    batch = batch * params["scale"] + params["bias"]
    square = (x**2).sum(-1, keepdims=True)
    if layer_norm == "crms_norm":
        square = square + x.sum(-1, keepdims=True) ** 2
    channels = x.shape[-1] + (layer_norm == "crms_norm")
    layer = x if layer_norm == "none" else x / np.sqrt(square / channels + 1e-6)
    lam = 1 - (3 - 2) / 4
    _, y, _ = trained(case)
    np.testing.assert_allclose(y, lam * layer + (1 - lam) * batch, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_norm": "batch_norm"}, "layer_norm 'batch_norm' has 'batch_stats'"),
        ({"batch_norm": "layer_norm"}, "batch_norm 'layer_norm' lacks 'batch_stats'"),
        ({"batch_norm": {"name": "repbn", "momentm": 1}}, "'momentm'; did you mean"),
        ({"layer_norm": "layr_norm"}, "unknown norm 'layr_norm'; did you mean"),
        ({"batch_norm": "prepbn"}, "batch_norm 'prepbn' needs decay_steps"),
    ],
)
def test_norms_that_do_not_fit_are_refused_at_once(arguments, message):
    with pytest.raises(UserError, match=message):
        norms.build("prepbn", decay_steps=4, **arguments)
