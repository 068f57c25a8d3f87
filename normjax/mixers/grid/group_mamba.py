"""Selective scans of a map in four directions, each over a group of channels."""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from normjax.core.dense import BlockDiagonalDense, Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.moments import at_least_float32, masked_mean
from normjax.core.ranges import ABOVE_ZERO, POSITIVE, Range
from normjax.core.registry import NORMS, Part, Spec
from normjax.mixers.base import MIXERS
from normjax.mixers.grid.spatial_reduction import REDUCTION_NORM, norm_of
from normjax.mixers.ops import selective_scan
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.steps import dense_of, depthwise_layer

GROUPS = 4


class FourScans(nn.Module):
    """Gated selective scans of a map, each fourth of the channels in its direction.

    For the channels of one direction (SS2D; Shaker et al., 2024)

        a, z = W x        a = silu(depthwise convolution of a)
        dt, B, C = X a    delta = softplus(T dt + bias)   A = -exp(a_log)
        y = O (norm(scan(a, delta, A, B, C, D)) * silu(z))

    All four are one scan with a group of B and C for each.

    Attributes: as of GroupMamba.
    """

    state_size: int = 1
    expansion: float = 1.0
    kernel_size: int = 3
    norm: Spec | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> same; `mask` bool [B, H, W]."""
        channels, grid = x.shape[-1] // GROUPS, x.shape[1:3]
        width = max(1, round(channels * self.expansion))
        az = self._dense("in_proj", 2 * width)(x)
        a, z = jnp.split(az.reshape(*x.shape[:3], GROUPS, -1), 2, -1)
        a = only_valid(a.reshape(*x.shape[:3], -1), mask)
        shape = (self.kernel_size, self.kernel_size, GROUPS * width)
        a = jax.nn.silu(depthwise_layer(self, "conv", a, shape))
        u, seen = _sequences(a.reshape(z.shape)), None
        if mask is not None:
            seen = _sequences(jnp.repeat(mask[..., None, None], GROUPS, 3))
        y = self._scan(u, seen, math.ceil(channels / 16))
        y = _map(y.reshape(u.shape), grid).astype(a.dtype)
        y = [
            norm_of(self, self.norm, f"norm_{i}")(y[..., i, :], mask=mask, train=train)
            for i in range(GROUPS)
        ]
        y = jnp.stack(y, 3) * jax.nn.silu(z)
        return self._dense("out_proj", channels)(y.reshape(*x.shape[:3], -1))

    def _scan(self, u: jax.Array, seen: jax.Array | None, rank: int) -> jax.Array:
        """The scan of u [B, L, 4, D] -> [B, L, 4 * D] in at least float32.

        Args:
          seen: bool [B, L, 4, 1]; the others are steps of size 0.
          rank: channels of dt.
        """
        size, (batch, length, _, width) = self.state_size, u.shape
        flat = u if seen is None else jnp.where(seen, u, 0)
        flat = flat.reshape(batch, length, -1)
        numbers = self._dense("x_proj", rank + 2 * size)(flat)
        numbers = numbers.reshape(batch, length, GROUPS, -1)
        dt, b, c = jnp.split(numbers, (rank, rank + size), -1)
        step = {"use_bias": True, "kernel_init": _uniform, "bias_init": _step_bias}
        delta = self._dense("dt_proj", width, **step)(dt.reshape(batch, length, -1))
        delta = jax.nn.softplus(at_least_float32(delta))
        if seen is not None:
            delta = jnp.where(seen, delta.reshape(u.shape), 0).reshape(flat.shape)
        shape, ones = (GROUPS * width, size), nn.initializers.ones
        a_log = self.param("a_log", _a_log, shape, self.param_dtype)
        skip = self.param("skip", ones, shape[:1], self.param_dtype)
        rates = -jnp.exp(at_least_float32(a_log))
        return selective_scan.chunked(flat, delta, rates, b, c, skip)[0]

    def _dense(self, name: str, width: int, **given) -> BlockDiagonalDense:
        """A layer of its own for each direction, of `width` outputs each."""
        given = {"use_bias": False, **dense_of(self), **given}
        return BlockDiagonalDense(GROUPS * width, GROUPS, name=name, **given)


_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)


def _sequences(x: jax.Array) -> jax.Array:
    """[B, H, W, 4, D] -> [B, L, 4, D], each in the order of its direction."""
    shape = (x.shape[0], -1, 2, x.shape[-1])
    rows = x[..., 0::2, :].reshape(shape)
    columns = x[..., 1::2, :].swapaxes(1, 2).reshape(shape)
    back = rows[:, ::-1, 1], columns[:, ::-1, 1]
    return jnp.stack((rows[:, :, 0], columns[:, :, 0], *back), 2)


def _map(x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """The inverse of `_sequences`."""
    shape = (x.shape[0], *grid, x.shape[-1])
    turned = (shape[0], *grid[::-1], shape[-1])
    rows = x[:, :, 0], x[:, ::-1, 2]
    columns = x[:, :, 1], x[:, ::-1, 3]
    first, third = (t.reshape(shape) for t in rows)
    second, fourth = (t.reshape(turned).swapaxes(1, 2) for t in columns)
    return jnp.stack((first, second, third, fourth), 3)


@MIXERS.register("group_mamba", "grid", "mask")
class GroupMamba(nn.Module):
    """Selective scans in four directions (GroupMamba; Shaker et al., 2024).

    With n = norm(x) in four groups of channels, of which one is scanned along rows, one
    along columns and two the same backwards, each with projections, a depthwise
    convolution, a norm and a gate of its own,

        s = [scan_1(n_1) | ... | scan_4(n_4)] * scale * n
        y = proj(norm(s * sigmoid(W2 relu(W1 mean(n) + b1) + b2)))

    The second norm is the first once more, with its parameters; one that keeps
    statistics of the batch has others there, and so is a norm of its own. O(L C N)
    multiply-adds with N states a channel, beside O(L C**2) of the projections; scans in
    at least float32.

    Attributes:
      state_size: N.
      expansion: width of a scan, in multiples of C / 4.
      reduction: C over the width between W1 and W2.
      kernel_size: of the depthwise convolutions.
      norm: factory of the norms; None for LayerNorm with epsilon 1e-5. A model gives
        its own.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 6, 8))  # [B, H, W, C]
      >>> mixer, key = mixers.GroupMamba(reduction=2), jax.random.key(1)
      >>> y, variables = jax.eval_shape(mixer.init_with_output, key, x)
      >>> y.shape
      (1, 4, 6, 8)
      >>> sorted(variables["params"])
      ['fc1', 'fc2', 'norm', 'proj', 'scale', 'scans']
    """

    state_size: int = 1
    expansion: float = 1.0
    reduction: int = 16
    kernel_size: int = 3
    norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    # A norm reads the input, and what it gives a product as well.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "proj"
    parts: ClassVar[Mapping[str, Part]] = {"norm": REDUCTION_NORM}
    ranges: ClassVar[Mapping[str, Range]] = {
        "state_size": POSITIVE,
        "reduction": POSITIVE,
        "expansion": ABOVE_ZERO,
    }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms inside; paths are those in the mixer."""
        if self.norm is None:
            return []
        norm, why = self.norm(parent=None), "its output is multiplied by other tokens'"
        names = ("norm", *(f"scans/norm_{i}" for i in range(GROUPS)))
        sites = [FoldSite(name, norm, obstacle=why) for name in names]
        if not self._tied():
            sites.append(FoldSite("out_norm", norm, readers=("proj",)))
        return sites

    @nn.nowrap
    def _tied(self) -> bool:
        """Whether one norm stands in both places."""
        entry = None if self.norm is None else NORMS.entry_of(self.norm)
        return entry is None or "batch_stats" not in entry.tags

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False is padding: the states pass over it.
          train: passed to the norms.

        Raises:
          UserError: C is no multiple of 4, or an even `kernel_size`.
        """
        channels = x.shape[-1]
        if channels % GROUPS:
            what = f"{channels} channels do not split into {GROUPS} directions"
            raise UserError(f"mixer 'group_mamba': {what}")
        if self.kernel_size % 2 == 0:
            what = f"kernel_size must be odd, got {self.kernel_size}"
            raise UserError(f"mixer 'group_mamba': {what}")
        norm = norm_of(self, self.norm)
        n = only_valid(norm(x, mask=mask, train=train), mask)
        inside = {k: getattr(self, k) for k in ("state_size", "expansion", "norm")}
        inside |= {"kernel_size": self.kernel_size, **dense_of(self)}
        y = FourScans(**inside, name="scans")(n, mask, train)
        ones = nn.initializers.ones
        scale = self.param("scale", ones, (1,), self.param_dtype)
        y = y * scale.astype(n.dtype).reshape(1, 1, 1, 1) * n
        mean, _ = masked_mean(n, (1, 2), mask=mask)
        hidden = max(1, channels // self.reduction)
        share = Dense(hidden, name="fc1", **dense_of(self))(mean.astype(n.dtype))
        share = jax.nn.relu(share)
        share = jax.nn.sigmoid(Dense(channels, name="fc2", **dense_of(self))(share))
        again = norm if self._tied() else norm_of(self, self.norm, "out_norm")
        y = again(only_valid(y * share, mask), mask=mask, train=train)
        return Dense(channels, name="proj", **dense_of(self))(y)


def _step_bias(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
    """softplus(bias) log-uniform in [1e-3, 0.1]."""
    low, high = np.log(1e-3), np.log(0.1)
    step = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)


def _a_log(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
    """log(1), ..., log(N) for every channel."""
    del key
    states = np.log(np.arange(1, shape[1] + 1))
    return jnp.asarray(np.broadcast_to(states, shape), dtype)
