"""A small vision transformer on scikit-learn's scanned digits: minutes on two cores.

    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/digits.py:norm=layer_norm,mixer=softmax ...
    python eval.py --workdir=runs/digits --fold

Arguments: norm, mixer, placement, and runlocal (20 steps, to see that it works).
"""

from ml_collections import ConfigDict

from configs.common import base_config, norm_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(arg, norm="prepbn", mixer="sla", placement="pre", runlocal=False)
    config = base_config()
    config.total_steps = 1000
    config.data.name = "digits"
    config.recalibrate_batches = 50
    config.data.augment.crop_padding = 1
    config.data.label_smoothing = 0.05
    config.model.update(
        dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=2.0,
        pool="mean",
        placement=choice["placement"],
        drop_path_rate=0.0,
        dropout_rate=0.0,
        remat=False,
        norm=norm_config(choice["norm"]),
        mixer=ConfigDict({"name": choice["mixer"]}),
        stem=ConfigDict({"name": "conv", "strides": (2, 1)}),
    )
    config.optim.lr = 2e-3
    if choice["runlocal"]:
        config.total_steps = 20
        config.batch_size = 16
        config.log_every = 5
        config.eval_every = config.checkpoint.every = 10
    return config
