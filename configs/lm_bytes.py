"""A byte-level language model of Python's standard library: minutes on two cores.

    python train.py --config=configs/lm_bytes.py --workdir=runs/lm
    python train.py --config=configs/lm_bytes.py:norm=prepbn,mixer=gated_linear ...
    python eval.py --workdir=runs/lm --split=test

Arguments: model (a preset of decoders), norm, mixer, placement, steps, and runlocal (20
steps, to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import language_config, norm_config, parse_arg, small_recipe

CHOICES = {
    "model": "lm_tiny",
    "norm": "rms_norm",
    "mixer": "softmax",
    "placement": "pre",
    "steps": 900,
    "runlocal": False,
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    return small_run(parse_arg(arg, **CHOICES))


def small_run(choice: dict[str, Any]) -> Any:
    """The run of `choice`, which has values for the keys of CHOICES."""
    config = language_config()
    config.batch_size = 32
    config.total_steps = choice["steps"]
    config.eval_every = config.checkpoint.every = 300
    config.model.name = choice["model"]
    config.model.norm = norm_config(choice["norm"])
    config.model.mixer = ConfigDict({"name": choice["mixer"]})
    config.model.placement = choice["placement"]
    small_recipe(config, runlocal=choice["runlocal"])
    return config
