"""Retrieval without hubs: similarities normalised by banks of queries and of items.

Dual-bank normalization (DBNorm; Wang et al., 2023), QB-Norm (Bogolin et al., 2022) and
dual softmax. Similarities are queries x gallery throughout.
"""

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32


def inverted_softmax(
    similarities: jax.Array, bank: jax.Array, beta: float = 1 / 1.99
) -> jax.Array:
    """exp(beta S_ij) / sum_b exp(beta B_bj): each gallery item against a bank.

    The queries that are asked are not in the sum. DualIS is the product of that by the
    bank of queries (beta 1 / 1.99) and that by the one of gallery items (beta 3).

    Args:
      similarities: S, [queries, gallery].
      bank: B, [bank, gallery].  beta: inverse temperature; 20 in QB-Norm.

    Returns:
      [queries, gallery] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> hub = jnp.array([[1.0, 0.9]])
      >>> bank = jnp.array([[1.0, 0.0], [1.0, 0.0]])  # all like the first item
      >>> print(adapt.inverted_softmax(hub, bank, beta=1.0).argmax(-1))
      [1]
    """
    s, b = (beta * at_least_float32(v) for v in (similarities, bank))
    most = jnp.maximum(jnp.max(s, 0), jnp.max(b, 0))[None]  # no exp overflows
    return jnp.exp(s - most) / jnp.sum(jnp.exp(b - most), 0, keepdims=True)


def activation_set(bank: jax.Array, k: int = 1) -> jax.Array:
    """bool [gallery]: the items among the k most similar of any row of a bank.

    Args:
      bank: [bank, gallery].  k: items a row.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> print(adapt.activation_set(jnp.array([[0.1, 0.9, 0.3]])))
      [False  True False]
    """
    return k_occurrence(bank, k) > 0


def is_activated(similarities: jax.Array, bank: jax.Array, k: int = 1) -> jax.Array:
    """bool [queries]: whose most similar item is in the activation set of a bank.

    Args:
      similarities: [queries, gallery].  bank: [bank, gallery].
      k: of `activation_set`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> queries, bank = jnp.eye(2), jnp.array([[0.0, 1.0]])
      >>> print(adapt.is_activated(queries, bank))
      [False  True]
    """
    return activation_set(bank, k)[jnp.argmax(similarities, -1)]


def dynamic_inverted_softmax(
    similarities: jax.Array,
    bank: jax.Array,
    beta: float = 1 / 1.99,
    *,
    k: int = 1,
    raw: bool = False,
) -> jax.Array:
    """`inverted_softmax` of the queries that `is_activated`; exp(beta S) of the others.

    The order within a row is that of S there. The product of both banks' is DualDIS.

    Args:
      similarities: S, [queries, gallery].
      bank: [bank, gallery].  beta: inverse temperature.  k: of `activation_set`.
      raw: other queries keep S, as in the authors' code: rows have other scales then,
        which is wrong for thresholds and from gallery to query.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> queries, bank = jnp.eye(2), jnp.array([[0.0, 1.0]])
      >>> made = adapt.dynamic_inverted_softmax(queries, bank, 1.0, raw=True)
      >>> print(made.round(2))  # the second is a hub
      [[1. 0.]
       [1. 1.]]
    """
    s = at_least_float32(similarities)
    plain = s if raw else jnp.exp(beta * s)
    chosen = is_activated(s, bank, k)[:, None]
    return jnp.where(chosen, inverted_softmax(s, bank, beta), plain)


def dual_softmax(similarities: jax.Array, beta: float = 1 / 1.99) -> jax.Array:
    """S * softmax over all queries of beta S, without a bank (Cheng et al., 2021).

    Args:
      similarities: S, [queries, gallery].  beta: inverse temperature.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> print(adapt.dual_softmax(jnp.array([[1.0, 2.0], [1.0, 2.0]])))
      [[0.5 1. ]
       [0.5 1. ]]
    """
    s = at_least_float32(similarities)
    return s * jax.nn.softmax(beta * s, axis=0)


def k_occurrence(similarities: jax.Array, k: int = 10) -> jax.Array:
    """N_k: of each gallery item the queries among whose k most similar it is.

    Args:
      similarities: [queries, gallery].  k: items a query.

    Returns:
      int [gallery].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> print(adapt.k_occurrence(jnp.array([[0.9, 0.1], [0.8, 0.2]]), k=1))
      [2 0]
    """
    _, nearest = jax.lax.top_k(similarities, k)
    return jnp.bincount(nearest.reshape(-1), length=similarities.shape[-1])


def skewness(counts: jax.Array) -> jax.Array:
    """Third standardised moment of N_k over the gallery: how much there are hubs.

    Items that never occur count, too (Radovanovic et al., 2010).

    Args:
      counts: [gallery], of `k_occurrence`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import adapt
      >>> print(adapt.skewness(jnp.array([0, 0, 0, 4])).round(3))
      1.155
    """
    x = counts.astype(jnp.result_type(float))
    x = x - jnp.mean(x)
    return jnp.mean(x**3) / jnp.mean(x**2) ** 1.5
