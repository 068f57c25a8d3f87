"""Cosine attention of every position to the whole map (TransNeXt)."""

from typing import ClassVar

from normjax.core.registry import Spec
from normjax.mixers.base import MIXERS
from normjax.mixers.grid.whole_map import WholeMapAttention


@MIXERS.register("global_cosine", "grid", "mask")
class GlobalCosineAttention(WholeMapAttention):
    """Cosine attention over the whole map (TransNeXt's last stage; Shi, 2024).

        softmax((q' + e) . k' softplus(t) log(L) + R) v

    per head, then a projection: q' and k' have length 1, e and t are learned, L is the
    number of positions, and R_ij an MLP of the log-spaced offset of i and j. It takes
    maps of any size; weights trained at one size keep its unit by `trained_grid`.
    O(L**2 D) multiply-adds. Softmax in at least float32.

    Attributes:
      position_features: width of the MLP of R.
      trained_grid: rows and columns of the map at which the weights were trained; None
        for those of the input.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm of queries and keys before they get length 1, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.GlobalCosineAttention(num_heads=2, position_features=16)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["temperature"].shape
      ((1, 4, 4, 8), (2,))
    """

    position_features: int = 512
    trained_grid: tuple[int, int] | None = None

    core: ClassVar[Spec] = "cosine"  # pyright: ignore[reportIncompatibleVariableOverride]
