"""Every optimizer, each at the best of three learning rates.

    python -m normjax.study optimizers --workdir=runs/optimizers [--only=ViT]

A vision transformer and a residual network on scanned digits (200 updates of 64) and a
decoder on bytes (200 updates of 16 rows): the first seed tries a usual rate of the
optimizer, a third of it and three times as much, and all three seeds take the best.
"""

from typing import Any

from configs.studies.common import decoder, resnet, vit
from normjax.study.cells import Measure

RATES: dict[str, tuple[float, dict[str, Any]]] = {
    "adamw": (3e-3, {}),
    "lion": (3e-4, {}),
    "sgd": (0.1, {}),
    "adamp": (3e-3, {}),
    "sgdp": (0.1, {"beta1": 0.9}),
    "normuon": (1e-2, {}),
    "stable_spam": (3e-3, {}),
    "subset_norm": (3e-2, {}),
    "subspace_momentum": (3e-2, {"rank": 8, "interval": 50}),
    "galore": (1e-2, {"rank": 8, "interval": 50}),
    "gradnormlorp": (1e-2, {"rank": 8, "interval": 50}),
    "clipped_adam": (3e-3, {}),
    "clipped_adagrad": (3e-2, {}),
    "clipped_adagrad_norm": (1.0, {}),
    "adagrad_unit_norm": (0.1, {}),
}
"""A usual learning rate, and arguments that small models need."""
STEPS, EVALUATIONS = 200, 5


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    hosts = {"ViT": vit, "ResNet": resnet, "decoder": decoder}
    return {
        "title": "loss on held-out data at the best of three learning rates",
        "rows": "optimizer",
        "metric": "nll",
        "percent": False,
        "curves": "eval_nll",
        "runs": {
            (name, host): Measure("best_rate", _search(make(steps=STEPS), name))
            for name in RATES
            for host, make in hosts.items()
        },
    }


def _search(config: Any, name: str) -> dict[str, Any]:
    rate, arguments = RATES[name]
    config.optim.update({"name": name, **arguments})
    config.eval_every = STEPS // EVALUATIONS
    config.checkpoint.every = STEPS
    return {"config": config, "rates": (rate / 3, rate, 3 * rate)}
