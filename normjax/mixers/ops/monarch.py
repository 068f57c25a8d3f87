"""Products with Monarch matrices, and convolutions as long as the sequence."""

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32


def monarch_product(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """x times a Monarch matrix: two block-diagonal ones, a transposition between them.

    With x read as [k, p], u as [r, l] and y as [s, l],

        u[i, :] = first[i] x[i, :]        y[:, j] = second[j] u[:, j]

    O(K P Q + L R S) multiply-adds instead of K P L S (Dao et al., 2022).

    Args:
      x: [..., K * P].
      first: [K, Q, P], one block for each of the K parts of x.
      second: [L, S, R] with R * L = K * Q.

    Returns:
      [..., S * L].

    Raises:
      ValueError: blocks that do not fit x or each other.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> blocks = jnp.ones((2, 2, 2))  # [K, Q, P]
      >>> print(mixers.monarch_product(jnp.array([1.0, 2.0, 3.0, 4.0]), blocks, blocks))
      [10. 10. 10. 10.]
    """
    (parts, inside, width), (blocks, outputs, inputs) = first.shape, second.shape
    if x.shape[-1] != parts * width or parts * inside != blocks * inputs:
        raise ValueError(
            f"blocks of shapes {first.shape} and {second.shape} do not multiply "
            f"{x.shape[-1]} channels"
        )
    lead = x.shape[:-1]
    u = jnp.einsum("...kp,kqp->...kq", x.reshape(*lead, parts, width), first)
    u = u.reshape(*lead, inputs, blocks)
    y = jnp.einsum("...rl,lsr->...sl", u, second)
    return y.reshape(*lead, outputs * blocks)


def long_convolution(
    u: jax.Array,
    kernel: jax.Array,
    reverse: jax.Array | None = None,
    skip: jax.Array | None = None,
) -> jax.Array:
    """y_t = sum_j k_j u_{t-j} + sum_j r_j u_{t+1+j} + skip u_t, over all j >= 0.

    By the fast Fourier transform, O(L log(L) D), in at least float32.

    Args:
      u: [B, L, D], zeros beyond its ends.
      kernel: k, [L, D].  reverse: r, the same of what comes later; None: causal.
      skip: [D]; None for zeros.

    Returns:
      [B, L, D] in at least float32.
    """
    u, kernel = at_least_float32(u), at_least_float32(kernel)
    length = u.shape[1]
    if reverse is None:
        kernel = jnp.pad(kernel, ((0, length), (0, 0)))
    else:  # r_j has lag -(1 + j), counted from the end of the circle
        later = at_least_float32(reverse)[::-1]
        kernel = jnp.concatenate((kernel, later))
    spectrum = jnp.fft.rfft(kernel, axis=0)[None]
    y = jnp.fft.rfft(u, 2 * length, axis=1) * spectrum
    y = jnp.fft.irfft(y, 2 * length, axis=1)[:, :length]
    if skip is not None:
        y = y + u * at_least_float32(skip).reshape(1, 1, -1)
    return y
