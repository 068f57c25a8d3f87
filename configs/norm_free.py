"""A network without norms: residual scaling, standardized weights, adaptive clipping.

    python train.py --config=configs/norm_free.py --workdir=runs/norm_free
    python train.py --config=configs/norm_free.py:model=vit --workdir=runs/norm_free_vit

On scanned digits, with what stands in for the norms in NFNets (Brock et al., 2021).
Arguments: model (norm_free_resnet or vit) and runlocal (20 steps, to see that it
works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import digits
from configs.common import parse_arg
from normjax.core.errors import UserError, one_of

LAYERS = {"norm_free_resnet": "conv|shortcut", "vit": "conv|qkv|proj|fc"}
"""Patterns of the layers whose weights are standardized, by model."""


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(arg, model="norm_free_resnet", runlocal=False)
    if choice["model"] not in LAYERS:
        raise UserError(one_of("model", choice["model"], LAYERS))
    small = ",runlocal" if choice["runlocal"] else ""
    config: Any
    if choice["model"] == "vit":
        config = digits.get_config(f"norm=none,placement=norm_free{small}")
        config.model.activation = "scaled_gelu"
    else:
        config = digits.get_config(f"model=resnet,norm=none{small}")
        config.model = ConfigDict(
            {
                "name": "norm_free_resnet",
                "activation": "scaled_relu",
                "norm": {"name": "none"},
                "depths": (4, 4),
                "widths": (16, 32),
                "block": "basic",
                "drop_path_rate": 0.0,
                "remat": False,
            }
        )
    rule = {"pattern": LAYERS[choice["model"]], "name": "scaled_weight_standardization"}
    config.reparam = (rule,)
    config.optim.adaptive_clip = 0.01
    config.optim.clip_norm = 0.0
    config.recalibrate_batches = 0
    return config
