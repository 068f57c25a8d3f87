"""What a conversion of a model does to its outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from normjax import fusion, models

VOCABULARY = 257


def pre_norm_conversion(seed: int, folder: Path, norm: str) -> Mapping[str, float]:
    """`difference`: max |logits of a converted decoder - those before| / max |logits|.

    A Pre-LN decoder of 4 layers of width 64 in float32, every parameter off its start.

    Args:
      seed: of parameters and tokens.  folder: not used.
      norm: "rms_norm" or "crms_norm".
    """
    size = {"dim": 64, "depth": 4, "num_heads": 2}
    model = models.build("decoder", vocab_size=VOCABULARY, norm="layer_norm", **size)
    tokens = jax.random.randint(jax.random.key(seed), (2, 32), 0, VOCABULARY)
    variables = jax.jit(model.init)(jax.random.key(seed + 1), tokens)
    # Scales of 1 and biases of 0 would hide what becomes of them.
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed + 2), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    variables = jax.tree.unflatten(structure, moved)
    new = fusion.convert_pre_norm(model, variables, norm)
    before: Any = model.apply(variables, tokens)
    after: Any = new.model.apply(new.variables, tokens)
    gap = jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before))
    return {"difference": float(gap)}
