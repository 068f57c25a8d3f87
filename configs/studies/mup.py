"""The best learning rate by the width, with and without muP, on scanned digits.

    python -m normjax.study configs/studies/mup.py --workdir=runs/mup

A vision transformer of two layers at widths of 64 to 512, heads of 32 channels, 80
steps of 16 digits. First the coordinate check: how much the outputs of layers move in
four updates (coordinates.png).
"""

from typing import Any

from configs import digits

WIDTHS = (64, 128, 256, 512)
RATES = ("1e-3", "3e-3", "1e-2", "3e-2")
BASE = 64
KINDS = {"muP": BASE, "standard": 0}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: test loss by learning rate and width",
        "rows": "width",
        "seeds": (0,),
        "metric": "nll",
        "percent": False,
        "axis": "learning rate at the base width",
        "coordinates": {
            (kind, width): _config(base, width, "1e-2")
            for kind, base in KINDS.items()
            for width in WIDTHS
        },
        "runs": {
            (f"{kind} {width}", rate): _config(base, width, rate)
            for kind, base in KINDS.items()
            for width in WIDTHS
            for rate in RATES
        },
    }


def _config(base: int, width: int, rate: str) -> Any:
    config: Any = digits.get_config("norm=layer_norm,mixer=softmax")
    config.total_steps, config.batch_size = 80, 16
    config.eval_every = config.checkpoint.every = 80
    config.model.update(dim=width, depth=2, num_heads=width // 32)
    config.optim.lr, config.optim.mup_base_width = float(rate), base
    return config
