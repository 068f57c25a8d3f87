"""Region normalization: two regions of an image, each by its own moments."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.accumulate import EXACT
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError
from normjax.core.moments import align_mask, at_least_float32, masked_moments
from normjax.norms.base import NORMS, along_channels, as_initializer


def region_normalize(
    x: jax.Array,
    region: jax.Array,
    *,
    epsilon: float = 1e-5,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """(x - mean_r) / sqrt(var_r * f_r + epsilon) * sqrt(f_r) in each of two regions.

    Moments per channel over the positions of a region in the whole batch; f_r is the
    share of the region, so small regions are damped (Yu et al., 2020).

    Args:
      x: [..., C].  region: bool, leading or all dims of x; no gradient goes to it.
      epsilon: added to the variances.
      axis_name: mesh axis or axes to reduce over as well.

    Returns:
      [..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[[1.0], [3.0], [10.0], [30.0]]])
      >>> region = jnp.array([[True, True, False, False]])
      >>> print(norms.region_normalize(x, region, epsilon=0.0).ravel().round(3))
      [-1.  1. -1.  1.]
    """
    axes = tuple(range(x.ndim - 1))
    region = align_mask(region, x)
    moments = [
        masked_moments(x, axes, mask=r, axis_name=axis_name) for r in (region, ~region)
    ]
    size = jnp.maximum(moments[0][2] + moments[1][2], 1)
    factors = [
        jnp.sqrt(count / size) * jax.lax.rsqrt(var * count / size + epsilon)
        for _, var, count in moments
    ]
    mean = jnp.where(region, moments[0][0], moments[1][0])
    return (at_least_float32(x) - mean) * jnp.where(region, *factors)


def nearest(labels: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Labels [B, ...] sampled at other sizes of dims 1, 2, ..: floor(i * old / new)."""
    for axis, size in enumerate(sizes, start=1):
        old = labels.shape[axis]
        if old != size:
            labels = jnp.take(labels, jnp.arange(size) * old // size, axis)
    return labels


@NORMS.register("region_norm", "mask", "axis_name", "seq", "grid")
class RegionNorm(nn.Module):
    """Normalisation by region, the region given ("RN-B", Yu et al., 2020).

    `mask` is the label map here: True the foreground (for inpainting, what is to be
    kept), False the background; every position counts, in its own region. Without a
    mask everything is foreground. With RN(x) as in `region_normalize`:

        y = RN(x) * (1 + s_f) + b_f + b_b   in the foreground
        y = RN(x) * (1 + s_b) + b_f + b_b   in the background

    As in the released code both biases are added everywhere. Statistics are those of
    the batch, at evaluation too; there is no state. Parameters
    `{foreground,background}_{scale,bias}` [C], all 0 at first.

    Attributes:
      epsilon: added to the variance.
      masked_bias: add to each region its own bias only, as the paper's equation does.
      axis_name: mesh axis or axes to reduce over.
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.RegionNorm()
      >>> x = jnp.array([[[1.0], [3.0], [10.0], [30.0]]])
      >>> kept = jnp.array([[True, True, False, False]])
      >>> y, variables = norm.init_with_output(jax.random.key(0), x, mask=kept)
      >>> print(y.ravel().round(3))
      [-1.  1. -1.  1.]
      >>> sorted(variables["params"])
      ['background_bias', 'background_scale', 'foreground_bias', 'foreground_scale']
    """

    epsilon: float = 1e-5
    masked_bias: bool = False
    axis_name: str | tuple[str, ...] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer | float = nn.initializers.zeros
    bias_init: Initializer | float = nn.initializers.zeros

    reads_batch: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C].

        Args:
          mask: labels [B, ...] or [B, ..., 1], bool or 0/1; sampled at the nearest
            position where its size differs from that of x.  train: unused.
        """
        del train
        params = {}
        for kind, init in (("scale", self.scale_init), ("bias", self.bias_init)):
            for region in ("foreground", "background"):
                name = f"{region}_{kind}"
                params[name] = self.param(
                    name, as_initializer(init), x.shape[-1:], self.param_dtype
                )
        wide = {k: along_channels(p, x.ndim) for k, p in params.items()}
        if mask is None:
            mask = jnp.ones((1,) * x.ndim, bool)
        else:
            mask = nearest(mask, x.shape[1:-1])
        mask = align_mask(mask, x)
        axis_name = None if self.is_initializing() else self.axis_name
        y = region_normalize(x, mask, epsilon=self.epsilon, axis_name=axis_name)
        bias = wide["foreground_bias"] + wide["background_bias"]
        if self.masked_bias:
            bias = jnp.where(mask, wide["foreground_bias"], wide["background_bias"])
        gain = jnp.where(mask, wide["foreground_scale"], wide["background_scale"])
        dtype = result_dtype(x, *params.values(), dtype=self.dtype)
        return (y * (1 + gain) + bias).astype(dtype)


def _largest(x: jax.Array) -> jax.Array:
    """Maximum along the last axis, [..., 1].

    The gradient goes to one entry. That of `jnp.max` looks for entries equal to the
    maximum and divides by their number: 0 / 0 where XLA computes x twice with other
    rounding, which happens when x is fused into both.
    """
    first = jnp.argmax(x, -1, keepdims=True)
    chosen = jax.lax.broadcasted_iota(first.dtype, x.shape, x.ndim - 1) == first
    return jnp.sum(x, -1, keepdims=True, where=chosen)


@NORMS.register("region_norm_learnable", "axis_name", "grid")
class LearnableRegionNorm(nn.Module):
    """Normalisation by region, the region found ("RN-L", Yu et al., 2020).

        a = sigmoid(conv([mean_C(x), max_C(x)]))
        y = RN(x; a >= threshold) * (1 + conv_scale(a)) + conv_bias(a)

    RN as in `region_normalize`. Convolutions of `kernel_size` with zero padding, one
    output map that all channels share. No gradient goes through the threshold.
    Statistics are those of the batch, at evaluation too; there is no state.

    Attributes:
      threshold: of the foreground.  kernel_size: odd side of the three kernels.
      epsilon: added to the variance.  axis_name: mesh axis or axes to reduce over.
      dtype: of the result; None infers it from input and parameters.
      param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import norms
      >>> norm = norms.LearnableRegionNorm(kernel_size=3)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> y, variables = norm.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["attention"]["kernel"].shape
      ((2, 4, 4, 8), (3, 3, 2, 1))
    """

    threshold: float = 0.8
    kernel_size: int = 7
    epsilon: float = 1e-5
    axis_name: str | tuple[str, ...] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    reads_batch: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> [B, H, W, C]. `mask`, `train` unused.

        Raises:
          UserError: an even `kernel_size`.
        """
        del mask, train
        if self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size {self.kernel_size}: it must be odd")
        wide = at_least_float32(x)

        def conv(name, maps, **arguments):
            return nn.Conv(
                1,
                (self.kernel_size, self.kernel_size),
                padding=self.kernel_size // 2,
                dtype=wide.dtype,
                param_dtype=self.param_dtype,
                # One map: full precision costs nothing and keeps the regions stable.
                precision=EXACT,
                name=name,
                **arguments,
            )(maps)

        both = (jnp.mean(wide, -1, keepdims=True), _largest(wide))
        attention = nn.sigmoid(
            conv("attention", jnp.concatenate(both, -1), use_bias=False)
        )
        axis_name = None if self.is_initializing() else self.axis_name
        y = region_normalize(
            wide, attention >= self.threshold, epsilon=self.epsilon, axis_name=axis_name
        )
        y = y * (1 + conv("scale", attention)) + conv("bias", attention)
        given = jnp.zeros((), self.param_dtype)
        return y.astype(result_dtype(x, given, dtype=self.dtype))
