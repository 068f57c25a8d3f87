"""Retrain norms and biases after pruning; pruned weights stay zero, others as they are.

    python train.py --config=configs/digits.py --workdir=runs/dense
    python -m normjax.prune --workdir=runs/dense --config=configs/perp.py \\
        --sparsity=0.9 runs/perp
    python train.py --config=configs/perp.py --workdir=runs/perp

The setting of PERP (Zimmer et al., 2023). Takes the arguments of configs/digits.py,
which must be those of the dense run: `configs/perp.py:model=resnet,norm=batch_norm`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import digits


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config: Any = digits.get_config(arg)
    config.total_steps = min(config.total_steps, 300)
    config.optim.trainable = "norm|bias$"
    config.optim.lr = 1e-2
    config.optim.weight_decay = 0.0
    return config
