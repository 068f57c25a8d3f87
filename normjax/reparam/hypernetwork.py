"""A network that predicts the weights of another one."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import Dtype

from normjax.core.dense import Dense, linear
from normjax.core.errors import UserError, one_of

SLOPE = 0.01

ENCODINGS: Mapping[str, Callable[[jax.Array], tuple[jax.Array, ...]]] = {
    "cos_sin": lambda z: (jnp.cos(jnp.pi * z / 2), jnp.sin(jnp.pi * z / 2)),
    "complement": lambda z: (z, 1 - z),
    "none": lambda z: (z,),
}
"""Parts of what the network reads, by name: of constant length, of constant sum."""


class Hypernetwork(nn.Module):
    """theta = theta_0 + W h(e(gamma)): weights from numbers in [0, 1] (MIP).

    With e = [cos(pi gamma / 2), sin(pi gamma / 2)], whose length does not know gamma,
    and theta_0 a set of weights for all gamma, predicted weights have one magnitude
    (Gonzalez Ortiz, Guttag and Dalca, 2024). h: linear layers, each with a leaky ReLU
    of slope 0.01.

    Parameters: `hidden_i`; `heads`, W by the names of the weights; and `base`, theta_0
    in the tree of the other network, whose trained weights may stand there.

    Attributes:
      shapes: of the weights by path, "fc/kernel": (8, 3).
      hidden: widths of h.
      encoding: e, "cos_sin", "complement" ([gamma, 1 - gamma]) or "none".
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> from normjax import reparam
      >>> network, x = nn.Dense(3), jax.numpy.ones((4, 8))
      >>> shapes = {"kernel": (8, 3), "bias": (3,)}
      >>> hyper = reparam.Hypernetwork(shapes, hidden=(16,))
      >>> gamma = {"regularization": jax.numpy.linspace(0, 1, 4)[:, None]}  # [B, 1]
      >>> params, variables = hyper.init_with_output(jax.random.key(0), gamma)
      >>> each = jax.vmap(lambda p, x: network.apply({"params": p}, x))
      >>> each(params, x).shape  # every example by weights of its own
      (4, 3)
    """

    shapes: Mapping[str, tuple[int, ...]]
    hidden: tuple[int, ...] = (16, 128)
    encoding: str = "cos_sin"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Weights [B, *shape] for each of B gammas, in the tree of their paths.

        Args:
          inputs: arrays [B, ...] by name, which follow each other in the order of
            their names.

        Raises:
          UserError: unknown `encoding`.
        """
        if self.encoding not in ENCODINGS:
            raise UserError(one_of("encoding", self.encoding, ENCODINGS))
        parts = [inputs[name] for name in sorted(inputs)]
        gamma = jnp.concatenate([t.reshape(len(t), -1) for t in parts], -1)
        h = jnp.concatenate(ENCODINGS[self.encoding](gamma), -1)
        fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, width in enumerate(self.hidden):
            h = Dense(width, name=f"hidden_{i}", kernel_init=fan_out, **types)(h)
            h = nn.leaky_relu(h, SLOPE)
        heads = _flat(self.param("heads", self._heads, h.shape[-1]))
        base = _flat(self.param("base", self._base))

        def predicted(name: str) -> jax.Array:
            shape, kernel = self.shapes[name], heads[name]
            wide = jnp.result_type(h, self.dtype or kernel)
            y = linear(h.astype(wide), kernel.reshape(len(kernel), -1).astype(wide))
            return y.reshape(len(h), *shape) + base[name].astype(wide)[None]

        return _tree({name: predicted(name) for name in self.shapes})

    @nn.nowrap
    def _heads(self, key: jax.Array, width: int) -> dict[str, Any]:
        """Each of deviation sqrt(2 / its entries)."""
        keys = jax.random.split(key, len(self.shapes))
        return _tree(
            {
                name: jax.random.normal(own, (width, *shape), self.param_dtype)
                * (2 / math.prod(shape)) ** 0.5
                for own, (name, shape) in zip(keys, self.shapes.items(), strict=True)
            }
        )

    @nn.nowrap
    def _base(self, key: jax.Array) -> dict[str, Any]:
        """Kernels by their fan-in (He et al., 2015), everything else 0."""
        keys = jax.random.split(key, len(self.shapes))

        def first(key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
            if name.split("/")[-1] != "kernel":
                return jnp.zeros(shape, self.param_dtype)
            deviation = (2 / math.prod(shape[:-1])) ** 0.5
            return jax.random.normal(key, shape, self.param_dtype) * deviation

        pairs = zip(keys, self.shapes.items(), strict=True)
        return _tree({name: first(key, name, shape) for key, (name, shape) in pairs})


def _flat(tree: Any) -> Mapping[str, Any]:
    return flatten_dict(tree, sep="/")


def _tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    return unflatten_dict(dict(flat), sep="/")
