"""Learning rates that fall from the head to the stem, for fine-tuning. No jax here."""

from typing import Any

from normjax.core.errors import UserError

STEM = r"^(stem(_conv\d+)?|embed|pos_embed(_0)?|cls_token|dist_token)(/|$)"
"""Paths of what comes before the first block."""


def layer_decay(
    decay: float, depth: int | tuple[int, ...], stem: str = STEM
) -> tuple[dict[str, Any], ...]:
    """Rules for `config.optim.groups`: layer-wise learning rates (Bao et al., 2022).

    What lies in layer i of n learns at decay^(n + 1 - i) of the rate: the stem is layer
    0, the blocks are layers 1 to n, the last norm and the head, which no rule names,
    layer n + 1. A merge, with its table of positions, and the norm of a stage belong to
    the block before them, queries of a whole stage to its first block.

    Args:
      decay: in (0, 1]; 0.65 to 0.75 are usual.
      depth: blocks of the model, `blocks_i`; or of each stage, `blocks_s_i`.
      stem: regular expression of the paths of layer 0.

    Raises:
      UserError: a decay or a depth that is not allowed.

    Example:
      >>> from normjax import optim
      >>> rules = optim.layer_decay(0.5, depth=2)
      >>> [(rule["pattern"][:9], rule["learning_rate"]) for rule in rules[1:]]
      [('^blocks_0', 0.25), ('^blocks_1', 0.5)]
    """
    stages = (depth,) if isinstance(depth, int) else tuple(depth)
    if not 0 < decay <= 1:
        raise UserError(f"layer_decay: decay must lie in (0, 1], got {decay}")
    if not stages or min(stages) < 1:
        raise UserError(f"layer_decay: depth must be at least 1, got {depth}")
    patterns = [stem]
    for stage, count in enumerate(stages):
        blocks = "blocks" if isinstance(depth, int) else f"blocks_{stage}"
        patterns += [f"^{blocks}_{i}/" for i in range(count)]
        if len(stages) > 1:
            patterns[-count] += f"|^queries_{stage}/"
        if stage < len(stages) - 1:
            after = f"norm_{stage}/|^merge_{stage + 1}/|^pos_embed_{stage + 1}$"
            patterns[-1] += f"|^{after}"
    total = sum(stages)
    return tuple(
        {"pattern": pattern, "learning_rate": decay ** (total + 1 - i)}
        for i, pattern in enumerate(patterns)
    )
