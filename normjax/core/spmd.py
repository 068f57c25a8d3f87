"""What a function with a hand-written gradient owes to `shard_map`."""

from typing import Any

import jax


def match_varying(*trees: Any) -> tuple[Any, ...]:
    """The arguments, all varying over every mesh axis that one of them varies over.

    Inside `shard_map` a parameter is the same on all shards while the data differs. A
    `custom_vjp` rule gives the parameter's gradient of its own shard; the adjoint of
    the cast made here is the sum over the shards. Outside `shard_map` nothing happens.
    """
    leaves = jax.tree.leaves(trees)
    axes = frozenset().union(*(jax.typeof(leaf).mat.varying for leaf in leaves))

    def cast(leaf):
        missing = tuple(axes - jax.typeof(leaf).mat.varying)
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, trees)
