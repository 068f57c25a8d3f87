"""`python -m tests.site.measure [NAME ...]` writes docs/catalogue.json.

What the catalogue draws and counts of norms and mixers: which entries of the input one
entry of the output depends on, parameters, multiply-adds. Without names only what is
missing is measured.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax import mixers, norms
from normjax.core.arguments import field_names
from normjax.core.errors import UserError
from normjax.core.operations import multiply_adds
from normjax.core.registry import Entry, Registry
from tests.api.names import ROOT

FILE = ROOT / "docs/catalogue.json"
SMALL: dict[str, Any] = {"num_groups": 2, "group_size": 2, "window": 4, "num_heads": 4}
"""Arguments that show on arrays as small as those that are drawn."""
PARTICULAR: dict[str, dict[str, Any]] = {
    "prepbn": {"warmup_steps": 1, "decay_steps": 9},
    "factorization": {"num_heads": 7},
    "halo": {"block_size": 7, "halo_size": 2},
    "aggregated": {"sr_ratio": 7},
}
WIDTH, HEADS, SIDES = 192, 3, (14, 32, 64)
"""Of what is counted: those of `python -m normjax.bench mixers`."""
CHOSEN = (1, 1, 2)
"""The example, position and channel of the output whose causes are drawn."""
LEVELS = 9


def kept() -> dict[str, dict[str, Any]]:
    """What the file says, by kind and name."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"norm": {}, "mixer": {}}


def measured(kind: str, name: str) -> dict[str, Any]:
    """Of a norm or mixer."""
    with jax.default_matmul_precision("highest"):
        return norm(norms.NORMS[name]) if kind == "norm" else mixer(mixers.MIXERS[name])


def norm(entry: Entry) -> dict[str, Any]:
    """Its causes in training and at evaluation, its parameters and its state.

    A cause is an entry of x [4, 4, 6] whose change changes the chosen entry of y.
    """
    small = norms.build(entry.name, **_small(entry))()
    shape = (4, 4, 6) if "seq" in entry.tags else (4, 1, 4, 6)
    size = jax.random.uniform(jax.random.key(0), shape, minval=0.5, maxval=1.5)
    x = size * jax.random.rademacher(jax.random.key(1), shape)
    variables = small.init(jax.random.key(1), x, train=False)

    def causes(train: bool) -> str:
        @jax.jit
        def chosen(x):
            y, _ = small.apply(variables, x, train=train, mutable=True)
            return y.reshape(4, 4, 6)[CHOSEN]

        moved = jax.vmap(lambda e: chosen(x + e.reshape(shape)))
        steps = (3 * jnp.eye(x.size), -2 * jnp.eye(x.size))
        changes = sum(abs(moved(step) - chosen(x)) for step in steps)
        return "".join("01"[int(change > 2e-6)] for change in changes)

    wide = jax.ShapeDtypeStruct((*shape[:-1], 64), jnp.float32)
    module = norms.build(entry.name, **PARTICULAR.get(entry.name, {}))()
    made = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), wide
    )
    return {
        "training": causes(True),
        "evaluation": causes(False),
        "parameters": _leaves(made.get("params", {})),
        "state": [
            f"{collection}/{leaf}"
            for collection in made
            if collection != "params"
            for leaf in _leaves(made[collection])
        ],
    }


def _leaves(tree: Any) -> list[str]:
    """`scale [C]` of each array; 64 is C."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(str(getattr(p, "key", p)) for p in path)
        axes = ", ".join("C" if n == 64 else str(n) for n in leaf.shape)
        found.append(f"{name} [{axes}]")
    return found


def mixer(entry: Entry) -> dict[str, Any]:
    """What a position reads, its parameters and multiply-adds by the number of tokens.

    Of a map [14, 14] the size of the gradient of the position (5, 4) by every other, of
    a sequence of 14 tokens that of each by each, in levels of 0 to 9 of its root.
    """
    grid = "grid" in entry.tags and "seq" not in entry.tags
    shape = (1, 14, 14, 64) if grid else (1, 14, 64)
    arguments = _small(entry)
    width = 56 if entry.name == "factorization" else 64
    x = jax.random.normal(jax.random.key(0), (*shape[:-1], width))
    module = mixers.build(entry.name, **arguments)()
    weights = jax.random.normal(jax.random.key(2), (width,))

    @jax.jit
    def sizes(x):
        variables = module.init(jax.random.key(1), x)
        flat, back = jax.vjp(lambda x: module.apply(variables, x), x)
        chosen = [(0, 5, 4)] if grid else [(0, i) for i in range(14)]
        gradients = [back(jnp.zeros_like(flat).at[at].set(weights))[0] for at in chosen]
        return jnp.linalg.norm(jnp.stack(gradients), axis=-1)

    found = np.asarray(sizes(x)).reshape(14, 14)
    levels = np.ceil(LEVELS * np.sqrt(found / found.max()) - 1e-3).astype(int)
    return {
        "reads": ["".join(map(str, row)) for row in levels.tolist()],
        "map": grid,
        **_cost(entry),
    }


def _cost(entry: Entry) -> dict[str, Any]:
    """Parameters at 196 tokens and multiply-adds at 196, 1,024 and 4,096, if any."""
    given = {"num_heads": HEADS, "layer": 0, "num_layers": 2}
    arguments = {k: v for k, v in given.items() if k in field_names(entry.make)}
    counts: dict[str, int] = {}
    parameters = None
    for side in SIDES:
        shape = (side, side) if "grid" in entry.tags else (side * side,)
        x = jax.ShapeDtypeStruct((1, *shape, WIDTH), jnp.float32)
        try:
            module = mixers.build(entry.name, **arguments)()
            made = jax.eval_shape(lambda x, m=module: m.init(jax.random.key(0), x), x)
            counts[str(side * side)] = multiply_adds(module.apply, made, x)
        except (UserError, ValueError):  # a map that its windows do not cover
            continue
        if side == SIDES[0]:
            leaves = jax.tree.leaves(made.get("params", {}))
            parameters = sum(leaf.size for leaf in leaves)
    return {"parameters": parameters, "multiply_adds": counts}


def _small(entry: Entry) -> dict[str, Any]:
    given = {k: v for k, v in SMALL.items() if k in field_names(entry.make)}
    return given | PARTICULAR.get(entry.name, {})


def _missing(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    registries: dict[str, Registry] = {"norm": norms.NORMS, "mixer": mixers.MIXERS}
    for kind, registry in registries.items():
        for entry in registry:
            if entry.name not in known[kind]:
                yield kind, entry.name


def main(names: list[str]) -> None:
    known = kept()
    for name in names:
        for kind in known:
            known[kind].pop(name, None)
    for kind, name in _missing(known):
        known[kind][name] = measured(kind, name)
        print(kind, name)
    rows = []
    for kind, entries in known.items():
        lines = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(entries[name])}"
            for name in sorted(entries)
        )
        rows.append(f"{json.dumps(kind)}: {{\n{lines}\n}}")
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
