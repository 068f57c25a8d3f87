"""Positions in a row, channels in heads."""

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError


def tokens_of(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, L, C] with the positions in row-major order."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[..., D] -> [..., H, K] with D = H * K.

    Raises:
      UserError: D is no multiple of `num_heads`.
    """
    if num_heads < 1 or x.shape[-1] % num_heads:
        raise UserError(f"width {x.shape[-1]} does not split into {num_heads} heads")
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def as_many_heads(t: jax.Array, num_heads: int) -> jax.Array:
    """[..., G, K] -> [..., H, K]: each of G heads H / G times, one after the other."""
    groups = t.shape[-2]
    return t if groups == num_heads else jnp.repeat(t, num_heads // groups, -2)


def merge_heads(x: jax.Array) -> jax.Array:
    """[..., H, K] -> [..., H * K]."""
    return x.reshape(*x.shape[:-2], -1)
