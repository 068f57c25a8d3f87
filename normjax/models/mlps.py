"""Layers for each position: MLPs without a gate, and the registry of all."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.registry import Registry
from normjax.mixers.steps import depthwise_layer
from normjax.models.layers import Factory

MLPS = Registry("mlp")
"""The layers for each position by key, `mlp=` of models; gated ones among them.

A row has `name`, `make` (the class) and `tags`, the layouts that it accepts.

Example:
  >>> from normjax.models import MLPS
  >>> MLPS["swiglu"].make.__name__
  'SwiGLU'
  >>> "causal" in MLPS["conv_glu"].tags  # it mixes positions of maps
  False
"""


@MLPS.register("mlp", "seq", "grid", "causal", "decode")
class MLP(nn.Module):
    """y = fc2(activation(fc1(x))), the feed-forward layer of transformers.

    Attributes:
      hidden: width between the two layers.  activation: factory.
      dtype: of the computation; parameters are float32.
      use_bias: learn biases.

    Example:
      >>> import jax
      >>> from normjax import activations
      >>> from normjax.models.mlps import MLP
      >>> mlp = MLP(hidden=32, activation=activations.build("gelu"))
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc1"]["kernel"].shape
      ((2, 6, 8), (8, 32))
    """

    hidden: int
    activation: Factory
    dtype: Dtype | None = None
    use_bias: bool = True

    reads: ClassVar[tuple[str, ...]] = ("fc1",)
    writes: ClassVar[str | None] = "fc2"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., C]."""
        width = x.shape[-1]
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        dense |= {"use_bias": self.use_bias}
        x = Dense(self.hidden, name="fc1", **dense)(x)
        x = self.activation(name="act")(x)
        return Dense(width, name="fc2", **dense)(x)


@MLPS.register("depthwise_mlp", "grid")
class DepthwiseMLP(nn.Module):
    """y = fc2(activation(dwconv3x3(fc1(x)))) on a map (PVT v2; Wang et al., 2022).

    Attributes:
      hidden: width between the two layers.  activation: factory.
      rectify: a ReLU before the convolution, as next to linear spatial reduction.
      residual: activation(h + dwconv3x3(h)) with h = fc1(x) (SG-Former).
      dtype: of the computation.  param_dtype: of the convolution's parameters.

    Example:
      >>> import jax
      >>> from normjax import activations
      >>> from normjax.models.mlps import DepthwiseMLP
      >>> mlp = DepthwiseMLP(hidden=32, activation=activations.build("gelu"))
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 4, 4, 8), ['dwc_bias', 'dwc_kernel', 'fc1', 'fc2'])
    """

    hidden: int
    activation: Factory
    rectify: bool = False
    residual: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    reads: ClassVar[tuple[str, ...]] = ("fc1",)
    writes: ClassVar[str | None] = "fc2"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        width = x.shape[-1]
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        x = Dense(self.hidden, name="fc1", **dense)(x)
        x = jax.nn.relu(x) if self.rectify else x
        near = depthwise_layer(self, "dwc", x, (3, 3, self.hidden))
        x = x + near if self.residual else near
        x = self.activation(name="act")(x)
        return Dense(width, name="fc2", **dense)(x)


@MLPS.register("residual_depthwise_mlp", "grid")
class ResidualDepthwiseMLP(nn.Module):
    """y = fc2(h + dwconv3x3(h)), h = activation(fc1(x)), on a map (STViT, RAVLT).

    (Huang et al., 2023; Fan et al., 2025.)

    Attributes:
      hidden: width between the two layers.  activation: factory.
      dtype: of the computation.  param_dtype: of the convolution's parameters.

    Example:
      >>> import jax
      >>> from normjax import activations
      >>> from normjax.models.mlps import ResidualDepthwiseMLP
      >>> mlp = ResidualDepthwiseMLP(hidden=32, activation=activations.build("gelu"))
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 4, 4, 8), ['dwc_bias', 'dwc_kernel', 'fc1', 'fc2'])
    """

    hidden: int
    activation: Factory
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    reads: ClassVar[tuple[str, ...]] = ("fc1",)
    writes: ClassVar[str | None] = "fc2"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        width = x.shape[-1]
        dense = {"kernel_init": trunc_normal, "dtype": self.dtype}
        h = Dense(self.hidden, name="fc1", **dense)(x)
        h = self.activation(name="act")(h)
        h = h + depthwise_layer(self, "dwc", h, (3, 3, self.hidden))
        return Dense(width, name="fc2", **dense)(h)
