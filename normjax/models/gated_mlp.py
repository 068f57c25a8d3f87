"""Feed-forward layers with a gate: fc2(activation(a) * v), [a | v] = fc1(x)."""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.activations import GELU, Identity, ReLU, Sigmoid, SiLU
from normjax.core.dense import BlockDiagonalDense, Dense, SplitDense, trunc_normal
from normjax.core.moments import at_least_float32
from normjax.core.ranges import POSITIVE, Range
from normjax.mixers.steps import depthwise_layer
from normjax.models.layers import Factory
from normjax.models.mlps import MLPS

LAYOUTS = ("seq", "grid", "causal", "decode")


@MLPS.register("gated_mlp", *LAYOUTS)
class GatedMLP(nn.Module):
    """y = fc2(activation(a) * v), [a | v] = fc1(x) (Dauphin et al., 2017).

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: factory; a class with a `gate` of its own takes that instead.
      keep_size: a third less inside, rounded down, so that there are as many
        parameters as in an MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import activations, models
      >>> mlp = models.GatedMLP(hidden=24, activation=activations.build("silu"))
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc1"]["kernel"].shape  # [a | v], 16 wide each
      ((2, 6, 8), (8, 32))
    """

    hidden: int
    activation: Factory
    keep_size: bool = True
    features: int | None = None
    use_bias: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    reads: ClassVar[tuple[str, ...]] = ("fc1",)
    writes: ClassVar[str | None] = "fc2"
    gate: ClassVar[Factory | None] = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features]."""
        width = 2 * self.hidden // 3 if self.keep_size else self.hidden
        dense = {"kernel_init": trunc_normal, "use_bias": self.use_bias}
        dense |= {"dtype": self.dtype, "param_dtype": self.param_dtype}
        features = self.features or x.shape[-1]
        gate, value = SplitDense(2, width, name="fc1", **dense)(x)
        gate = (type(self).gate or self.activation)(name="act")(self.mixed(gate))
        return Dense(features, name="fc2", **dense)(self.product(gate, value))

    def mixed(self, gate: jax.Array) -> jax.Array:
        """What becomes of the gate before its activation."""
        return gate

    def product(self, gate: jax.Array, value: jax.Array) -> jax.Array:
        """What `fc2` reads."""
        return gate * value


@MLPS.register("glu", *LAYOUTS)
class GLU(GatedMLP):
    """y = fc2(sigmoid(a) * v), [a | v] = fc1(x) (Dauphin et al., 2017).

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: unused: the gate is fixed.
      keep_size: a third less inside, so that there are as many parameters as in an
        MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.models.gated_mlp import GLU
      >>> mlp = GLU(hidden=24, activation=None)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc1"]["kernel"].shape
      ((2, 6, 8), (8, 32))
    """

    gate = Sigmoid


@MLPS.register("bilinear", *LAYOUTS)
@MLPS.register("sglu", *LAYOUTS)
class Bilinear(GatedMLP):
    """y = fc2(a * v), [a | v] = fc1(x): without activation (Shazeer, 2020).

    The "simple" GLU of TransNormerLLM (Qin et al., 2023).

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: unused: the gate is fixed.
      keep_size: a third less inside, so that there are as many parameters as in an
        MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.models.gated_mlp import Bilinear
      >>> mlp = Bilinear(hidden=24, activation=None)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> bool(jnp.allclose(mlp.apply(variables, 2 * x), 4 * y, rtol=1e-2))  # a square
      True
    """

    gate = Identity


@MLPS.register("reglu", *LAYOUTS)
class ReGLU(GatedMLP):
    """y = fc2(relu(a) * v), [a | v] = fc1(x) (Shazeer, 2020).

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: unused: the gate is fixed.
      keep_size: a third less inside, so that there are as many parameters as in an
        MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.models.gated_mlp import ReGLU
      >>> mlp = ReGLU(hidden=24, activation=None)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc2"]["kernel"].shape
      ((2, 6, 8), (16, 8))
    """

    gate = ReLU


@MLPS.register("geglu", *LAYOUTS)
class GEGLU(GatedMLP):
    """y = fc2(gelu(a) * v), [a | v] = fc1(x) (Shazeer, 2020).

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: unused: the gate is fixed.
      keep_size: a third less inside, so that there are as many parameters as in an
        MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.models.gated_mlp import GEGLU
      >>> mlp = GEGLU(hidden=24, activation=None, features=3)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc2"]["kernel"].shape
      ((2, 6, 3), (16, 3))
    """

    gate = GELU


@MLPS.register("swiglu", *LAYOUTS)
class SwiGLU(GatedMLP):
    """y = fc2(silu(a) * v), [a | v] = fc1(x) (Shazeer, 2020).

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: unused: the gate is fixed.
      keep_size: a third less inside, so that there are as many parameters as in an
        MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.models.gated_mlp import SwiGLU
      >>> mlp = SwiGLU(hidden=24, activation=None, keep_size=False)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc1"]["kernel"].shape
      ((2, 6, 8), (8, 48))
    """

    gate = SiLU


@MLPS.register("conv_glu", "grid")
class ConvGLU(GatedMLP):
    """y = fc2(activation(dwconv3x3(a)) * v), [a | v] = fc1(x) (TransNeXt; Shi, 2024).

    Zero padding.

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: factory.
      keep_size: a third less inside, so that there are as many parameters as in an
        MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import activations
      >>> from normjax.models import MLPS
      >>> gelu = activations.build("gelu")
      >>> mlp = MLPS.factory("conv_glu", hidden=24, activation=gelu)()
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 4, 4, 8), ['dwc_bias', 'dwc_kernel', 'fc1', 'fc2'])
    """

    use_bias: bool = True

    def mixed(self, gate):
        """x: [B, H, W, C] -> same."""
        return depthwise_layer(self, "dwc", gate, (3, 3, gate.shape[-1]))


@MLPS.register("monarch_mlp", "seq", "grid", "causal", "decode")
class MonarchMLP(nn.Module):
    """y = W2 (activation(a) * v), [a | v] = W1 x, W1 and W2 block-diagonal (M2-BERT).

    Halves of all outputs: a is made of the first half of the channels, v of the second
    (Fu et al., 2023). 3 C hidden / blocks multiply-adds a position.

    Attributes:
      hidden: width of a and of v.  activation: factory.
      blocks: of either matrix.
      dtype: of the computation.  param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import activations
      >>> from normjax.models.gated_mlp import MonarchMLP
      >>> mlp = MonarchMLP(hidden=24, activation=activations.build("gelu"))
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc1"]["kernel"].shape
      ((2, 6, 8), (4, 2, 12))
    """

    hidden: int
    activation: Factory
    blocks: int = 4
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    # No Dense is next to the norms.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None
    ranges: ClassVar[Mapping[str, Range]] = {"blocks": POSITIVE}

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> same."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = functools.partial(BlockDiagonalDense, blocks=self.blocks, **types)
        h = dense(2 * self.hidden, use_bias=False, name="fc1")(x)
        gate, value = jnp.split(h, 2, -1)
        gate = self.activation(name="act")(gate)
        return dense(x.shape[-1], name="fc2")(gate * value)


@jax.custom_jvp
def fp8_rounded(x: jax.Array) -> jax.Array:
    """x rounded to float8_e4m3fn; the gradient passes as if it were not.

    Args:
      x: [...], magnitudes up to 448.

    Returns:
      [...] in the dtype of `x`.
    """
    return x.astype(jnp.float8_e4m3fn).astype(x.dtype)


@fp8_rounded.defjvp
def _fp8_rounded_jvp(primals, tangents):
    return fp8_rounded(*primals), tangents[0]


def smoothing_scale(h: jax.Array) -> jax.Array:
    """Power of two per channel that brings the largest |h| into (224, 448].

    A constant for the gradient; 1 for a channel of zeros.

    Args:
      h: [..., C].

    Returns:
      [1, ..., 1, C] in at least float32.
    """
    wide = at_least_float32(jax.lax.stop_gradient(h))
    largest = jnp.max(jnp.abs(wide), tuple(range(h.ndim - 1)), keepdims=True)
    safe = jnp.where(largest > 0, largest, 1)
    _, exponent = jnp.frexp(448 / safe)
    return jnp.where(largest > 0, jnp.ldexp(jnp.ones_like(safe), exponent - 1), 1)


@MLPS.register("smooth_swiglu", "seq", "grid")
class SmoothSwiGLU(SwiGLU):
    """SwiGLU whose product is smoothed for FP8 (Fishman et al., 2024).

        h = silu(a) * v,  y = fc2(Q(s * h) / s)

    s is a power of two per channel (see `smoothing_scale`) from the positions at hand,
    in training and at evaluation, so that one outlying channel does not cost the others
    their digits; Q rounds to float8_e4m3fn, straight through in the gradient. Without Q
    it is SwiGLU, exactly.

    Attributes:
      hidden: width inside an MLP of the same size.
      activation: unused: the gate is fixed.
      keep_size: a third less inside, so that there are as many parameters as in an
        MLP; else `hidden` itself.
      features: width of the result; None for that of x.
      use_bias: learn biases.
      dtype: of the computation.  param_dtype: of the parameters.
      quantize: apply Q.

    Example:
      >>> import jax
      >>> from normjax.models.gated_mlp import SmoothSwiGLU, SwiGLU
      >>> mlp = SmoothSwiGLU(hidden=24, activation=None)
      >>> plain = SwiGLU(hidden=24, activation=None)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = mlp.init_with_output(jax.random.key(1), x)
      >>> difference = abs(y - plain.apply(variables, x)).max()
      >>> y.shape, bool(difference < 0.1)  # rounded to 8 bits on the way
      ((2, 6, 8), True)
    """

    quantize: bool = True

    def product(self, gate, value):
        """What `fc2` reads."""
        scale = smoothing_scale(gate * value)
        smooth = at_least_float32(gate) * (at_least_float32(value) * scale)
        smooth = fp8_rounded(smooth) if self.quantize else smooth
        return (smooth / scale).astype(value.dtype)
