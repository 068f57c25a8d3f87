"""Lines of scanned digits, read by CTC: minutes on two cores.

    python train.py --config=configs/digit_lines.py --workdir=runs/lines
    python train.py --config=configs/digit_lines.py:norm=prepbn ...
    python train.py --config=configs/digit_lines.py:variant=sviptr_v2_t ...

Arguments: variant (small, which has the shape of SVIPTR's second version, or one of
its presets), norm (of small), length (digits of the longest line), steps, and runlocal
(20 steps, to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, norm_config, parse_arg, small_recipe
from normjax.core.errors import UserError, one_of
from normjax.families import SVIPTR

_NEAR_AND_FAR = (
    {"name": "cross_shaped_window", "split_size": 2},
    {"name": "overlapping_spatial_reduction", "sr_ratio": 2},
)


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice: Any = parse_arg(
        arg, variant="small", norm="layer_norm", length=8, steps=1500, runlocal=False
    )
    if choice["variant"] != "small" and choice["variant"] not in SVIPTR.presets:
        raise UserError(one_of("variant", choice["variant"], SVIPTR.presets))
    config = base_config("line_recognition")
    config.batch_size = 32
    config.total_steps = choice["steps"]
    config.eval_every = config.checkpoint.every = 500

    data = config.data
    data.name, data.length = "digit_lines", choice["length"]
    data.eval_split = "test"

    model = config.model
    if choice["variant"] == "small":
        model.name, model.dims, model.depths = "text_line", (32, 48, 64), (1, 1, 1)
        model.num_heads, model.mlp_ratio, model.hidden = (2, 2, 2), 2.0, 64
        model.norm = norm_config(choice["norm"])
        units = {"hidden": (16,), "strides": (2, 2), "pool": False}
        model.stem = ConfigDict({"name": "conv_units", **units})
        stripes = {"name": "cross_shaped_window", "split_size": 1}
        model.mixer = (stripes, _NEAR_AND_FAR, "softmax")
    else:
        model.name = choice["variant"]
        model.norm = ConfigDict(SVIPTR.presets[model.name]["norm"])
        recipe = SVIPTR.recipe_of(model.name)
        model.drop_path_rate = recipe.drop_path if recipe else 0.0

    small_recipe(config, runlocal=choice["runlocal"])
    return config
