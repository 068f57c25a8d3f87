"""Softmax attention whose weights a later task convolves (ConTraCon)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, linear, trunc_normal
from normjax.core.errors import UserError
from normjax.core.ranges import COUNT, POSITIVE, Range
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.task_convolution import task_kernel
from normjax.mixers.steps import attend, dense_of, normalized_heads, rows_of


class TaskConvolvedDense(nn.Module):
    """y = x W_t with W_0 of the first task and `task_kernel` of it for later ones.

    Attributes:
      features: outputs, those of `num_heads` heads side by side.
      num_heads, kernel_size, num_tasks, task, dtype, param_dtype, kernel_init: as of
        TaskConvolvedAttention.
    """

    features: int
    num_heads: int
    kernel_size: int = 15
    num_tasks: int = 1
    task: int = 0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features]."""
        shape, dtype = (x.shape[-1], self.features), self.param_dtype
        kernel = self.param("kernel", self.kernel_init, shape, dtype)
        if self.num_tasks > 1:
            of_tasks = self._of_tasks()
            if self.task:
                kernel, *changes = promote_dtype(kernel, *of_tasks, dtype=None)
                kernel = task_kernel(kernel, *(t[self.task - 1] for t in changes))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return linear(x, kernel)

    def _of_tasks(self) -> list[jax.Array]:
        """Convolutions, shifts and gates of all tasks after the first."""
        count, size, heads = self.num_tasks - 1, self.kernel_size, self.num_heads

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -1 / size, 1 / size)

        inits = {
            "task_convolution": (uniform, (count, size, size, heads)),
            "task_shift": (uniform, (count, heads)),
            "task_gate": (nn.initializers.ones, (count, heads)),
        }
        return [
            self.param(name, init, shape, self.param_dtype)
            for name, (init, shape) in inits.items()
        ]


@MIXERS.register("task_convolved", "seq", "grid", "mask")
class TaskConvolvedAttention(Mixer):
    """Softmax attention whose weights a later task convolves (ConTraCon).

    The first of `num_tasks` tasks learns W_q, W_k, W_v without bias. For a later one
    each of them is, head by head,

        W_t = conv2d(W_0; K_t) + b_t + sigmoid(s_t) W_0

    with K_t, b_t, s_t of its own (Roy et al., 2023), then softmax(q k^T / sqrt(K)) v
    and a projection without bias. What a task learns is (k**2 + 2) H numbers a layer;
    what shall stay is frozen by the rules of the optimizer. O(L**2 D) multiply-adds,
    and O(C D k**2) once for all tokens. Softmax in at least float32.

    Attributes:
      kernel_size: k, odd.
      num_tasks: all tasks, with the first.  task: the one at hand, from 0.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> arguments = {"num_heads": 2, "kernel_size": 3, "num_tasks": 3, "task": 1}
      >>> mixer = mixers.TaskConvolvedAttention(**arguments)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["q"]["task_convolution"].shape
      ((2, 6, 8), (2, 3, 3, 2))
    """

    kernel_size: int = 15
    num_tasks: int = 1
    task: int = 0

    # A convolution mixes the weights of channels: no scale folds into them.
    reads: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[Mapping[str, Range]] = {"num_tasks": POSITIVE, "task": COUNT}

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, L, D] or [B, H, W, D], row by row -> same.

        Args:
          mask: bool [B, L] or [B, H, W]; False is padding, which no token sees.
          train: passed to `qk_norm`.

        Raises:
          UserError: an even `kernel_size`, a task that is none of `num_tasks`, or D
            does not split into heads.
        """
        if self.kernel_size % 2 == 0:
            what = f"kernel_size must be odd, got {self.kernel_size}"
            raise UserError(f"mixer 'task_convolved': {what}")
        if not 0 <= self.task < self.num_tasks:
            what = f"task {self.task} is none of 0 to {self.num_tasks - 1}"
            raise UserError(f"mixer 'task_convolved': {what}")
        rows, mask = rows_of(x, mask)
        width = self.qkv_features or x.shape[-1]
        if width % self.num_heads:
            raise UserError(f"width {width} does not split into {self.num_heads} heads")
        given = {k: getattr(self, k) for k in ("num_heads", "kernel_size", "task")}
        given |= {"num_tasks": self.num_tasks, **dense_of(self)}
        q, k, v = (
            split_heads(
                TaskConvolvedDense(width, name=n, **given)(rows), self.num_heads
            )
            for n in ("q", "k", "v")
        )
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        visible = None if mask is None else mask[:, None, None, :]
        o = merge_heads(attend(self, q, k, v, mask=visible))
        dense = {"use_bias": False, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)
