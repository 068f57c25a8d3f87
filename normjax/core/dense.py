"""Linear layers, with weight gradients that are fast on CPU as well."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from normjax.core.errors import UserError
from normjax.core.tracing import traced_once

trunc_normal = nn.initializers.truncated_normal(0.02)


@traced_once("precision")
def linear(x: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """x W over the last axis: [..., C], [C, F] -> [..., F].

    On CPU as one matrix product of all positions. The gradient by W of a product with
    two batch axes makes XLA transpose the larger operand first: that of 32 x 128 x 192
    by 192 x 1,024 takes 9.5 ms instead of 33. Elsewhere the axes stay, for merging
    them copies where the length is no multiple of the tile, and a sharded one must not
    be merged.
    """

    def plain(x, kernel):
        return jnp.matmul(x, kernel, precision=precision)

    def flat(x, kernel):
        rows = x.reshape(-1, x.shape[-1])
        return plain(rows, kernel).reshape(*x.shape[:-1], kernel.shape[-1])

    if x.ndim < 3:
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=flat, default=plain)


def _dot_general(x, kernel, dimension_numbers, precision=None, **_):
    """`linear` in the form that Flax calls."""
    del dimension_numbers
    return linear(x, kernel, precision)


class Dense(nn.Dense):
    """y = x W + b: `flax.linen.Dense` whose product is `linear`."""

    dot_general: Any = _dot_general


class SplitDense(nn.Module):
    """One Dense layer whose output comes in parts: x W_i + b_i, W = [W_1 | W_2 ...].

    Variables are those of `Dense(parts * features)`. Multiplying part by part instead
    of splitting the product saves the copies on CPU; XLA's GPU backend merges the
    products again where that is faster.

    Attributes:
      parts, features: number and width of the outputs.
      use_bias, kernel_init, dtype, param_dtype: as in nn.Dense.
    """

    parts: int
    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """x: [..., C] -> `parts` arrays [..., features]."""
        width = self.parts * self.features
        if width < 1:
            layer = "/".join(self.path)
            raise UserError(f"layer {layer!r}: {self.features} channels are too few")
        kernel, bias = _parameters(self, x.shape[-1], width)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        outputs = [linear(x, part) for part in jnp.split(kernel, self.parts, axis=-1)]
        if bias is not None:
            wide = bias.reshape((1,) * (x.ndim - 1) + (width,))
            parts = jnp.split(wide, self.parts, axis=-1)
            outputs = [y + b for y, b in zip(outputs, parts, strict=True)]
        return tuple(outputs)


class BlockDiagonalDense(nn.Module):
    """y = x W + b with W block-diagonal: each part of x makes a part of y.

    O(C F / blocks) multiply-adds (Monarch Mixer; Fu et al., 2023). Where `blocks` does
    not divide C or F, x is padded with zeros to its next multiple and y cut off.

    Attributes:
      features: outputs F.  blocks: number of parts.  use_bias: learn `bias` [F].
      dtype, param_dtype, bias_init: as in nn.Dense.
      kernel_init: of the kernel [blocks, ceil(C / blocks), ceil(F / blocks)]; uniform
        between -1 and 1 over the root of the inputs of a part.
    """

    features: int
    blocks: int = 4
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", batch_axis=0
    )
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features]."""
        inputs, outputs = (-(-n // self.blocks) for n in (x.shape[-1], self.features))
        shape, bias = (self.blocks, inputs, outputs), None
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.use_bias:
            size = (self.features,)
            bias = self.param("bias", self.bias_init, size, self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        lead, lack = x.shape[:-1], self.blocks * inputs - x.shape[-1]
        x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, lack)])
        x = x.reshape(*lead, self.blocks, inputs)
        y = jnp.einsum("...bi,bio->...bo", x, kernel)
        y = y.reshape(*lead, -1)[..., : self.features]
        return y if bias is None else y + bias.reshape((1,) * len(lead) + bias.shape)


class ZeroMeanDense(nn.Module):
    """y = x (W - mean_out(W)) + b - mean(b): outputs of mean 0 (Jiang et al., 2023).

    Whatever writes into the residual stream of a transformer trained as Pre-RMSNorm
    goes through it, so that RMSNorm stays equal to LayerNorm. The parameters `kernel`
    [C, features] and `bias` [features] stay uncentred; the gradient is centred.

    Attributes:
      features: outputs.  use_bias: learn `bias`.
      dtype: of the computation; None infers it.  kernel_init: of the kernel.
    """

    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features]."""
        kernel, bias = _parameters(self, x.shape[-1], self.features)
        kernel = kernel - jnp.mean(kernel, -1, keepdims=True)
        if bias is not None:
            bias = bias - jnp.mean(bias, keepdims=True)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = linear(x, kernel)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _parameters(layer: Any, inputs: int, outputs: int) -> tuple[Any, Any]:
    """Those of nn.Dense: kernel [inputs, outputs], and bias [outputs] or None."""
    shape, dtype = (inputs, outputs), layer.param_dtype
    kernel = layer.param("kernel", layer.kernel_init, shape, dtype)
    if not layer.use_bias:
        return kernel, None
    return kernel, layer.param("bias", nn.initializers.zeros, (outputs,), dtype)
