"""Time and state of an update by every optimizer, beside optax's AdamW."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax import models, optim
from normjax.bench.sizes import TINY, device_name, sizes_for
from normjax.core.collections import PARAMS
from normjax.core.errors import UserError, one_of
from normjax.core.timing import alternate
from normjax.records import report

ROUNDS = 5
HOSTS = {
    "deit_small": {"num_classes": 1000},
    "lm_70m": {},
}
SMALL_HOSTS = {"deit_tiny": {"num_classes": 10, "depth": 1}}
PEER = "optax.adamw"


def optimizers_command(argv: Sequence[str]) -> int:
    """`optimizers [NAME ...]`: an update of DeiT-S and of a decoder of 70 M.

    Each in turns with optax.adamw; in ms, as a multiple of AdamW's, and the bytes that
    an optimizer keeps as a multiple of those of the parameters.
    """
    names, sizes = sizes_for(argv)
    known = [entry.name for entry in optim.OPTIMIZERS]
    for name in names:
        if name not in known:
            raise UserError(one_of("optimizer", name, known))
    for host, arguments in (SMALL_HOSTS if sizes is TINY else HOSTS).items():
        params = _parameters(host, arguments)
        rows = [
            (name, *measure(name, params, sizes.repeats)) for name in names or known
        ]
        count = sum(x.size for x in jax.tree.leaves(params))
        title = f"{device_name()}: an update of {host}, {count / 1e6:.1f} M parameters"
        columns = ("optimizer", "ms", f"/ {PEER}", "state / parameters")
        report.table(title, columns, rows)
    return 0


def _parameters(host: str, arguments: dict[str, Any]) -> Any:
    model = models.build(host, **arguments)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    x = image if "num_classes" in arguments else tokens
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)[PARAMS]
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        0.02 * jax.random.normal(key, x.shape)
        for key, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def measure(name: str, params: Any, repeats: int) -> tuple[float, float, float]:
    """(ms, multiple of optax's AdamW, bytes of the state by those of the parameters).

    Updates run in place, one after the other, as in the loop.
    """
    ours = _Updates(optim.OPTIMIZERS[name].make(1e-3, None), params)
    theirs = _Updates(optax.adamw(1e-3), params)
    state = sum(x.nbytes for x in jax.tree.leaves(ours.kept[1]))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    seconds = alternate({name: ours, PEER: theirs}, ROUNDS, repeats)
    return 1e3 * seconds[name], seconds[name] / seconds[PEER], state / size


class _Updates:
    """An update at every call, of its own parameters and state."""

    def __init__(self, optimizer: optax.GradientTransformation, params: Any):
        self.gradients = jax.tree.map(lambda x: 0.1 * x, params)
        own = jax.tree.map(jnp.copy, params)
        self.kept = own, jax.jit(optimizer.init)(own)

        def update(kept, gradients):
            params, state = kept
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self._update = jax.jit(update, donate_argnums=0)

    def __call__(self) -> Any:
        self.kept = self._update(self.kept, self.gradients)
        return self.kept
