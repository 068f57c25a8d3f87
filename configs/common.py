"""What all configs share: reading the argument string, and what they begin with.

A config is chosen as `--config=configs/digits.py:norm=prepbn,mixer=sla,runlocal`. What
follows the colon are choices that change several fields; single fields are overridden
as `--config.optim.lr=1e-3`. The fields themselves are declared in
`normjax/config/sections.py`, and listed in docs/config.md.
"""

from typing import Any

from ml_collections import ConfigDict

from normjax.config.fields import default_config
from normjax.core.errors import UserError, one_of
from normjax.core.schedules import norm_schedule


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Read "norm=prepbn,depth=4,runlocal" into a dict typed like `defaults`.

    Args:
      arg: comma-separated `key=value`; a bare `key` sets a flag.
      **defaults: every key that is allowed, with its default.

    Raises:
      UserError: unknown key, or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, given, text = item.partition("=")
        if key not in defaults:
            raise UserError(one_of("config argument", key, defaults))
        default = defaults[key]
        if isinstance(default, bool):
            if text not in ("", "true", "false"):
                raise UserError(
                    f"config argument {key!r} takes true or false: {text!r}"
                )
            values[key] = text != "false"
            continue
        try:
            values[key] = type(default)(text)
        except ValueError:
            kind = type(default).__name__
            raise UserError(
                f"config argument {key!r} takes a {kind}: {text!r}"
            ) from None
        if not given:
            raise UserError(f"config argument {key!r} needs a value: {key}=...")
    return values


def norm_config(name: str) -> ConfigDict:
    """The norm called `name`, with the fields of its schedule where it has one."""
    return ConfigDict({"name": name, **norm_schedule(name)})


def base_config(task: str = "") -> Any:
    """Every field that the runs of a task have, or all runs, with neutral values."""
    return default_config(task)


def image_config() -> Any:
    """Every field that a run of image classification has, with neutral values."""
    config = base_config("image_classification")
    config.data.name = "digits"  # digits, image_folder or the name of a TFDS set
    config.data.eval_split = "test"

    model = config.model
    model.name = "vit"
    model.norm = norm_config("layer_norm")
    model.mixer = ConfigDict({"name": "softmax"})
    model.activation = "gelu"
    model.stem = ConfigDict({"name": "patch"})
    return config


def language_config() -> Any:
    """Every field that a run of language modeling has, with neutral values."""
    config = base_config("language_modeling")
    config.data.name = "pytext"  # pytext, text_file or the name of a TFDS set
    config.data.eval_split = "validation"
    config.data.test_split = "test"

    model = config.model
    model.name = "lm_tiny"
    model.norm = norm_config("rms_norm")
    model.mixer = ConfigDict({"name": "softmax"})
    return config


def small_recipe(config: Any, *, runlocal: bool) -> None:
    """Optimizer of the small models of sequences; `runlocal`: 20 steps of it."""
    config.optim.lr = 3e-3
    config.optim.beta2 = 0.99
    config.optim.weight_decay = 0.1
    if runlocal:
        config.total_steps, config.batch_size, config.log_every = 20, 8, 5
        config.eval_every = config.checkpoint.every = 10
