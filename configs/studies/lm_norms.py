"""Norms in a byte-level language model, with and without the mask of padding.

    python -m normjax.study configs/studies/lm_norms.py --workdir=runs/lm_norms

300 steps of 16 rows of 128 bytes, the same recipe for all; one document a row, so that
the last row of each document is padded.
"""

from typing import Any

from configs import lm_bytes

NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "layer_norm": ("layer_norm", {}),
    "rms_norm": ("rms_norm", {}),
    "simple_rms_norm": ("simple_rms_norm", {}),
    "batch_norm": ("batch_norm", {}),
    "repbn": ("repbn", {}),
    "prepbn": ("prepbn", {}),
    "power_norm": ("power_norm", {}),
    "power_norm, no groups": ("power_norm", {"num_groups": 0}),
    "unified_norm": ("unified_norm", {}),
}
OF_TOKENS = ("layer_norm", "rms_norm", "simple_rms_norm")  # no mask in them


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "pytext: bits per byte of held-out files, mean of 2 seeds",
        "rows": "norm",
        "seeds": (0, 1),
        "metric": "bits_per_byte",
        "percent": False,
        "runs": {
            (row, column): _config(norm, arguments, masked)
            for row, (norm, arguments) in NORMS.items()
            for column, masked in (("masked", True), ("unmasked", False))
            if masked or row not in OF_TOKENS
        },
    }


def _config(norm: str, arguments: dict[str, Any], masked: bool) -> Any:
    config = small(f"norm={norm}", depth=4, dim=96, num_heads=3, mlp_hidden=256)
    config.model.norm.update(arguments)
    config.model.mask_norms = masked
    config.data.text.layout = "padded"
    config.recalibrate_batches = 10
    return config


def small(arg: str, **geometry: Any) -> Any:
    """A run of half a minute."""
    config: Any = lm_bytes.get_config(f"steps=300,{arg}")
    config.model.update(geometry)
    config.batch_size = 16
    config.eval_every = config.checkpoint.every = 300
    config.data.test_split = ""
    return config
