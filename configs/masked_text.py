"""An encoder that finds hidden bytes of a text: minutes on two cores.

    python train.py --config=configs/masked_text.py --workdir=runs/masked
    python train.py --config=configs/masked_text.py:path=book.txt,mixer=monarch ...
    python train.py --config=configs/masked_text.py:variant=m2_bert_80m,path=... ...

The text is that of Python's own documentation strings (`pytext`), or a file of your
own. Arguments: path, variant (small, or a preset with its published norm, mixer and
MLP), norm and mixer (of small: softmax, or monarch with its MLP, as in M2-BERT), steps,
and runlocal (20 steps, to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, norm_config, parse_arg, small_recipe
from normjax.core.errors import UserError, one_of
from normjax.families import M2_BERT

LENGTH, MIXERS = 128, ("monarch", "softmax")


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice: Any = parse_arg(
        arg,
        **{"path": "", "variant": "small", "norm": "layer_norm", "mixer": "monarch"},
        **{"steps": 1000, "runlocal": False},
    )
    if choice["variant"] != "small" and choice["variant"] not in M2_BERT.presets:
        raise UserError(one_of("variant", choice["variant"], M2_BERT.presets))
    if choice["mixer"] not in MIXERS:
        raise UserError(one_of("config argument mixer", choice["mixer"], MIXERS))
    config = base_config("masked_language_modeling")
    config.batch_size = 32
    config.total_steps = choice["steps"]
    config.eval_every = config.checkpoint.every = 500

    data = config.data
    data.name = "text_file" if choice["path"] else "pytext"
    data.path = choice["path"]
    data.eval_split, data.test_split = "validation", "test"
    data.text.length = LENGTH

    model = config.model
    if choice["variant"] == "small":
        model.name, model.dim, model.depth, model.num_heads = "encoder", 128, 4, 4
        model.max_length = LENGTH
        model.norm = norm_config(choice["norm"])
        model.mixer = ConfigDict({"name": choice["mixer"]})
        if choice["mixer"] == "monarch":
            model.mixer.max_length = LENGTH
            model.mlp = ConfigDict({"name": "monarch_mlp"})
    else:
        model.name = choice["variant"]
        model.norm = ConfigDict(M2_BERT.presets[model.name]["norm"])

    small_recipe(config, runlocal=choice["runlocal"])
    if choice["variant"] != "small":
        config.optim.lr = 8e-4  # published, of 4,096 rows
    return config
