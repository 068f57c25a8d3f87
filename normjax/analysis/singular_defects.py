"""Singular defects of transformers: directions that tokens fall into.

After SINDER (Wang et al., 2024). The linear parts of a block, without the scale that
LayerNorm takes from the data, have a leading singular direction; tokens of a large norm
point along it. Matrices act from the left here, y = M x.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.accumulate import EXACT
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32

GAUSSIANS = {
    3: np.outer([1, 2, 1], [1, 2, 1]) / 16,
    5: np.array(
        [
            [1, 4, 7, 4, 1],
            [4, 16, 26, 16, 4],
            [7, 26, 41, 26, 7],
            [4, 16, 26, 16, 4],
            [1, 4, 7, 4, 1],
        ]
    )
    / 273,
}


def _branch(
    last: jax.Array,
    inner: jax.Array,
    norm_scale: jax.Array,
    layer_scale: jax.Array | None,
) -> jax.Array:
    """I + diag(layer_scale) last inner diag(norm_scale) (I - 1 1^T / C)."""
    width = len(norm_scale)
    eye = jnp.eye(width, dtype=last.dtype)
    centred = norm_scale[:, None] * (eye - 1 / width)
    made = jnp.matmul(
        jnp.matmul(last, inner, precision=EXACT), centred, precision=EXACT
    )
    return eye + (made if layer_scale is None else layer_scale[:, None] * made)


def attention_matrix(
    value: jax.Array,
    proj: jax.Array,
    norm_scale: jax.Array,
    layer_scale: jax.Array | None = None,
) -> jax.Array:
    """A = I + diag(l) W_proj W_v diag(g) (I - 1 1^T / C): a token that sees itself.

    Args:
      value: kernel [C, D] of the values.  proj: kernel [D, C] behind them.
      norm_scale: g of the norm before, [C].  layer_scale: l, [C], or None.

    Returns:
      [C, C], for y = A x.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> eye = jnp.eye(2)
      >>> print(analysis.attention_matrix(eye, eye, jnp.ones(2)))
      [[ 1.5 -0.5]
       [-0.5  1.5]]
    """
    value, proj, scale = (at_least_float32(v) for v in (value, proj, norm_scale))
    return _branch(proj.T, value.T, scale, layer_scale)


def mlp_matrix(
    samples: jax.Array,
    hidden: jax.Array,
    last: jax.Array,
    norm_scale: jax.Array,
    layer_scale: jax.Array | None = None,
) -> jax.Array:
    """M = I + diag(l) W_3 S diag(g) (I - 1 1^T / C), S fitted to what is not linear.

    S is the least-squares map, without intercept, from samples to hidden activations.

    Args:
      samples: X, [n, C], standard normal; 100,000 in the paper.
      hidden: of the MLP on X, [n, F]: what its last layer reads.
      last: kernel [F, C] of that layer.
      norm_scale: g of the norm before, [C].  layer_scale: l, [C], or None.

    Returns:
      [C, C], for y = M x.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> x = jax.random.normal(jax.random.key(0), (50, 2))
      >>> matrix = analysis.mlp_matrix(x, 2 * x, jnp.eye(2), jnp.ones(2))
      >>> print(matrix.round(3))
      [[ 2. -1.]
       [-1.  2.]]
    """
    samples, hidden = (at_least_float32(v) for v in (samples, hidden))
    fitted = jnp.linalg.lstsq(samples, hidden)[0]
    last, scale = (at_least_float32(v) for v in (last, norm_scale))
    return _branch(last.T, fitted.T, scale, layer_scale)


class DefectDirections(NamedTuple):
    """Leading left singular vectors, of length 1 and of any sign.

    Attributes:
      alone: [depth, C], of each block.  direction: [depth, C], of it and all before.
      singular_values: [depth, C], of it and all before, the largest first.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> found = analysis.defect_directions([jnp.diag(jnp.array([1.0, 3.0]))])
      >>> print(abs(found.direction), found.singular_values)
      [[0. 1.]] [[3. 1.]]
    """

    alone: jax.Array
    direction: jax.Array
    singular_values: jax.Array


def defect_directions(blocks: Sequence[jax.Array]) -> DefectDirections:
    """Defect directions from the matrices M_i A_i of the blocks (Wang et al., 2024).

    Args:
      blocks: `mlp_matrix` times `attention_matrix` of each block, first to last.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> first, second = (
      ...     jnp.diag(jnp.array([2.0, 1.0])),
      ...     jnp.diag(jnp.array([1.0, 3.0])),
      ... )
      >>> found = analysis.defect_directions([first, second])
      >>> print(found.singular_values)  # of both together: 3 and 2
      [[2. 1.]
       [3. 2.]]
    """
    alone, direction, values = [], [], []
    total = jnp.eye(len(blocks[0]), dtype=blocks[0].dtype)
    for block in blocks:
        total = jnp.matmul(block, total, precision=EXACT)
        left, singular, _ = jnp.linalg.svd(total)
        alone.append(jnp.linalg.svd(block)[0][:, 0])
        direction.append(left[:, 0])
        values.append(singular)
    return DefectDirections(*(jnp.stack(v) for v in (alone, direction, values)))


class NeighborLoss(NamedTuple):
    """SINDER's loss behind one block.

    Attributes:
      loss: mean over defect tokens of |x - target| / alpha; 0 without any.
      mask: bool [H, W], the defect tokens.
      target: [H - 2p, W - 2p, C], a constant of the gradient.
      alpha: mean |x| over the inner tokens, a constant.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> tokens = jax.random.normal(jax.random.key(0), (5, 5, 3)).at[2, 2].set(9.0)
      >>> found = analysis.neighbor_loss(tokens, jnp.ones(3) / 3**0.5, threshold=1.0)
      >>> found.mask.shape, found.target.shape
      ((5, 5), (3, 3, 3))
    """

    loss: jax.Array
    mask: jax.Array
    target: jax.Array
    alpha: jax.Array


def neighbor_loss(
    x: jax.Array,
    direction: jax.Array,
    *,
    threshold: float = 4.0,
    temperature: float = 0.1,
    kernel: int = 3,
) -> NeighborLoss:
    """Draws tokens along a defect direction to what is around them (SINDER, 2024).

    With l = -|cos(x, d)|: defect is l < mean(l) - threshold std(l), the outer p =
    kernel // 2 rows and columns apart; the target the mean of x over the window with
    weights exp(l / temperature) times a Gaussian. Blocks are visited in order, and the
    first with enough defect tokens gives the loss.

    Args:
      x: [H, W, C], tokens behind a block, without the class token.
      direction: d, [C].
      threshold: in standard deviations, unbiased.
      temperature: of the weights.  kernel: 3 or 5.

    Raises:
      UserError: another kernel.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> tokens = jnp.tile(jnp.array([1.0, 0.0]), (5, 5, 1)).at[2, 2].set(9.0)
      >>> found = analysis.neighbor_loss(tokens, jnp.array([0.0, 1.0]))
      >>> int(found.mask.sum()), bool(found.loss > 0)
      (1, True)
    """
    if kernel not in GAUSSIANS:
        raise UserError(f"kernel must be 3 or 5, got {kernel}")
    x, p = at_least_float32(x), kernel // 2
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(direction)
    inner = jnp.matmul(x, direction.astype(x.dtype), precision=EXACT)
    level = -jnp.abs(inner / jnp.maximum(norms, 1e-8))
    edge = jnp.zeros(level.shape, bool).at[p:-p, p:-p].set(True)
    mask = edge & (level < jnp.mean(level) - threshold * jnp.std(level, ddof=1))
    target, alpha = jax.lax.stop_gradient(_around(x, level, temperature, kernel))
    middle = x[p:-p, p:-p]
    distance = jnp.linalg.norm(
        jnp.where(mask[p:-p, p:-p, None], middle - target, 1.0), axis=-1
    )
    count = jnp.sum(mask)
    total = jnp.sum(distance, where=mask[p:-p, p:-p])
    return NeighborLoss(total / jnp.maximum(count, 1) / alpha, mask, target, alpha)


def _around(x, level, temperature: float, kernel: int):
    """(weighted means of windows, mean |x|), of inner tokens."""
    height, width, p = *level.shape, kernel // 2
    weight = jnp.exp(level / temperature)
    total: Any = 0.0
    share: Any = 0.0
    for i in range(kernel):
        for j in range(kernel):
            rows = slice(i, i + height - 2 * p), slice(j, j + width - 2 * p)
            w = (weight[rows] * GAUSSIANS[kernel][i, j].item())[..., None]
            total, share = total + w * x[rows], share + w
    alpha = jnp.mean(jnp.linalg.norm(x[p:-p, p:-p], axis=-1))
    return total / share, alpha
