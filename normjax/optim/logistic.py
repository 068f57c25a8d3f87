"""Gradient descent with large steps on logistic regression, and its limits.

From Logistic Regression to the Perceptron Algorithm (Tyurin, 2024): of n samples a_i
with labels y_i of -1 and 1, f(w) = mean log(1 + exp(-y_i <a_i, w>)).
"""

import jax
import jax.numpy as jnp


def _margins(w: jax.Array, a: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    signed = y[:, None] * a
    return signed, signed @ w


def logistic_gradient(
    w: jax.Array, a: jax.Array, y: jax.Array, *, normalized: bool = False
) -> jax.Array:
    """The gradient of f, or that divided by the mean error.

        s_i = sigmoid(-y_i <a_i, w>)
        gradient = -mean s_i y_i a_i, normalized: -sum s_i y_i a_i / sum s_i

    The second is computed by a softmax of log s_i, which does not underflow.

    Args:
      w: [d].  a: [n, d].  y: [n], -1 or 1.
      normalized: divided by the mean of s_i.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import logistic_gradient
      >>> a, y = jnp.array([[2.0], [4.0]]), jnp.ones(2)
      >>> print(logistic_gradient(jnp.zeros(1), a, y))
      [-1.5]
      >>> print(logistic_gradient(jnp.zeros(1), a, y, normalized=True))
      [-3.]
    """
    signed, margins = _margins(w, a, y)
    if normalized:
        return -jax.nn.softmax(jax.nn.log_sigmoid(-margins)) @ signed
    return -jax.nn.sigmoid(-margins) @ signed / len(y)


def perceptron_step(
    w: jax.Array, a: jax.Array, y: jax.Array, *, normalized: bool = False
) -> jax.Array:
    """The batch perceptron, the limit of gradient descent with steps that grow.

        w <- w + 1/n sum of y_i a_i of the misclassified, y_i <a_i, w> <= 0

    At w = 0, the start, it is half of that. Normalized: the sum is divided by the
    number of misclassified samples, at the start as well. Without any, w stays.

    Args:
      w: [d].  a: [n, d].  y: [n], -1 or 1.
      normalized: divided by the number of misclassified samples.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import perceptron_step
      >>> a, y = jnp.array([[2.0], [4.0]]), jnp.ones(2)
      >>> print(perceptron_step(jnp.zeros(1), a, y))
      [1.5]
      >>> print(perceptron_step(jnp.zeros(1), a, y, normalized=True))
      [3.]
    """
    signed, margins = _margins(w, a, y)
    wrong = (margins <= 0).astype(signed.dtype)
    if normalized:
        return w + wrong @ signed / jnp.maximum(jnp.sum(wrong), 1)
    start = jnp.all(w == 0)
    return w + jnp.where(start, 0.5, 1.0) * (wrong @ signed) / len(y)
