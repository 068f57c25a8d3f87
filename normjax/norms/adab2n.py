"""Norms for learning one task after the other."""

import contextlib
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from normjax.core.collections import BATCH_STATS, INTERMEDIATES, LOSSES
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError
from normjax.core.moments import align_mask, at_least_float32
from normjax.core.ranges import FRACTION, POSITIVE, Range
from normjax.core.registry import LAYOUTS
from normjax.norms.base import NORMS, affine_parameters, apply_affine, as_initializer
from normjax.norms.batch_norm import BatchNorm


def task_weights(
    task_ids: jax.Array,
    sizes: jax.Array,
    task: jax.Array,
    psi: jax.Array,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """Weight of one valid position of every example in balanced batch statistics.

    Of the tasks j = 0 .. `task` with n_j examples in the batch,

        pi_j = (exp(psi_j) + n_j) / sum_j (exp(psi_j) + n_j),

    shared evenly by the positions of task j. Where a task seen before is missing from
    the batch the weights sum to less than 1, as in the released code.

    Args:
      task_ids: int [B], below T.  sizes: [B], valid positions of the examples.
      task: int, the highest task seen.  psi: [T].
      axis_name: mesh axis or axes to reduce over as well.

    Returns:
      [B].
    """

    def total(v):
        v = jnp.sum(v, 0)
        return v if axis_name is None else jax.lax.psum(v, axis_name)

    member = jax.nn.one_hot(task_ids, len(psi), dtype=sizes.dtype)
    examples = total(member * (sizes > 0)[:, None])
    share = jnp.where(jnp.arange(len(psi)) <= task, jnp.exp(psi) + examples, 0)
    positions = total(member * sizes[:, None])
    weight = share / jnp.sum(share) / jnp.maximum(positions, 1)
    return jnp.sum(member * weight[None], 1)


def weighted_batch_normalize(
    x: jax.Array,
    weight: jax.Array,
    *,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(var + epsilon), mean = sum(w x), var = sum(w (x - mean)**2).

    Sums over examples and valid positions. The gradient goes through both, to `weight`
    too; the weights need not sum to 1.

    Args:
      x: [B, ..., C].  weight: [B], of one position.
      mask: leading or all dims of x; True is valid.  epsilon: added to the variance.
      axis_name: mesh axis or axes to reduce over.

    Returns:
      (y [B, ..., C], mean [C], var [C]) in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[0.0], [4.0]])
      >>> weight = jnp.array([0.75, 0.25])  # of the two examples
      >>> y, mean, var = norms.weighted_batch_normalize(x, weight, epsilon=0.0)
      >>> print(mean, var)  # 0.75 * 0 + 0.25 * 4, 0.75 * 1 + 0.25 * 9
      [1.] [3.]
      >>> y.shape
      (2, 1)
    """
    x, axes = at_least_float32(x), tuple(range(x.ndim - 1))
    valid = True if mask is None else align_mask(mask, x)
    weight = weight.reshape(-1, *(1,) * (x.ndim - 1))

    def total(v):
        v = jnp.sum(weight * v, axes, keepdims=True, where=valid)
        return v if axis_name is None else jax.lax.psum(v, axis_name)

    mean = total(x)
    var = total(jnp.square(x - mean))
    y = (x - mean) * jax.lax.rsqrt(var + epsilon)
    return y, jnp.squeeze(mean, axes), jnp.squeeze(var, axes)


def task_context(task_ids: jax.Array) -> contextlib.AbstractContextManager:
    """Give `task_ids` to every AdaB2N that a model calls inside the context.

        with task_context(batch["task"]):
            logits = model.apply(variables, images, train=True, mutable=...)

    So the model between need not know of tasks.

    Args:
      task_ids: int [B].

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):  # knows of no tasks
      ...         return norms.AdaB2N(num_tasks=2, name="norm")(x, train=True)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> variables = Model().init(jax.random.key(1), x)
      >>> with norms.task_context(jnp.array([0, 1])):
      ...     _, state = Model().apply(variables, x, mutable=["batch_stats", "losses"])
      >>> int(state["batch_stats"]["norm"]["task"])  # the highest that it has seen
      1
    """

    def give(call, args, kwargs, context):
        if isinstance(context.module, AdaB2N) and context.method_name == "__call__":
            kwargs = {"task_ids": task_ids, **kwargs}
        return call(*args, **kwargs)

    return nn.intercept_methods(give)


@NORMS.register("adab2n", "batch_stats", "mask", "axis_name", "condition", *LAYOUTS)
class AdaB2N(BatchNorm):
    """BatchNorm balanced over the tasks of continual learning (Lyu et al., 2023).

    Given `task_ids`, the mean and variance of a training batch weigh its examples by
    task (see `task_weights`), which keeps new tasks from taking over; psi is learned.
    Without, and in the first task, they are those of BatchNorm. The rate of the running
    average adapts: with m = 1 - momentum, eta = m**kappa at the first batch, then

        eta <- eta / (eta + (1 - m)**kappa).

    Kappa 1 is the constant rate m, kappa 0 the cumulative average. The running variance
    takes the (weighted) biased variance; `unbiased_running_var` is without effect.

    Sows mean((mean - running mean)**2) + mean((var - running var)**2), running
    statistics after their update and constant, into `losses/adab2n`: the regulariser
    that the authors add to the loss. Adds to `batch_stats/{mean,var}` the scalars
    `inverse_rate` (1 / eta) and `task` (int32: highest task seen). Parameter
    `task_weight` (psi) [num_tasks]. Evaluation as BatchNorm.

    Attributes:
      num_tasks: upper limit of their number.  kappa: from 0 to 1.
      task_weight_init: of psi.
      use_running_average: overrides `train` at call: True freezes the statistics,
        False uses those of the batch.
      momentum: 1 - m.
      epsilon: added to the variance.
      unbiased_running_var: without effect.
      axis_name: mesh axis or axes to reduce over.
      use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.AdaB2N(num_tasks=2, kappa=0.5)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> tasks = jnp.array([0, 1])
      >>> y, variables = norm.init_with_output(
      ...     jax.random.key(1), x, train=True, task_ids=tasks
      ... )
      >>> y.shape, sorted(variables["batch_stats"])
      ((2, 4, 4, 8), ['inverse_rate', 'mean', 'task', 'var'])
    """

    ranges: ClassVar[Mapping[str, Range]] = {"num_tasks": POSITIVE, "kappa": FRACTION}

    num_tasks: int = 10
    kappa: float = 0.5
    task_weight_init: Initializer | float = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
        task_ids: jax.Array | None = None,
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C].

        Args:
          mask, train: as in BatchNorm; `mask` has leading dims of x.
          task_ids: int [B] below `num_tasks`, used in training. To reach norms inside a
            model see `task_context`.
        """
        train = self.is_training(train)
        init = as_initializer(self.task_weight_init)
        psi = self.param("task_weight", init, (self.num_tasks,), self.param_dtype)
        task = self.variable(BATCH_STATS, "task", jnp.zeros, (), jnp.int32)
        if not 0 < self.momentum < 1:
            raise UserError(f"momentum {self.momentum}: it must be between 0 and 1")
        dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        first = ((1 - self.momentum) ** -self.kappa - 1) / self.momentum**self.kappa
        inverse_rate = self.variable(
            BATCH_STATS, "inverse_rate", jnp.full, (), first, dtype
        )
        if not train:
            y, dtype = self.normalize(x, mask, train)
            return y.astype(dtype)
        running = self.running_statistics(x.shape[-1], ("mean", "var"))
        affine = affine_parameters(self, x.shape[-1], use_bias=self.use_bias)
        axis_name = None if self.is_initializing() else self.axis_name
        sizes = _positions(x, mask)
        seen, total = jnp.zeros((), jnp.int32), jnp.sum(sizes)
        if task_ids is not None:
            seen = jnp.max(jnp.where(sizes > 0, task_ids, 0)).astype(jnp.int32)
        if axis_name is not None:
            total = jax.lax.psum(total, axis_name)
            seen = seen if task_ids is None else jax.lax.pmax(seen, axis_name)
        highest = jnp.maximum(task.value, seen)
        if not self.is_initializing():
            task.value = highest
        if task_ids is None:
            weight = jnp.broadcast_to(1 / jnp.maximum(total, 1), x.shape[:1])
        else:
            weight = task_weights(task_ids, sizes, highest, psi, axis_name)
        y, mean, var = weighted_batch_normalize(
            x, weight, mask=mask, epsilon=self.epsilon, axis_name=axis_name
        )
        self._adapt(running, inverse_rate, mean, var, total > 0)
        dtype = result_dtype(x, *affine, dtype=self.dtype)
        return apply_affine(y, *affine).astype(dtype)

    def _adapt(self, running, inverse_rate, mean, var, present) -> None:
        """Move the statistics and their rate; sow the distance that is left."""
        for name, value in (("mean", mean), ("var", var)):
            self.sow(INTERMEDIATES, name, value)
        if self.is_initializing():
            return
        rate = 1 + self.momentum**self.kappa * inverse_rate.value
        inverse_rate.value = jnp.where(present, rate, inverse_rate.value)
        values = {"mean": mean, "var": var}
        self.move(running, jax.lax.stop_gradient(values), 1 - present / rate)
        distance = sum(
            jnp.mean(jnp.square(values[name] - running[name].value)) for name in values
        )
        self.sow(LOSSES, "adab2n", jnp.where(present, distance, 0))


def _positions(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B] number of valid positions of every example."""
    shape, dtype = (*x.shape[:-1], 1), at_least_float32(x).dtype
    valid = True if mask is None else align_mask(mask, x)
    valid = jnp.broadcast_to(valid, shape).astype(dtype)
    return jnp.sum(valid, tuple(range(1, x.ndim)))
