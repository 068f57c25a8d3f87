"""What folding saves: PRepBN against LayerNorm, by time on a CPU and cycles of a TPU.

    python -m normjax.study fold_time --workdir=runs/fold_time

A vision transformer of 2 layers of width 192 at 224 pixels, nothing trained. Time of
the float32 model in turns with that of LayerNorm; cycles of a v5e in bfloat16 by the
schedule of the compiler, which libtpu brings.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from normjax.study.claims import Claim

BATCH, SIDE, ROUNDS = 8, 224, 11
BASE = ("layer_norm", False)
KINDS = {"prepbn": ("prepbn", False), "prepbn, folded": ("prepbn", True)}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    claim = Claim(
        "Folded, a model with PRepBN is faster than one with LayerNorm (CPU).",
        "SLAB (Guo et al., 2024)",
        "SLAB-Swin 16.2 ms, 2.4 ms less than FLatten-Swin (GPU)",
        1.0,
        ("prepbn, folded", "CPU"),
    )
    by_cycles = claim._replace(
        statement="The same, by the cycles of a TPU v5e.",
        less=("prepbn, folded", "v5e"),
    )
    return {
        "title": "inference: time or cycles / those with LayerNorm",
        "rows": "norm",
        "metric": "ratio",
        "percent": False,
        "runs": {
            (row, column): measure(*kind)
            for row, kind in KINDS.items()
            for column, measure in (("CPU", _timed), ("v5e", _scheduled))
        },
        "claims": (claim, by_cycles),
    }


def _model(norm: str, folded: bool, dtype: str) -> tuple[Any, Any]:
    import warnings

    import jax
    import jax.numpy as jnp

    from normjax import fusion, models

    steps = {"decay_steps": 1} if norm == "prepbn" else {}
    model = models.build(
        "deit_tiny",
        num_classes=1000,
        depth=2,
        norm={"name": norm, **steps},
        dtype=jnp.dtype(dtype),
    )
    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes)
    if folded:
        with warnings.catch_warnings():
            # Nothing was trained: decays stand at their start.
            warnings.simplefilter("ignore", fusion.UnfinishedDecay)
            model, variables = fusion.fold(model, variables)
    return model, variables


def _timed(norm: str, folded: bool) -> Callable[[int, Path], Mapping[str, float]]:
    def measure(seed: int, folder: Path) -> Mapping[str, float]:
        import jax

        from normjax.core.timing import alternate

        images = jax.random.uniform(jax.random.key(seed), (BATCH, SIDE, SIDE, 3))
        calls = {}
        for kind in (BASE, (norm, folded)):
            model, variables = _model(*kind, "float32")
            run = jax.jit(model.apply)
            calls[kind] = lambda run=run, given=variables: run(given, images)
        seconds = alternate(calls, ROUNDS)
        return {"ratio": seconds[norm, folded] / seconds[BASE]}

    return measure


def _scheduled(norm: str, folded: bool) -> Callable[[int, Path], Mapping[str, float]]:
    def measure(seed: int, folder: Path) -> Mapping[str, float]:
        import jax.numpy as jnp

        from normjax.plan.schedule import schedule

        images = jnp.zeros((BATCH, SIDE, SIDE, 3))
        own, base = (
            schedule(model.apply, variables, images).cycles
            for model, variables in (
                _model(norm, folded, "bfloat16"),
                _model(*BASE, "bfloat16"),
            )
        )
        return {"ratio": own / base}

    return measure
