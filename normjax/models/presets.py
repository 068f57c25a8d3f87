"""Named models: a model of the registry and its arguments, nothing else."""

from typing import Any


def _deit(dim: int, num_heads: int, **other: Any) -> dict[str, Any]:
    geometry = {"depth": 12, "dim": dim, "num_heads": num_heads, "mlp_ratio": 4.0}
    return {"name": "vit", **geometry, **other}


_SLAB = {"norm": {"name": "prepbn", "decay_steps": 60_000}, "mixer": "sla"}

PRESETS: dict[str, dict[str, Any]] = {
    "deit_tiny": _deit(192, 3, pool="cls"),
    "deit_small": _deit(384, 6, pool="cls"),
    "deit_base": _deit(768, 12, pool="cls"),
    "slab_deit_tiny": _deit(192, 3, pool="mean", **_SLAB),
    "slab_deit_small": _deit(384, 6, pool="mean", **_SLAB),
}
