"""A transformer or a ResNet on CIFAR-10, an image folder or a prepared TFDS set.

    python train.py --config=configs/cifar10.py --workdir=runs/cifar10
    python train.py --config=configs/cifar10.py:path=CIFAR10.zip --workdir=runs/cifar10
    python train.py --config=configs/cifar10.py:model=resnet,norm=batch_norm ...

Arguments: model (vit, or resnet: a small one for minutes on two cores), norm, mixer (of
the transformer), path (a folder or zip with train/ and test/ class folders; empty: the
TFDS set cifar10), and runlocal (a small model, 200 steps).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import image_config, norm_config, parse_arg
from normjax.core.errors import UserError, one_of


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(
        arg, model="vit", norm="prepbn", mixer="sla", path="", runlocal=False
    )
    if choice["model"] not in MODELS:
        raise UserError(one_of("model", choice["model"], MODELS))
    config = image_config()
    config.data.name = "image_folder" if choice["path"] else "cifar10"
    config.data.path = choice["path"]
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.augment.update(crop_padding=4, flip=True)
    config.data.label_smoothing = 0.1
    MODELS[choice["model"]](config, choice)
    if choice["runlocal"]:
        config.total_steps = 200
        config.batch_size = 64
        config.data.augment.rand_augment_ops = 0
        config.eval_every = config.checkpoint.every = 100
        config.recalibrate_batches = 10
    return config


def _vit(config: Any, choice: dict) -> None:
    small = choice["runlocal"]
    config.total_steps = 40_000
    config.batch_size = 256
    config.recalibrate_batches = 100
    config.data.augment.rand_augment_ops = 2
    config.data.mixup_alpha = 0.2
    config.model.update(
        dim=128 if small else 256,
        depth=3 if small else 8,
        num_heads=4,
        mlp_ratio=2.0,
        pool="mean",
        placement="pre",
        drop_path_rate=0.1,
        dropout_rate=0.0,
        remat=False,
        norm=norm_config(choice["norm"]),
        mixer=ConfigDict({"name": choice["mixer"]}),
        stem=ConfigDict({"name": "conv", "strides": (2, 2)}),
    )
    config.ema_decay = 0.999


def _resnet(config: Any, choice: dict) -> None:
    """Eight epochs."""
    config.total_steps = 3_200
    config.batch_size = 128
    config.eval_every = config.checkpoint.every = 800
    config.model = ConfigDict(
        {
            "name": "resnet",
            "activation": "relu",
            "depths": (1, 1, 1),
            "widths": (32, 64, 128),
            "block": "basic",
            "shortcut": "project",
            "drop_path_rate": 0.0,
            "remat": False,
            "norm": norm_config(choice["norm"]),
            "stem": {"name": "conv_unit", "stride": 2},
        }
    )
    config.optim.update(name="sgd", lr=0.2, weight_decay=5e-4, warmup_fraction=0.2)


MODELS = {"vit": _vit, "resnet": _resnet}
