"""Every optimizer, each with three learning rates.

    python -m normjax.study optimizers --workdir=runs/optimizers [--only=ViT]

A vision transformer and a residual network on scanned digits (200 updates of 64) and a
decoder on bytes (200 updates of 16 rows): a usual rate of the optimizer, a third of it
and three times as much, one seed. The best of a row is what it is worth at this budget.
"""

from typing import Any

from configs.studies.common import changed, decoder, resnet, vit

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
FACTORS = {"/ 3": 1 / 3, "": 1.0, "x 3": 3.0}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    hosts = {"ViT": vit, "ResNet": resnet, "decoder": decoder}
    return {
        "title": "loss on held-out data by optimizer and learning rate",
        "rows": "optimizer",
        "seeds": (0,),
        "metric": "nll",
        "percent": False,
        "runs": {
            (name, f"{host} {text}".strip()): changed(
                _with(make(), name, arguments), optim__lr=rate * factor
            )
            for name, (rate, arguments) in RATES.items()
            for host, make in hosts.items()
            for text, factor in FACTORS.items()
        },
    }


def _with(config: Any, name: str, arguments: dict[str, Any]) -> Any:
    config.optim.update({"name": name, **arguments})
    return config
