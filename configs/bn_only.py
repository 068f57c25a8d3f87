"""Train scales and offsets of BatchNorms only; all other weights stay random.

    python train.py --config=configs/bn_only.py --workdir=runs/bn_only

A residual network on scanned digits whose convolutions and classifier keep the values
that they start with (Frankle, Schwab & Morcos, 2021). The statistics of the norms
follow the batches as ever. Argument: runlocal (20 steps, to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import digits
from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(arg, runlocal=False)
    small = ",runlocal" if choice["runlocal"] else ""
    config: Any = digits.get_config(f"model=resnet,norm=batch_norm{small}")
    config.model.widths = (32, 64)
    config.optim.trainable = "norm/(scale|bias)$"
    config.optim.lr = 0.1
    config.optim.weight_decay = 0.0
    return config
