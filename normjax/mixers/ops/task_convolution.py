"""Weights of later tasks as convolutions of those of the first one."""

import jax

from normjax.core.depthwise import depthwise_conv


def task_kernel(
    kernel: jax.Array, convolution: jax.Array, shift: jax.Array, gate: jax.Array
) -> jax.Array:
    """W_t[i] = conv2d(W_0[i]; K_i) + b_i + sigmoid(s_i) W_0[i] for each head i.

    The K x C weights of a head are a picture of one channel, padded with zeros
    (ConTraCon; Roy et al., 2023). O(C D k**2) multiply-adds, once for all tokens.

    Args:
      kernel: W_0, [C, D] with D = H * K.
      convolution: K, [k, k, H], k odd: rows over the K outputs of a head, columns over
        the C inputs.
      shift, gate: b and s, [H].

    Returns:
      W_t, [C, D].
    """
    inputs, heads = kernel.shape[0], convolution.shape[-1]
    picture = kernel.reshape(inputs, heads, -1).transpose(2, 0, 1)[None]
    shift, gate = (t.reshape(1, 1, 1, -1) for t in (shift, gate))
    y = depthwise_conv(picture, convolution) + shift + jax.nn.sigmoid(gate) * picture
    return y[0].transpose(1, 2, 0).reshape(kernel.shape)
