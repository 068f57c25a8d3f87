"""Layers that are compiled once and run many times: one array for all of them.

A model that scans its layers names the modules in its attribute `scanned`: the first
axis of every variable inside counts layers. What is done to the weights of a layer is
then done to each.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax


class Runner(Protocol):
    """Another way to run scanned layers, such as `devices.pipeline.Pipeline`.

    Compared by value: what JAX has traced under one is not taken for another.
    """

    def can_run(self, layer: nn.Module, x: jax.Array) -> bool:
        """Whether it takes this call; else it is a scan."""
        ...

    def run(self, layer: nn.Module, depth: int, x: jax.Array, *arguments: Any) -> Any:
        """As `run_layers`."""
        ...


_runner: Any = jax.make_user_context()


@contextlib.contextmanager
def layers_run_by(runner: Runner | None) -> Iterator[None]:
    """Scanned layers that are traced meanwhile, in this thread, are run by `runner`."""
    with _runner(runner):
        yield


def run_layers(layer: nn.Module, depth: int, x: jax.Array, *arguments: Any) -> Any:
    """x_{i+1} = layer_i(x_i, *arguments), i < depth, of layers that are compiled once.

    Args:
      layer: bound, and not called yet; its variables get a first axis of layers.
      x: [B, ...] -> same.
      arguments: the same for all layers; arrays in them [B, ...].
    """
    runner = _runner.value
    if runner and runner.can_run(layer, x):
        return runner.run(layer, depth, x, *arguments)

    def body(layer, x, _):
        return layer(x, *arguments), None

    scan = nn.scan(body, variable_axes={True: 0}, split_rngs={True: True}, length=depth)
    return scan(layer, x, None)[0]


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
