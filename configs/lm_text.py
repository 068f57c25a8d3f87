"""A byte-level language model of a text of your own.

    python train.py --config=configs/lm_text.py:path=book.txt --workdir=runs/book

`path` is a file, a zip or a glob ('texts/**/*.txt'), a tenth of which is held out (see
docs/data.md). Splits of your own are `--config.data.text.train_path`, `validation_path`
and `test_path`; a trained tokenizer is `--config.data.text.tokenizer`. Arguments: path,
and those of configs/lm_bytes.py.
"""

from ml_collections import ConfigDict

from configs import lm_bytes
from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice = parse_arg(arg, path="", **{**lm_bytes.CHOICES, "steps": 1500})
    config = lm_bytes.small_run(choice)
    config.data.name = "text_file"
    config.data.path = choice["path"]
    config.data.text.length = 256
    config.batch_size = 16 if config.total_steps > 20 else config.batch_size
    config.model.dropout_rate = 0.1
    return config
