"""What studies of claims share: small runs of one recipe."""

from typing import Any

from configs import digits, lm_bytes

STEPS = 500
"""Of a small run, unless a study says another number."""


def vit(arg: str = "", steps: int = STEPS, **model: Any) -> Any:
    """A vision transformer of 2 layers of width 32 on scanned digits.

    Args:
      arg: of configs/digits.py.  model: fields of `config.model`.
    """
    config: Any = digits.get_config(_with(arg, norm="layer_norm", mixer="softmax"))
    config.model.update({"dim": 32, "depth": 2, "num_heads": 2, **model})
    return _short(config, steps)


def resnet(arg: str = "", steps: int = STEPS, **model: Any) -> Any:
    """A residual network of 2 and 2 blocks of 16 and 32 channels on scanned digits."""
    config: Any = digits.get_config(_with(f"model=resnet,{arg}", norm="batch_norm"))
    config.model.update({"depths": (2, 2), **model})
    return _short(config, steps)


def decoder(arg: str = "", steps: int = STEPS, **model: Any) -> Any:
    """A decoder of 3 layers of width 64 on the bytes of Python's standard library.

    Rows of 64 bytes, 16 a batch.
    """
    config: Any = lm_bytes.get_config(f"steps={steps},{_with(arg, norm='rms_norm')}")
    small = {"dim": 64, "depth": 3, "num_heads": 2, "mlp_hidden": 172}
    config.model.update({**small, **model})
    config.batch_size, config.data.test_split = 16, ""
    config.data.text.length = 64
    config.eval_every = config.checkpoint.every = steps
    return config


def _with(arg: str, **defaults: str) -> str:
    given = dict(part.split("=") for part in arg.split(",") if part)
    return ",".join(f"{key}={value}" for key, value in {**defaults, **given}.items())


def _short(config: Any, steps: int) -> Any:
    config.total_steps, config.batch_size = steps, 64
    config.eval_every = config.checkpoint.every = steps
    config.recalibrate_batches = 10
    return config


def changed(config: Any, **fields: Any) -> Any:
    """The config with dotted fields, "__" for the dot, as in optim__lr=0.1."""
    for name, value in fields.items():
        *sections, field = name.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[field] = value
    return config
