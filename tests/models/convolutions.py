"""What the tests of convolutional networks share: sizes, variables, NumPy oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from normjax import fusion


def abstract(model, side, channels=3):
    init = functools.partial(model.init, train=False)
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return dict(jax.eval_shape(init, jax.random.key(0), images))


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def random_variables(shapes, dtype=np.float32):
    """Parameters and statistics that are nowhere 0 or 1; counters at 3."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if x.dtype == jnp.int32:
            return jnp.int32(3)
        fan_in = x.size / x.shape[-1] if x.ndim > 1 else 1
        value = rng.normal(size=x.shape) / np.sqrt(fan_in)
        if path[-1].key in ("var", "scale", "alpha"):
            value = rng.uniform(0.5, 0.9, x.shape)
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def folding_error(model, side, dtype):
    """Largest relative change of the logits; asserts that no norm is left."""
    variables = random_variables(abstract(model, side), dtype)
    images = jnp.asarray(
        np.random.default_rng(1).normal(size=(3, side, side, 3)), dtype
    )
    assert not [fold for fold in fusion.plan(model, variables) if fold.reason]
    folded, new = fusion.fold(model, variables)
    assert set(new) == {"params"}
    before = jax.jit(model.apply)(variables, images)
    after = jax.jit(folded.apply)(new, images)
    assert 1e-2 < before.std() < 1e2
    return float(jnp.abs(after - before).max() / before.std())


def conv(x, kernel, stride=1):
    """Cross-correlation with zero padding k // 2, kernel [k, k, C, O]."""
    size, half = len(kernel), len(kernel) // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    height, width = x.shape[1:3]
    y = sum(
        np.einsum("bhwc,co->bhwo", padded[:, i:, j:][:, :height, :width], kernel[i, j])
        for i in range(size)
        for j in range(size)
    )
    return y[:, ::stride, ::stride]


def depthwise(x, kernel, stride=1):
    """The same with a kernel [k, k, C] per channel."""
    return conv(x, kernel[..., None] * np.eye(x.shape[-1]), stride)


def batch_norm(x, params, stats):
    """At evaluation."""
    normal = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return normal * params["scale"] + params["bias"]


def unit(variables, name, x, stride=1, convolve=conv):
    """norm(conv(x)) of a ConvUnit."""
    params, stats = variables["params"][name], variables["batch_stats"][name]
    y = convolve(x, params["conv"]["kernel"], stride)
    return batch_norm(y, params["norm"], stats["norm"])


def block_case(module, channels):
    """(float64 variables, images, output) of a block on a 5x5 map."""
    x = np.random.default_rng(2).normal(size=(2, 5, 5, channels))
    init = functools.partial(module.init, train=False)
    shapes = dict(jax.eval_shape(init, jax.random.key(0), x))
    variables = random_variables(shapes, np.float64)
    y = module.apply(variables, x, train=False)
    return jax.tree.map(np.asarray, variables), x, y
