"""Layers that are compiled once and run many times: one array for all of them.

A model that scans its layers names the modules in its attribute `scanned`: the first
axis of every variable inside counts layers. What is done to the weights of a layer is
then done to each.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax


def scanned_of(model: Any) -> tuple[str, ...]:
    """Names of the modules of `model` whose variables have a first axis of layers."""
    return getattr(model, "scanned", ())


def is_scanned(path: str, scanned: Collection[str]) -> bool:
    """Whether what lies at "blocks/mlp/fc1" is that of several layers."""
    return path.split("/")[0] in scanned


def per_layer(function: Callable, path: str, scanned: Collection[str]) -> Callable:
    """`function` of the arrays of a layer, for scanned ones over their first axis."""
    return jax.vmap(function) if is_scanned(path, scanned) else function


def split_layers(tree: Mapping[str, Any], scanned: Collection[str]) -> dict[str, Any]:
    """What lies under "blocks" as blocks_0, blocks_1, ... without that first axis."""
    found = {}
    for name, value in tree.items():
        leaves = jax.tree.leaves(value) if name in scanned else ()
        if not leaves:
            found[name] = value
        for i in range(len(leaves[0]) if leaves else 0):
            found[f"{name}_{i}"] = jax.tree.map(lambda x, i=i: x[i], value)
    return found


def paths_of_layers(path: str, scanned: Collection[str], depth: int) -> list[str]:
    """ "blocks/mlp/fc1" -> blocks_0/mlp/fc1, ...; one of no scanned layer -> itself."""
    if not is_scanned(path, scanned):
        return [path]
    first, slash, rest = path.partition("/")
    return [f"{first}_{i}{slash}{rest}" for i in range(depth)]
