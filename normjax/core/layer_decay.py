"""Learning rates that fall from the head to the stem, for fine-tuning. No jax here."""

from typing import Any

from normjax.core.errors import UserError

STEM = "^(stem|embed|pos_embed|cls_token)(/|$)"
"""Paths of what comes before the first block."""


def layer_decay(
    decay: float, depth: int, stem: str = STEM
) -> tuple[dict[str, Any], ...]:
    """Rules for `config.optim.groups`: layer-wise learning rates (Bao et al., 2022).

    What lies in layer i learns at decay^(depth + 1 - i) of the rate: the stem is layer
    0, `blocks_i` layer i + 1, the last norm and the head, which no rule names, layer
    depth + 1.

    Args:
      decay: in (0, 1]; 0.65 to 0.75 are usual.
      depth: blocks of the model, a chain of them.
      stem: regular expression of the paths of layer 0.

    Raises:
      UserError: a decay or a depth that is not allowed.
    """
    if not 0 < decay <= 1:
        raise UserError(f"layer_decay: decay must lie in (0, 1], got {decay}")
    if depth < 1:
        raise UserError(f"layer_decay: depth must be at least 1, got {depth}")
    patterns = [stem, *(f"^blocks_{i}/" for i in range(depth))]
    return tuple(
        {"pattern": pattern, "learning_rate": decay ** (depth + 1 - i)}
        for i, pattern in enumerate(patterns)
    )
