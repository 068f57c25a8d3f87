"""The sequence mixer of Monarch Mixer: gated convolutions as long as the sequence."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from normjax.core.collections import CONSTANTS
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.depthwise import depthwise_conv
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.core.ranges import POSITIVE, Range
from normjax.mixers.base import MIXERS
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.monarch import long_convolution
from normjax.mixers.steps import dense_of, rows_of

_SLOWEST, _FASTEST = math.log(0.01) / 1.5, math.log(0.01) / 0.3
"""Rates at which a filter has fallen to a hundredth after 1.5 and after 0.3 of its
longest length."""


class LongConvolution(nn.Module):
    """`long_convolution` with filters that a small network makes of the position.

    With t = i / (max_length - 1) and z_i a learned vector, at first [t, cos, -sin of
    2 pi i f / max_length] for frequencies f,

        k_i = W4 s(W3 s(W2 s(W1 z_i))) exp(-t |delta|)        s(x) = sin(w x)

    with biases b1 to b3, one w for all layers and both directions, and fixed rates
    delta, one a channel (Poli et al., 2023; Fu et al., 2023). In at least float32.
    Other times t and rates may be given as `constants`, "times" and "rates".

    Attributes:
      max_length: positions that there are vectors of.
      position_features: width of z, odd.  filter_width: of the network.
      bidirectional: filters for what comes later as well.
      frequency: first value of w.
      param_dtype, kernel_init: of the parameters.
    """

    max_length: int
    position_features: int = 5
    filter_width: int = 64
    bidirectional: bool = True
    frequency: float = 10.0
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, u: jax.Array) -> jax.Array:
        """u: [B, L, D] -> same, in at least float32."""
        length, features = u.shape[1:]
        z = self.param("positions", self._positions, self.param_dtype)
        init = nn.initializers.constant(self.frequency)
        shape = (self.filter_width,)
        frequency = self.param("frequency", init, shape, self.param_dtype)
        skip = self.param(
            "skip", nn.initializers.normal(1.0), (features,), self.param_dtype
        )
        z, frequency = at_least_float32(z[:length]), at_least_float32(frequency)
        time = self._table("times", 0, 1, self.max_length)[:length, None]
        rates = self._table("rates", _SLOWEST, _FASTEST, features)
        maths = np if isinstance(time, np.ndarray) else jnp
        fall = maths.exp(-time * maths.abs(rates).reshape(1, -1))

        def kernel(name):
            h = z
            for i in range(3):
                h = self._dense(self.filter_width, f"{name}_{i}")(h)
                h = jnp.sin(frequency.reshape(1, -1) * h)
            h = self._dense(features, f"{name}_3", use_bias=False)(h)
            return h * jnp.asarray(fall, h.dtype)

        reverse = kernel("reverse") if self.bidirectional else None
        return long_convolution(u, kernel("forward"), reverse, skip)

    def _dense(self, features: int, name: str, use_bias: bool = True) -> Dense:
        arguments = {"kernel_init": self.kernel_init, "param_dtype": self.param_dtype}
        return Dense(features, use_bias, name=name, **arguments)

    def _table(self, name: str, first: float, last: float, count: int) -> Any:
        """Numbers in equal distances, [count]; those of the constants, if there."""
        given = self.get_variable(CONSTANTS, name)
        return np.linspace(first, last, count) if given is None else given

    @nn.nowrap
    def _positions(self, key: jax.Array, dtype: Dtype) -> jax.Array:
        """[max_length, position_features]."""
        del key
        length, bands = self.max_length, (self.position_features - 1) // 2
        time = np.linspace(0, 1, length)[:, None]
        turns = 2 * np.pi * np.arange(length)[:, None] / length
        angles = turns * np.linspace(1e-4, bands - 1, bands)
        z = np.concatenate((time, np.cos(angles), -np.sin(angles)), 1)
        return jnp.asarray(z, dtype)


@MIXERS.register("monarch", "seq", "grid", "mask")
class MonarchMixer(nn.Module):
    """The sequence mixer of M2-BERT: gated long convolutions (Fu et al., 2023).

        [a | b | v] = causal depthwise convolution over 3 positions of W u
        y = proj(b * conv(a * v) + conv'(u))

    with convolutions as long as the sequence, `LongConvolution`, in both directions;
    conv' with `residual`. The short one is causal all the same. O(L log(L) D)
    multiply-adds beside the projections; by the fast Fourier transform, in at least
    float32.

    Attributes:
      max_length: longest sequence.
      bidirectional: long convolutions of what comes later as well.
      residual: a second long convolution, of the input itself.
      position_features, filter_width, frequency: of the network that makes the filters.
      features: width inside; None for that of x, which `residual` needs.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.MonarchMixer(max_length=8, filter_width=4)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['conv', 'in_proj', 'proj', 'residual_conv', 'short_bias', 'short_kernel']
    """

    max_length: int = 1024
    bidirectional: bool = True
    residual: bool = True
    position_features: int = 5
    filter_width: int = 64
    frequency: float = 10.0
    features: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    writes: ClassVar[str | None] = "proj"
    ranges: ClassVar[Mapping[str, Range]] = dict.fromkeys(
        ("max_length", "filter_width", "position_features"), POSITIVE
    )

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the layers that read the input, if nothing else does."""
        return () if self.residual else ("in_proj",)

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"features": self.features or dim}

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, L, D] or [B, H, W, D], row by row -> same.

        Args:
          mask: bool [B, L] or [B, H, W]; False is padding, which counts as 0.
          train: unused: one rule.

        Raises:
          UserError: more positions than `max_length`, an even number of
            `position_features`, or `residual` with another width inside.
        """
        del train
        rows, mask = rows_of(x, mask)
        rows, width = only_tokens(rows, mask), self.features or x.shape[-1]
        self._check(rows, width)
        u = SplitDense(3, width, name="in_proj", **dense_of(self))(rows)
        a, b, v = self._short(only_tokens(jnp.concatenate(u, -1), mask))
        long = {
            "max_length": self.max_length,
            "position_features": self.position_features,
            "filter_width": self.filter_width,
            "bidirectional": self.bidirectional,
            "frequency": self.frequency,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
        }
        y = LongConvolution(name="conv", **long)(only_tokens(a * v, mask))
        y = y * at_least_float32(b)
        if self.residual:
            y = y + LongConvolution(name="residual_conv", **long)(rows)
        y = y.astype(a.dtype)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(y).reshape(x.shape)

    def _check(self, rows: jax.Array, width: int) -> None:
        if rows.shape[1] > self.max_length:
            raise UserError(
                f"mixer 'monarch': {rows.shape[1]} positions are more than "
                f"max_length {self.max_length}"
            )
        if self.position_features % 2 == 0:
            raise UserError(
                "mixer 'monarch': position_features must be odd, got "
                f"{self.position_features}"
            )
        if self.residual and width != rows.shape[-1]:
            raise UserError(
                f"mixer 'monarch': residual=True adds {rows.shape[-1]} channels to "
                f"features={width}"
            )

    def _short(self, u: jax.Array) -> list[jax.Array]:
        """The three parts of a causal convolution over 3 positions of u [B, L, 3 D]."""
        bound = 3**-0.5  # PyTorch's default for this fan-in

        def init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        channels, dtype = u.shape[-1], self.param_dtype
        kernel = self.param("short_kernel", init, (3, channels), dtype)
        bias = self.param("short_bias", init, (channels,), dtype)
        u, kernel, bias = promote_dtype(u, kernel, bias, dtype=self.dtype)
        # One place to the left of a convolution over the neighbours on both sides.
        u = jnp.pad(u, ((0, 0), (1, 0), (0, 0)))[:, :, None]
        y = depthwise_conv(u, kernel[:, None])[:, :-1, 0] + bias.reshape(1, 1, -1)
        return jnp.split(y, 3, -1)
