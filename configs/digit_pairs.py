"""Lines of scanned digits and their texts find each other: minutes on two cores.

    python train.py --config=configs/digit_pairs.py --workdir=runs/pairs
    python train.py --config=configs/digit_pairs.py:microbatches=4 ...
    python eval.py --workdir=runs/pairs

A transformer that sees the line and one that reads its digits are taught by the
contrastive loss of the whole batch (CLIP); `microbatches` changes the memory alone
(BASIC's gradient caching). Arguments: norm, length (digits of the longest line),
microbatches, steps, and runlocal (20 steps, to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, norm_config, parse_arg, small_recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice: Any = parse_arg(
        arg, norm="layer_norm", length=4, microbatches=1, steps=1000, runlocal=False
    )
    config = base_config("contrastive_pairs")
    config.batch_size, config.microbatches = 128, choice["microbatches"]
    config.total_steps = choice["steps"]
    config.eval_every = config.checkpoint.every = 250

    data = config.data
    data.name, data.length = "digit_lines", choice["length"]
    data.eval_split = "test"

    model = config.model
    model.name, model.embed_dim = "two_towers", 64
    model.norm = norm_config(choice["norm"])
    size = {"dim": 64, "depth": 2, "num_heads": 2}
    stem = {"name": "conv_units", "hidden": (16, 32), "strides": (2, 2, 2)}
    stem["pool"] = False
    model.image_tower = ConfigDict({"name": "vit", **size, "stem": stem})
    reads = {"max_length": choice["length"], "placement": "pre"}
    model.text_tower = ConfigDict({"name": "text_encoder", **size, **reads})

    small_recipe(config, runlocal=choice["runlocal"])
    config.optim.lr = 1e-3
    return config
