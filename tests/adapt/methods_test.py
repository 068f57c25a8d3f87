"""Adaptations of a small network against the same network written in NumPy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms
from normjax.adapt import ADAPTATIONS
from normjax.adapt.lame import affinity, laplacian_adjusted
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)
X = [RNG.normal(size=(6, 2, 2, 3)) + 1.5 for _ in range(2)]


@pytest.fixture(autouse=True)
def _wide(x64):
    """All of it in float64."""


class Network(nn.Module):
    norm: Any = "batch_norm"

    @nn.compact
    def __call__(self, x, *, train):
        x = norms.build(self.norm)(name="norm")(x, train=train)
        x = nn.relu(x).mean((1, 2))
        return nn.Dense(4, name="head", param_dtype=jnp.float64)(x)


def variables_of(norm="batch_norm"):
    variables = Network(norm).init(jax.random.key(0), X[0], train=False)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda t: jnp.asarray(rng.uniform(0.5, 1.5, t.shape)), variables
    )


def network(variables, x, mean, var, scale=None, bias=None, alpha=0.0):
    norm, head = variables["params"]["norm"], variables["params"]["head"]
    scale = np.asarray(norm["scale"] if scale is None else scale)
    bias = np.asarray(norm["bias"] if bias is None else bias)
    y = (x - mean) / np.sqrt(var + 1e-5) * scale + bias + alpha * x
    features = np.maximum(y, 0).mean((1, 2))
    return features, features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])


def stream(name, variables, norm="batch_norm", **arguments):
    """Logits of both batches, and the last state."""
    method = ADAPTATIONS.factory({"name": name, **arguments})()
    state, outputs = method.start(variables), []
    step = jax.jit(lambda v, s, x: method.predict(Network(norm).apply, v, s, x))
    for x in X:
        logits, state = step(variables, state, x)
        outputs.append(np.asarray(logits))
    return outputs, state


def own_moments(x):
    rows = x.reshape(-1, 3)
    return rows.mean(0), rows.var(0, ddof=1)


@pytest.mark.parametrize(
    ("name", "weight"), [("source", 0.0), ("alpha_bn", 0.1), ("batch_stats", 1.0)]
)
@pytest.mark.parametrize("norm", ["batch_norm", "repbn"])
def test_statistics_of_source_and_batch(name, weight, norm):
    variables = variables_of(norm)
    stats = variables["batch_stats"]["norm"]
    alpha = np.asarray(variables["params"]["norm"].get("alpha", 0.0))
    for x, got in zip(X, stream(name, variables, norm)[0], strict=True):
        mean, var = own_moments(x)
        mean = (1 - weight) * np.asarray(stats["mean"]) + weight * mean
        var = (1 - weight) * np.asarray(stats["var"]) + weight * var
        expected = network(variables, x, mean, var, alpha=alpha)[1]
        np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_components_follow_the_stream():
    variables = variables_of()
    outputs, state = stream("unmix_tns", variables, components=1, momentum=0.5)
    stats = variables["batch_stats"]["norm"]
    means, variances = (np.asarray(stats[k]).copy() for k in ("mean", "var"))
    momentum = 1 - 0.5 ** (6 / 64)
    for x, got in zip(X, outputs, strict=True):  # one component takes all of an image
        own = x.reshape(6, 4, 3)
        mean, var = own.mean(1), own.var(1)
        wide = (t[:, None, None] for t in (mean, var))
        np.testing.assert_allclose(got, network(variables, x, *wide)[1], rtol=1e-10)
        means = means + momentum * (mean - means).mean(0)
        variances = variances + momentum * (var - variances).mean(0)
    np.testing.assert_allclose(state["norm"][0][0], means, rtol=1e-10)
    np.testing.assert_allclose(state["norm"][1][0], variances, rtol=1e-10)


def test_lame_agrees_among_neighbours():
    variables = variables_of()
    stats = variables["batch_stats"]["norm"]
    for x, got in zip(X, stream("lame", variables)[0], strict=True):
        features, logits = network(variables, x, *map(np.asarray, stats.values()))
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        kernel = affinity(jnp.asarray(features), "knn", neighbours=5)
        expected = laplacian_adjusted(jnp.asarray(p), kernel)
        np.testing.assert_allclose(np.exp(got), expected, rtol=1e-8, atol=1e-12)


def test_entropy_falls_and_predictions_precede_the_step():
    variables = variables_of()
    outputs, (learned, _) = stream("tent", variables, learning_rate=1e-2)
    norm = variables["params"]["norm"]
    np.testing.assert_allclose(
        outputs[0], network(variables, X[0], *own_moments(X[0]))[1], rtol=1e-10
    )

    def entropy(scale, bias, x):
        logits = network(variables, x, *own_moments(x), scale, bias)[1]
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return -(p * np.log(p)).sum(-1).mean()

    before = np.asarray(norm["scale"]), np.asarray(norm["bias"])
    after = np.asarray(learned["norm"]["scale"]), np.asarray(learned["norm"]["bias"])
    assert entropy(*after, X[0]) < entropy(*before, X[0])
    # Adam's first steps are as long as the learning rate, against the gradient.
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        gradient = np.zeros(3)
        for c in range(3):
            moved = [v.copy() for v in before]
            moved[i][c] += 1e-6
            gradient[c] = entropy(*moved, X[0]) - entropy(*before, X[0])
        clear = np.abs(gradient) > 1e-9
        assert clear.any()
        assert (np.sign(new - old)[clear] == -np.sign(gradient)[clear]).all()


def test_nothing_to_adapt():
    with pytest.raises(UserError, match="no BatchNorm"):
        ADAPTATIONS["alpha_bn"].make().start({"params": {}})
    with pytest.raises(UserError, match="no layer 'head'"):
        ADAPTATIONS["lame"].make().start({"params": {}})


def adaptable():
    """Every norm with running means and variances somewhere inside."""
    for entry in norms.NORMS:
        fields = getattr(entry.make, "__dataclass_fields__", {})
        needed = {"decay_steps": 2, "num_tasks": 2, "num_groups": 3}
        given = {k: v for k, v in needed.items() if k in fields}
        if "batch_stats" in entry.tags:
            yield {"name": entry.name, **given}
    clamped = {"name": "clamped_batch_norm", "epsilon": 0.7}
    yield clamped
    yield {"name": "prepbn", "decay_steps": 2, "batch_norm": clamped}
    yield {"name": "batch_channel_norm", "num_groups": 3, "statistics": "estimate"}


STATELESS = {"evonorm_b0", "power_norm", "unified_norm"}  # of the mean, or of both


@pytest.mark.parametrize("norm", list(adaptable()), ids=str)
def test_without_weight_the_batch_changes_nothing(norm):
    variables = variables_of(norm)
    method = ADAPTATIONS.factory({"name": "alpha_bn", "batch_weight": 0.0})()
    if norm["name"] in STATELESS:
        with pytest.raises(UserError, match="no BatchNorm"):
            method.start(variables)
        return
    model, state = Network(norm), method.start(variables)
    got, _ = method.predict(model.apply, variables, state, X[0])
    np.testing.assert_array_equal(got, model.apply(variables, X[0], train=False))


@pytest.mark.parametrize("name", ["batch_stats", "tent"])
def test_a_clamped_variance_stays_clamped(name):
    """epsilon is the smallest variance there, not added to it."""
    norm = {"name": "clamped_batch_norm", "epsilon": 0.5}
    variables = variables_of(norm)
    (got, _), _ = stream(name, variables, norm)
    mean, var = own_moments(X[0])
    assert (var > 0.5).any()
    # The network of the oracle adds 1e-5.
    expected = network(variables, X[0], mean, np.maximum(var, 0.5) - 1e-5)[1]
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize(
    "norm", ["batch_norm", "adab2n", "filled_batch_norm", "clamped_batch_norm"]
)
@pytest.mark.parametrize("name", ["alpha_bn", "tent", "unmix_tns"])
def test_what_follows_the_batch_already_is_refused(name, norm):
    spec = {"name": norm, "use_running_average": False}
    with pytest.raises(UserError, match=r"^adaptation: norm\S* evaluates by the "):
        stream(name, variables_of(spec), spec)


def test_statistics_of_other_norms_are_refused():
    class Foreign(Network):
        @nn.compact
        def __call__(self, x, *, train):
            norm = nn.BatchNorm(not train, name="norm", param_dtype=jnp.float64)
            return nn.Dense(4, name="head")(nn.relu(norm(x)).mean((1, 2)))

    method = ADAPTATIONS["alpha_bn"].make()
    model = Foreign()
    variables = model.init(jax.random.key(0), X[0], train=False)
    with pytest.raises(UserError, match=r"^adaptation: norm is no BatchNorm that"):
        method.predict(model.apply, variables, method.start(variables), X[0])
