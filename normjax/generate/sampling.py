"""From the logits of a language model to a token."""

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32


def check(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises UserError for what `sample` does not take."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")


def sample(
    logits: jax.Array,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Tokens with the probabilities softmax(logits / temperature), cut and rescaled.

    First the `top_k` most probable tokens stay, the first of equals. Then, of the
    probabilities rescaled to them, the smallest set of the most probable that reaches
    `top_p` (nucleus sampling; Holtzman et al., 2020): the most probable always stays.
    In at least float32.

    Args:
      logits: [B, V].  key: of jax.random.
      temperature: 0 takes the most probable token, the first of equals.
      top_k, top_p: None for all.

    Returns:
      int32 [B].

    Raises:
      UserError: a negative temperature, top_k below 1, top_p outside (0, 1].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import generate
      >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]))
      >>> print(generate.sample(logits, jax.random.key(0), temperature=0))
      [1 0]
      >>> print(generate.sample(logits, jax.random.key(0), top_k=1))
      [1 0]
      >>> bool((generate.sample(logits, jax.random.key(0), top_p=0.7) < 3).all())
      True
    """
    check(temperature, top_k, top_p)
    if temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = at_least_float32(logits)
    # The largest becomes 0, so that no temperature overflows.
    logits = (logits - jnp.max(logits, -1, keepdims=True)) / temperature
    if top_k is None and top_p is None:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    kept = min(top_k or logits.shape[-1], logits.shape[-1])
    logits, tokens = jax.lax.top_k(logits, kept)
    if top_p is not None and top_p < 1:
        p = jax.nn.softmax(logits)
        before = jnp.cumsum(p, -1) - p  # of more probable tokens, exactly 0 at first
        logits = jnp.where(before < top_p, logits, -jnp.inf)
    chosen = jax.random.categorical(key, logits)[:, None]
    return jnp.take_along_axis(tokens, chosen, -1)[:, 0].astype(jnp.int32)
