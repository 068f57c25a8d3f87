"""A small network on scikit-learn's scanned digits: minutes on two cores.

    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/digits.py:norm=layer_norm,mixer=softmax ...
    python train.py --config=configs/digits.py:model=resnet,norm=batch_norm ...
    python eval.py --workdir=runs/digits --fold

Arguments: model (vit or resnet), norm, for vit mixer and placement, and runlocal (20
steps, to see that it works).
"""

from ml_collections import ConfigDict

from configs.common import image_config, norm_config, parse_arg
from normjax.core.errors import UserError, one_of


def _vit(choice: dict) -> ConfigDict:
    return ConfigDict(
        {
            "name": "vit",
            "activation": "gelu",
            "dim": 64,
            "depth": 4,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "pool": "mean",
            "placement": choice["placement"],
            "drop_path_rate": 0.0,
            "dropout_rate": 0.0,
            "remat": False,
            "norm": norm_config(choice["norm"]),
            "mixer": {"name": choice["mixer"]},
            "stem": {"name": "conv", "strides": (2, 1)},
        }
    )


def _resnet(choice: dict) -> ConfigDict:
    """89,402 parameters with BatchNorm."""
    return ConfigDict(
        {
            "name": "resnet",
            "activation": "relu",
            "depths": (4, 4),
            "widths": (16, 32),
            "block": "basic",
            "shortcut": "project",
            "drop_path_rate": 0.0,
            "remat": False,
            "norm": norm_config(choice["norm"]),
            "stem": {"name": "conv_unit", "stride": 1},
        }
    )


MODELS = {"vit": _vit, "resnet": _resnet}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(
        arg, model="vit", norm="prepbn", mixer="sla", placement="pre", runlocal=False
    )
    if choice["model"] not in MODELS:
        raise UserError(one_of("model", choice["model"], MODELS))
    config = image_config()
    config.total_steps = 1000
    config.data.name = "digits"
    config.recalibrate_batches = 50
    config.data.augment.crop_padding = 1
    config.data.label_smoothing = 0.05
    config.model = MODELS[choice["model"]](choice)
    config.optim.lr = 2e-3
    if choice["runlocal"]:
        config.total_steps = 20
        config.batch_size = 16
        config.log_every = 5
        config.eval_every = config.checkpoint.every = 10
    return config
