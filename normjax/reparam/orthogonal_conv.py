"""How far a convolution is from an orthogonal one, as a layer, not as a matrix.

Kernels here are [k, k, C, M], k odd, of stride s, on maps with circular padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.accumulate import EXACT
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.reparam.spectral import as_matrix, times


def conv_gram(kernel: jax.Array, stride: int = 1, padding: int | None = None):
    """Correlations of the M kernels with each other, zeros around them.

    Args:
      kernel: [k, k, C, M].  stride: of the correlation.
      padding: None for all shifts that the stride reaches, floor((k - 1) / s) s.

    Returns:
      [S, S, M, M], S = 2 padding / s + 1 where padding is None: by shift, kernel and
      kernel. An orthogonal one has the identity in the middle and 0 else.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(2.0)
      >>> gram = reparam.conv_gram(kernel)
      >>> gram.shape, float(gram[2, 2, 0, 0]), float(gram.sum())
      ((5, 5, 1, 1), 4.0, 4.0)
    """
    kernel = at_least_float32(kernel)
    p = (len(kernel) - 1) // stride * stride if padding is None else padding
    maps = kernel.transpose(3, 0, 1, 2)
    gram = jax.lax.conv_general_dilated(
        maps,
        kernel,
        (stride, stride),
        [(p, p), (p, p)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=EXACT,
    )
    return gram.transpose(1, 2, 0, 3)


def orthogonal_conv_loss(kernel: jax.Array, stride: int = 1) -> jax.Array:
    """L_orth = |conv(K, K) - I|^2 - max(0, M - s^2 C) (Achour et al., 2022).

    0 exactly for orthogonal convolutions, of rows where M <= s^2 C, else of columns,
    for maps of any size.

    Args:
      kernel: [k, k, C, M], k odd.  stride: s.

    Returns:
      A scalar, at least 0.

    Raises:
      UserError: a kernel that is not square, or even.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> shift = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)  # orthogonal
      >>> float(reparam.orthogonal_conv_loss(shift))
      0.0
      >>> float(reparam.orthogonal_conv_loss(2 * shift))
      9.0
    """
    _check(kernel, stride)
    channels, filters = kernel.shape[2:]
    gram = conv_gram(kernel, stride)
    middle = len(gram) // 2
    wanted = jnp.zeros_like(gram).at[middle, middle].set(jnp.eye(filters))
    lack = max(0, filters - stride**2 * channels)
    return jnp.sum(jnp.square(gram - wanted)) - lack


class SingularBounds(NamedTuple):
    """Between what all singular values of a convolution lie.

    Attributes:
      low, high: scalars.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> shift = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
      >>> low, high = reparam.singular_value_bounds(shift)
      >>> float(low), float(high)
      (1.0, 1.0)
    """

    low: jax.Array
    high: jax.Array


def singular_value_bounds(kernel: jax.Array, stride: int = 1) -> SingularBounds:
    """sqrt(max(0, 1 - e)) and sqrt(1 + e), e = sqrt(a L_orth) (Achour et al., 2022).

    a = M (2 floor((k - 1) / s) + 1)^2 where M <= s^2 C, C (2 k - 1)^2 where M >= s^2 C,
    the smaller if both. For maps of any size, from 2 k - 1 on.

    Args:
      kernel: [k, k, C, M], k odd.  stride: s.

    Raises:
      UserError: a kernel that is not square, or even.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.zeros((1, 1, 1, 1)).at[0, 0].set(2.0)
      >>> low, high = reparam.singular_value_bounds(kernel)
      >>> float(low), float(high)
      (0.0, 2.0)
    """
    size, _, channels, filters = kernel.shape
    factors = []
    if filters <= stride**2 * channels:
        factors.append(filters * (2 * ((size - 1) // stride) + 1) ** 2)
    if filters >= stride**2 * channels:
        factors.append(channels * (2 * size - 1) ** 2)
    loss = jnp.maximum(orthogonal_conv_loss(kernel, stride), 0)
    error = jnp.sqrt(min(factors) * loss)
    return SingularBounds(jnp.sqrt(jnp.maximum(0, 1 - error)), jnp.sqrt(1 + error))


def conv_singular_values(kernel: jax.Array, size: int, stride: int = 1) -> jax.Array:
    """Singular values of a circular convolution on maps of size s N x s N.

    By frequency (Sedghi et al., 2019): the matrices [M, C s^2] of the N^2 frequencies
    that a stride keeps, with those that fall on them.

    Args:
      kernel: [k, k, C, M].  size: N, of the result.  stride: s.

    Returns:
      [min(M, s^2 C) N^2], the largest first.

    Raises:
      UserError: a map smaller than the kernel; a kernel not square, or even.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> mean = jnp.full((1, 1, 4, 1), 0.5)
      >>> print(reparam.conv_singular_values(mean, size=2))
      [1. 1. 1. 1.]
    """
    _check(kernel, stride)
    side = size * stride
    if side < len(kernel):
        raise UserError(f"a map of {side} x {side} is smaller than the kernel")
    spectrum = jnp.fft.fft2(at_least_float32(kernel), (side, side), (0, 1)) / stride
    folded = spectrum.reshape(stride, size, stride, size, *kernel.shape[2:])
    matrices = folded.transpose(1, 3, 5, 0, 2, 4).reshape(
        size, size, kernel.shape[3], -1
    )
    values = jnp.linalg.svd(matrices, compute_uv=False)
    return jnp.sort(values.reshape(-1))[::-1]


def orthogonal_matrix_norm(kernel: jax.Array) -> jax.Array:
    """|W W^T - I| or |W^T W - I|, the smaller product, of the flattened kernel.

    What is regularised of 1 x 1 convolutions (Wang et al., 2020); of larger ones it is
    not the distance from an orthogonal convolution.

    Args:
      kernel: [..., C, M].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> float(reparam.orthogonal_matrix_norm(jnp.diag(jnp.array([1.0, 2.0]))))
      3.0
    """
    matrix = as_matrix(kernel)
    rows, columns = matrix.shape
    wide = matrix if rows <= columns else matrix.T
    return jnp.linalg.norm(times(wide, wide.T) - jnp.eye(len(wide)))


def orthogonal_conv_exists(shape: tuple[int, ...], stride: int = 1) -> bool:
    """Whether a kernel of that shape can be orthogonal (Achour et al., 2022).

    Of rows (M <= s^2 C) iff M <= C k^2, of columns iff s <= k; circular padding.

    Args:
      shape: (k, k, C, M).  stride: s.

    Example:
      >>> from normjax import reparam
      >>> reparam.orthogonal_conv_exists((3, 3, 4, 8))
      True
      >>> reparam.orthogonal_conv_exists((1, 1, 4, 8), stride=2)
      False
    """
    size, _, channels, filters = shape
    if filters <= stride**2 * channels:
        return filters <= channels * size**2
    return stride <= size


def _check(kernel: jax.Array, stride: int) -> None:
    height, width = np.shape(kernel)[:2]
    if np.ndim(kernel) != 4 or height != width or height % 2 == 0 or stride < 1:
        raise UserError(
            f"a kernel [k, k, C, M] with odd k is needed, got {np.shape(kernel)} with "
            f"stride {stride}"
        )
