"""Retrain a part of a pruned network; pruned weights stay zero.

    python train.py --config=configs/digits.py --workdir=runs/dense
    python -m normjax.prune --workdir=runs/dense --config=configs/perp.py \\
        --sparsity=0.9 runs/perp
    python train.py --config=configs/perp.py --workdir=runs/perp

The settings of PERP (Zimmer et al., 2023). `train=` says what learns:
`norms_and_biases` (the default), `norms`, `biases`, `head` and `adapters` (low rank,
keeping zeros: of the classifier; of mixers and MLPs, beside norms and biases), or
`full`: all that is not zero. Takes the arguments of configs/digits.py as well, which
must be those of the dense run: `configs/perp.py:train=norms,norm=layer_norm`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import digits
from normjax.core.errors import UserError, one_of

ADAPTER = {"name": "mask_lora", "rank": 4, "alpha": 8.0}
TRAINED: dict[str, dict[str, Any]] = {
    "norms_and_biases": {"trainable": "norm|bias$", "lr": 1e-2},
    "norms": {"trainable": "norm", "lr": 1e-2},
    "biases": {"trainable": "(^|/)bias$", "lr": 1e-2},
    "head": {"trainable": "^head/lora_", "lr": 1e-2},
    "adapters": {"trainable": "lora_|norm|bias$", "lr": 1e-2},
    "full": {"transformations": ("keep_zeros",), "lr": 2e-3},
}
ADAPTED = {"head": "^head", "adapters": "mixer|mlp|conv"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    parts = (arg or "").split(",")
    kinds = [part.removeprefix("train=") for part in parts if part.startswith("train=")]
    kind = kinds[-1] if kinds else "norms_and_biases"
    if kind not in TRAINED:
        raise UserError(one_of("train", kind, TRAINED))
    rest = [part for part in parts if not part.startswith("train=")]
    config: Any = digits.get_config(",".join(rest))
    config.total_steps = min(config.total_steps, 300)
    config.optim.weight_decay = 0.0
    config.optim.update(TRAINED[kind])
    if kind in ADAPTED:
        config.reparam = ({"pattern": ADAPTED[kind], **ADAPTER},)
    return config
