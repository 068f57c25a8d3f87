"""Evaluate a run.

python eval.py --workdir=runs/a [--split=test] [--best] [--fold]

Reports top-1, top-5, negative log likelihood (nats) and expected calibration error;
with --fold also for the model whose norms are merged into their neighbours.
"""

import sys

from normjax.train.cli import eval_command, run

if __name__ == "__main__":
    sys.exit(run(eval_command, sys.argv))
