"""OpenELM on text, for accelerators: decoders whose layers widen with the depth.

    python train.py --config=configs/lm_openelm.py:variant=270m \\
        --workdir=runs/openelm --config.data.text.tokenizer=llama.model

AdamW and its cosine as published (Mehta et al., 2024): 4 million tokens a step in rows
of 2,048, 350,000 steps; there with a z-loss besides (`--config.z_loss_weight`). The
rate of 270m is the published one, those of the other sizes are ours. The tokenizer
(32,000 pieces) is a file of yours, C4 a TFDS set that is prepared. Arguments: variant
(270m, 450m, 1_1b, 3b), path (a text of your own instead), and runlocal (a small model
of the same shape on bytes of the standard library, to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import language_config, parse_arg
from normjax.core.errors import UserError, one_of
from normjax.families import PRESETS
from normjax.families.openelm import mixers, mlp_widths, query_heads

LEARNING_RATES = {"270m": 5.3e-3, "450m": 3.9e-3, "1_1b": 2.4e-3, "3b": 1.3e-3}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`.

    Raises:
      UserError: unknown variant.
    """
    choice = parse_arg(arg, variant="270m", path="", runlocal=False)
    variant = choice["variant"]
    if variant not in LEARNING_RATES:
        raise UserError(one_of("variant", variant, LEARNING_RATES))
    config = language_config()
    config.data.name = "text_file" if choice["path"] else "c4/en"
    config.data.path, config.data.test_split = choice["path"], ""
    config.data.text.update(tokenizer="tokenizer.model", length=2048)
    config.batch_size, config.microbatches = 2048, 16
    config.total_steps = 350_000
    config.eval_every = config.checkpoint.every = 1000
    preset: Any = PRESETS[f"openelm_{variant}"]
    config.model = ConfigDict(
        {"name": f"openelm_{variant}", "norm": preset["norm"], "remat": True}
    )
    config.optim.lr = LEARNING_RATES[variant]
    config.optim.beta2, config.optim.weight_decay = 0.95, 0.1
    config.optim.warmup_fraction, config.optim.final_lr_fraction = 1 / 70, 0.1
    if choice["runlocal"]:
        _shrink(config)
    return config


def _shrink(config: Any) -> None:
    """Two layers of width 64 that widen as those of the presets."""
    dim, depth, head = 64, 2, 8
    queries = query_heads(dim, depth, (0.5, 1.0), head, groups=4)
    config.data.update(name="pytext", path="", test_split="test")
    config.data.text.update(tokenizer="bytes", length=64)
    config.model.update(dim=dim, depth=depth, num_heads=max(queries), remat=False)
    config.model.mlp_hidden = mlp_widths(dim, depth, (0.5, 4.0), divisor=16)
    config.model.mixer = mixers(queries, [q // 4 for q in queries], head)
    config.batch_size, config.microbatches, config.total_steps = 8, 1, 20
    config.eval_every, config.log_every = 10, 5
    config.checkpoint.every = 10
