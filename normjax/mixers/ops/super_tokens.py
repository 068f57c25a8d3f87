"""Super tokens: cells of a map that positions belong to in parts."""

import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum
from normjax.core.moments import at_least_float32
from normjax.mixers.ops.partition import neighbours, partition, to_neighbours


def cells_of(x: jax.Array, cell: tuple[int, int]) -> jax.Array:
    """[B, H, W, C] -> [B, n, m, h w, C]; zeros on the right and below fill cells."""
    (batch, height, width, channels), (h, w) = x.shape, cell
    x = jnp.pad(x, ((0, 0), (0, -height % h), (0, -width % w), (0, 0)))
    rows, columns = x.shape[1] // h, x.shape[2] // w
    return partition(x, cell).reshape(batch, rows, columns, h * w, channels)


def association(pixels: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """How much positions belong to the super tokens around them (Huang et al., 2023).

    A_pt = softmax_t(x_p . s_t / sqrt(C)) over the 3 x 3 super tokens around the cell of
    p, those beyond the map being 0; s are at first the means of the cells, then
    sum_p A_pt x_p / sum_p A_pt. No gradient goes through it.

    Args:
      pixels: [B, n, m, p, C], of `cells_of`.
      iterations: of A, at least one.

    Returns:
      (A [B, n, m, p, 9], its sums [B, n, m, 1]) in at least float32.
    """
    pixels = at_least_float32(jax.lax.stop_gradient(pixels))
    tokens, scale = jnp.mean(pixels, 3), pixels.shape[-1] ** -0.5

    def parts(tokens):
        scores = einsum("bnmpc,bnmkc->bnmpk", pixels, neighbours(tokens)) * scale
        weights = jax.nn.softmax(scores)
        return weights, to_neighbours(jnp.sum(weights, 3)[..., None])

    weights, total = parts(tokens)
    for _ in range(iterations - 1):
        weights, total = parts(super_tokens(pixels, weights, total))
    return weights, total


def super_tokens(pixels: jax.Array, weights: jax.Array, total: jax.Array) -> jax.Array:
    """sum_p A_pt x_p / (sum_p A_pt + 1e-12): [B, n, m, C], in at least float32.

    Args:
      pixels: [B, n, m, p, C].  weights, total: of `association`.
    """
    shares = einsum("bnmpk,bnmpc->bnmkc", weights, at_least_float32(pixels))
    return to_neighbours(shares) / (total + 1e-12)


def from_super_tokens(
    tokens: jax.Array, weights: jax.Array, cell: tuple[int, int], grid: tuple[int, ...]
) -> jax.Array:
    """sum_t A_pt s_t on the map: tokens [B, n, m, C] -> [B, H, W, C], at least float32.

    Args:
      weights: of `association`.  cell: height and width.  grid: H and W.
    """
    (batch, rows, columns, channels), (h, w) = tokens.shape, cell
    y = einsum("bnmpk,bnmkc->bnmpc", weights, at_least_float32(neighbours(tokens)))
    y = jnp.swapaxes(y.reshape(batch, rows, columns, h, w, channels), 2, 3)
    y = y.reshape(batch, rows * h, columns * w, channels)
    return y[:, : grid[0], : grid[1]]
