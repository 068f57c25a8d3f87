"""An encoder-decoder that turns strings around: minutes on two cores.

    python train.py --config=configs/transduction.py --workdir=runs/transduction
    python train.py --config=configs/transduction.py:norm=power_norm,placement=post ...

The source is a random string, the target the same backwards in the other case; see
`normjax.data.transduction`. Arguments: norm, placement, steps, and runlocal (20 steps,
to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, norm_config, parse_arg, small_recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice: Any = parse_arg(
        arg, norm="power_norm", placement="pre", steps=1000, runlocal=False
    )
    config = base_config("transduction")
    config.batch_size = 64
    config.total_steps = choice["steps"]
    config.eval_every = config.checkpoint.every = 500

    data = config.data
    data.name = "reversed_case"
    data.eval_split = "validation"
    data.test_split = "test"

    model = config.model
    model.name = "transduction_tiny"
    model.norm = norm_config(choice["norm"])
    model.mixer = ConfigDict({"name": "softmax"})
    model.placement = choice["placement"]

    small_recipe(config, runlocal=choice["runlocal"])
    return config
