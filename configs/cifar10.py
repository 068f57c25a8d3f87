"""A vision transformer on CIFAR-10, as an image folder or as a prepared TFDS set.

    python train.py --config=configs/cifar10.py --workdir=runs/cifar10
    python train.py --config=configs/cifar10.py:path=CIFAR10.zip --workdir=runs/cifar10

Arguments: norm, mixer, path (a folder or zip with train/ and test/ class folders;
empty: the TFDS set cifar10), and runlocal (a small model, 200 steps).
"""

from ml_collections import ConfigDict

from configs.common import image_config, norm_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(arg, norm="prepbn", mixer="sla", path="", runlocal=False)
    config = image_config()
    config.total_steps = 40_000
    config.batch_size = 256
    config.recalibrate_batches = 100
    config.data.name = "image_folder" if choice["path"] else "cifar10"
    config.data.path = choice["path"]
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.augment.update(crop_padding=4, flip=True, rand_augment_ops=2)
    config.data.label_smoothing = 0.1
    config.data.mixup_alpha = 0.2
    config.model.update(
        dim=256,
        depth=8,
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
    if choice["runlocal"]:
        config.total_steps = 200
        config.batch_size = 64
        config.model.dim = 128
        config.model.depth = 3
        config.data.augment.rand_augment_ops = 0
        config.eval_every = config.checkpoint.every = 100
        config.recalibrate_batches = 10
    return config
