"""Train a model.

python train.py --config=configs/digits.py:norm=prepbn,mixer=sla --workdir=runs/a
python train.py --config=configs/digits.py --workdir=runs/a --config.optim.lr=1e-3

The same command again goes on where the run stopped. Exit codes: 0 done, 1 training
failed, 2 wrong input, 75 stopped by a signal with a checkpoint saved.
"""

import sys

from normjax.train.cli import run, train_command

if __name__ == "__main__":
    sys.exit(run(train_command, sys.argv))
