"""A convolution rebuilt from its frozen norm against the two layers of flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.reparam import tuned_conv_bn


class TwoLayers(nn.Module):
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=self.use_bias, name="conv")(x)
        return nn.BatchNorm(use_running_average=True, epsilon=0.1, name="norm")(x)


@pytest.mark.parametrize("use_bias", [True, False])
def test_values_and_gradients_are_those_of_the_two_layers(use_bias, x64):
    rng, two = np.random.default_rng(0), TwoLayers(use_bias)
    x, dy = rng.normal(size=(2, 5, 6, 3)), rng.normal(size=(2, 5, 6, 4))
    shapes = jax.eval_shape(two.init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda s: jnp.asarray(rng.uniform(0.5, 2, s.shape)), shapes
    )
    params, stats = variables["params"], variables["batch_stats"]["norm"]

    def one(params, x):
        kernel, bias = tuned_conv_bn(
            params["conv"]["kernel"],
            params["conv"].get("bias"),
            params["norm"]["scale"],
            params["norm"]["bias"],
            stats["mean"],
            stats["var"],
            epsilon=0.1,
        )
        merged = {"kernel": kernel, "bias": bias}
        return nn.Conv(4, (3, 3)).apply({"params": merged}, x)

    def both(params, x):
        return two.apply({**variables, "params": params}, x)

    @jax.jit
    def run(params, x):
        results = (jax.vjp(f, params, x) for f in (one, both))
        return [(y, vjp(dy)) for y, vjp in results]

    ours, theirs = run(params, x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)  # noqa: E731
    jax.tree.map(close, ours, theirs)
