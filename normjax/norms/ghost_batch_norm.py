"""Batch normalization by parts of the batch."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum
from normjax.core.collections import INTERMEDIATES
from normjax.core.registry import LAYOUTS
from normjax.norms.base import NORMS
from normjax.norms.batch_norm import BatchNorm, unbiased
from normjax.norms.pooled import Pool, pool_normalize


@dataclasses.dataclass(frozen=True)
class GhostPool(Pool):
    """Per channel, every `group_size` successive examples of the global batch.

    Examples are numbered across `axis_name`, so a group may reach over devices. Pooled
    arrays are [K, 1, ..., 1, C].

    Attributes:
      axes: all dims of x between the first and the last.
    """

    group_size: int = 1

    def combine(self, partial):
        groups = -(-partial.shape[0] * self._devices() // self.group_size)
        # A sum by a matrix product: a scatter is not deterministic on GPUs.
        member = self._group(partial)[None] == jnp.arange(groups)[:, None]
        member = member.astype(partial.dtype)
        total = einsum("kb,b...->k...", member, partial)
        return super().combine(total)

    def spread(self, pooled, x):
        return pooled[self._group(x)]

    def _devices(self) -> int:
        return 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)

    def _group(self, x) -> jax.Array:
        """[B] the group of every example."""
        first = 0
        if self.axis_name is not None:
            first = jax.lax.axis_index(self.axis_name) * x.shape[0]
        return (first + jnp.arange(x.shape[0])) // self.group_size


def ghost_batch_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    group_size: int,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`batch_normalize` of every `group_size` successive examples by themselves.

    (x - mean_k) / sqrt(var_k + epsilon) * scale + bias for group k (Hoffer et al.,
    2017).

    Args:
      x: [B, ..., C].  scale, bias: [C], shared by the groups, or None for none.
      group_size: examples in a group; the last one may be smaller.
      mask: leading or all dims of x; True is valid. None: all.
      epsilon: added to the variances.
      axis_name: mesh axis or axes across which the examples are numbered.

    Returns:
      (y [B, ..., C]; mean, var, count [K, C] of the K = ceil(B / group_size) groups) in
      at least float32. The moments carry no gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[0.0], [2.0], [10.0], [14.0]])
      >>> y, mean, var, _ = norms.ghost_batch_normalize(x, group_size=2, epsilon=0.0)
      >>> print(y.ravel().round(3), mean.ravel(), var.ravel())
      [-1.  1. -1.  1.] [ 1. 12.] [1. 4.]
    """
    axes = tuple(range(1, x.ndim - 1))
    pool = GhostPool(axes, axis_name, group_size)
    y, *moments = pool_normalize(x, scale, bias, pool=pool, mask=mask, epsilon=epsilon)
    mean, var, count = (m.reshape(-1, x.shape[-1]) for m in moments)
    return y, mean, var, count


def successive_average(
    old: jax.Array, values: jax.Array, present: jax.Array, momentum: float
) -> jax.Array:
    """old <- momentum * old + (1 - momentum) * value for the K values in order.

    In closed form: value i has weight (1 - momentum) * momentum**(those after it).

    Args:
      old: [C].  values: [K, C].  present: bool [K, C]; False leaves a value out.
    """
    after = jnp.cumsum(present[::-1], 0)[::-1] - present
    weight = jnp.where(present, (1 - momentum) * momentum**after, 0)
    return momentum ** jnp.sum(present, 0) * old + jnp.sum(weight * values, 0)


@NORMS.register("ghost_batch_norm", "batch_stats", "mask", "axis_name", *LAYOUTS)
class GhostBatchNorm(BatchNorm):
    """BatchNorm of every `group_size` successive examples (Hoffer et al., 2017).

    y = (x - mean_k) / sqrt(var_k + epsilon) * scale + bias in group k of the batch; if
    the batch is no multiple of `group_size` the last group is smaller. The one set of
    running statistics moves once a group, in order, so with K groups the old value
    keeps momentum**K of its weight. Evaluation as in BatchNorm.

    Groups are cut from the global batch whatever the number of devices, under `jit` as
    with `axis_name`; inside `shard_map` without it every device cuts its own shard.

    Attributes:
      group_size: examples in a group.
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: weight of the old value in the running averages, once a group.
      epsilon: added to the variance.
      unbiased_running_var: store var * n / (n - 1), as PyTorch does.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.GhostBatchNorm(group_size=2, momentum=0.5)
      >>> x = jnp.array([[0.0], [2.0], [10.0], [14.0]])
      >>> variables = norm.init(jax.random.key(0), x, train=True)
      >>> y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> print(y.ravel().round(3))
      [-1.  1. -1.  1.]
      >>> print(state["batch_stats"]["mean"])  # (0 + 1) / 2, then (0.5 + 12) / 2
      [6.25]
    """

    group_size: int = 32

    @nn.nowrap
    def batch_output(self, x, affine, mask, axis_name):
        """(y, and mean, var, count [K, C] of the groups)."""
        return ghost_batch_normalize(
            x,
            *affine,
            group_size=self.group_size,
            mask=mask,
            epsilon=self.epsilon,
            axis_name=axis_name,
        )

    def record(
        self,
        running: Mapping[str, nn.Variable],
        mean: jax.Array,
        var: jax.Array,
        count: jax.Array,
    ) -> None:
        """Move the running statistics by those of the groups, [K, C] each."""
        share = count / jnp.maximum(jnp.sum(count, 0, keepdims=True), 1)
        whole = jnp.sum(share * mean, 0, keepdims=True)
        self.sow(INTERMEDIATES, "mean", whole[0])
        self.sow(
            INTERMEDIATES, "var", jnp.sum(share * (var + jnp.square(mean - whole)), 0)
        )
        if self.is_initializing():
            return
        if self.unbiased_running_var:
            var = unbiased(var, count)
        for name, value in (("mean", mean), ("var", var)):
            old = running[name].value
            new = successive_average(old, value, count > 0, self.momentum)
            running[name].value = new.astype(old.dtype)
