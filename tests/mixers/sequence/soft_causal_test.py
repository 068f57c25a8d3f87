"""The rate of the soft mask: of updates, kept by microbatches; its two ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import mixers
from normjax.core.errors import UserError

X = np.random.default_rng(0).normal(size=(2, 6, 8))


def test_rates_of_updates():
    """Both ends of the line are updates; behind it, and behind constants, is 0."""

    def rates(*kind):
        return [float(mixers.soft_mask_rate(step, *kind)) for step in range(6)]

    np.testing.assert_allclose(rates(0.9, 4), [0.9, 0.6, 0.3, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rates(0.9, 4, "constant"), [0.9] * 4 + [0] * 2)
    np.testing.assert_allclose(rates(0.9, 1), [0.9] + [0] * 5)
    np.testing.assert_allclose(rates(0.9, 0), [0.9] * 6)
    with pytest.raises(UserError, match="soft mask"):
        mixers.soft_mask_rate(0, 1.0, 4, "cosine")


def test_training_counts_and_evaluation_sees_the_next_rate():
    """As mixers of these constant rates."""
    kind = {"num_heads": 2, "soft_mask": 1.0, "soft_steps": 3}
    mixer = mixers.build("soft_causal", **kind)()
    variables = jax.jit(mixer.init)(jax.random.key(0), X)
    assert int(variables["batch_stats"]["step"]) == 0

    @jax.jit
    def run(variables):
        y, new = mixer.apply(variables, X, train=True, mutable=["batch_stats"])
        return y, mixer.apply(variables, X), {**variables, **new}

    @jax.jit
    def constant(variables):
        each = (mixers.build("soft_causal", num_heads=2, soft_mask=r) for r in RATES)
        params = {"params": variables["params"]}
        return [one().apply(params, X) for one in each]

    expected = constant(variables)
    for i, rate in enumerate((1.0, 0.5, 0.0, 0.0)):
        assert int(variables["batch_stats"]["step"]) == i
        trained, evaluated, variables = run(variables)
        np.testing.assert_allclose(trained, evaluated, atol=1e-6)
        np.testing.assert_allclose(trained, expected[RATES.index(rate)], atol=1e-6)


RATES = (1.0, 0.5, 0.0)


def test_renormalized_ends_are_attention_and_causal_attention():
    rates = {0.0: True, 1.0: False}
    for rate, causal in rates.items():
        kind = {"num_heads": 2, "rotary_base": None}
        ours = mixers.build("soft_causal", **kind, renormalized=True, soft_mask=rate)()
        plain = mixers.build("softmax", **kind, causal=causal)()
        variables = jax.jit(plain.init)(jax.random.key(0), X)
        both = jax.jit(lambda v, a=ours, b=plain: (a.apply(v, X), b.apply(v, X)))
        np.testing.assert_allclose(*both(variables), rtol=0, atol=1e-6)


def test_a_published_row_does_not_sum_to_one():
    """Later tokens weigh in the sum: the first of two equal tokens has half a value."""
    mixer = mixers.build("soft_causal", num_heads=1, rotary_base=None)()
    x = jnp.ones((1, 2, 2))
    params = {"qkv": {"kernel": jnp.eye(2, 6, 4), "bias": jnp.zeros(6)}}
    params["proj"] = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    y = mixer.apply({"params": params}, x)
    np.testing.assert_allclose(y[0], [[0.5, 0.5], [1, 1]])
