"""Fine-tuning a trained language model whose attention became linear (Liger).

    python train.py --config=configs/lm_liger.py:weights=runs/lm,path=book.txt \\
        --workdir=runs/liger
    python -m normjax.convert --linearize runs/lm runs/liger        # without training

Softmax layers become a gated recurrence and a window, which have the same weights; what
learns are low-rank adapters of queries, keys and values (rank 8, alpha 8), as published
with AdamW at 1e-3 and batches of 8, but for the schedule, which there waits for the
validation loss. `normjax.fusion.merge` puts the adapters into the weights. Arguments:
weights (a workdir or published weights), model (its preset), norm, recurrence (gla,
hgrn2, gsa), window, path (a text; empty: Python's library), length, steps, and runlocal
(20 steps of rows of 64).

A model with fewer heads of keys: --config.model.mixer.joint=false
--config.model.mixer.num_kv_heads=2.
"""

from ml_collections import ConfigDict

from configs.common import language_config, norm_config, parse_arg

ADAPTERS = {"pattern": "mixer/(q|kv|qkv)$", "name": "lora", "rank": 8, "alpha": 8.0}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(
        arg,
        **{"weights": "", "model": "lm_tiny", "norm": "rms_norm"},
        **{"recurrence": "gla", "window": 64, "path": "", "length": 1024},
        **{"steps": 1000, "runlocal": False},
    )
    config = language_config()
    if choice["weights"]:
        config.init.path, config.init.exclude = choice["weights"], "lora_"
    if choice["path"]:
        config.data.name, config.data.path = "text_file", choice["path"]
    config.data.text.length = choice["length"]
    config.batch_size, config.total_steps = 8, choice["steps"]
    config.eval_every = config.checkpoint.every = max(choice["steps"] // 10, 1)
    config.model.name = choice["model"]
    config.model.norm = norm_config(choice["norm"])
    mixer = {"name": "liger", "recurrence": choice["recurrence"], "joint": True}
    config.model.mixer = ConfigDict({**mixer, "window": choice["window"]})
    config.reparam = (ADAPTERS,)
    config.optim.trainable = "lora_"
    config.optim.lr, config.optim.weight_decay = 1e-3, 0.0
    if choice["runlocal"]:
        config.data.text.length = 64
        config.total_steps, config.log_every = 20, 5
        config.eval_every = config.checkpoint.every = 10
    return config
