"""Token mixing along rows or columns that several channels share (RaftMLP)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.gelu import gelu
from normjax.core.ranges import POSITIVE, Range
from normjax.mixers.base import MIXERS
from normjax.mixers.ops.masks import only_valid
from normjax.mixers.steps import dense_of

AXES = ("vertical", "horizontal")


@MIXERS.register("raft", "grid", "mask")
class RaftMixer(nn.Module):
    """An MLP over a column, or a row, of several channels at once (RaftMLP).

    With C = R * c channels in R rafts, for each of the W columns and c channels

        y = W2 gelu(W1 x + b1) + b2, x the R * H numbers of all rafts and rows

    and the same along rows with `axis` "horizontal" (Tatsunami and Taki, 2021); a
    vertical and a horizontal one follow each other in two layers, or two branches of
    one. O(expansion R H L C) multiply-adds, R W for H along rows.

    Attributes:
      axis: "vertical" or "horizontal"; None for one after the other, by `layer`.
      layer: number of the layer, which a model gives.
      raft_size: R.  expansion: width between the layers, in multiples of R * H.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.RaftMixer(axis="vertical", raft_size=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 3, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["fc1"]["kernel"].shape
      ((1, 4, 3, 8), (8, 16))
    """

    axis: str | None = None
    layer: int = 0
    raft_size: int = 2
    expansion: float = 2.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    # Weights belong to positions, not to channels: no scale folds into them.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None
    ranges: ClassVar[Mapping[str, Range]] = {"raft_size": POSITIVE}

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. The weights fix H, or W along rows.

        Args:
          mask: bool [B, H, W]; False positions count as 0.
          train: unused: one rule.

        Raises:
          UserError: an unknown axis, C is no multiple of `raft_size`, or initialised
            for another size.
        """
        del train
        axis = AXES[self.layer % 2] if self.axis is None else self.axis
        if axis not in AXES:
            raise UserError(one_of("axis", axis, AXES))
        channels, rafts = x.shape[-1], self.raft_size
        if channels % rafts:
            raise UserError(
                f"mixer 'raft': {channels} channels do not split into {rafts} rafts "
                "(raft_size)"
            )
        along, across = (1, 2) if axis == "vertical" else (2, 1)
        order = (0, across, 4, 3, along)  # [B, W or H, c, R, H or W]
        t = only_valid(x, mask).reshape(*x.shape[:3], rafts, channels // rafts)
        t = t.transpose(order)
        rows = t.reshape(*t.shape[:3], -1)
        self._check(rows.shape[-1])
        hidden = max(1, round(self.expansion * rows.shape[-1]))
        h = Dense(hidden, name="fc1", **dense_of(self))(rows)
        h = gelu(h)
        y = Dense(rows.shape[-1], name="fc2", **dense_of(self))(h).reshape(t.shape)
        back = sorted(range(5), key=order.__getitem__)
        return y.transpose(back).reshape(x.shape)

    def _check(self, size: int) -> None:
        """Refuse a map of another size than that of the weights."""
        if not self.has_variable("params", "fc1"):
            return
        stored = self.get_variable("params", "fc1")["kernel"].shape[0]
        if stored != size:
            raise UserError(
                f"RaftMixer was initialised for {stored // self.raft_size} positions "
                f"and needs {size // self.raft_size} here: their number is fixed"
            )
