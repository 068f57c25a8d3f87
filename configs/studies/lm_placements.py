"""Where the norms of a language model sit: bits per byte, and variance by depth.

    python -m normjax.study configs/studies/lm_placements.py --workdir=runs/placements

A byte-level decoder of 12 layers with RMSNorm, 300 steps of 16 rows of 128 bytes, the
same recipe for all.
"""

from typing import Any

from configs.studies.lm_norms import small

PLACEMENTS = ("pre", "post", "sandwich", "mix", "peri", "scaled")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "pytext: bits per byte of held-out files, mean of 2 seeds",
        "rows": "placement",
        "seeds": (0, 1),
        "metric": "bits_per_byte",
        "percent": False,
        "layers": "activation_variance",
        "runs": {
            (placement, "rms_norm"): _config(placement) for placement in PLACEMENTS
        },
    }


def _config(placement: str) -> Any:
    arg = f"norm=rms_norm,placement={placement}"
    config = small(arg, depth=12, dim=64, num_heads=2, mlp_hidden=172)
    config.diagnostics_every = 100
    return config
