"""What eval.py --fold prints of a run whose decay is not over."""

import pytest

from normjax.evaluation.run import evaluate_run
from normjax.train.loop import train
from tests.train.tiny import tiny_config


@pytest.mark.slow
def test_sizes_and_the_warning(tmp_path, capfd):
    """Six steps of a schedule of nine."""
    schedule = {"model__norm__warmup_fraction": 0.5, "model__norm__decay_fraction": 1.0}
    train(tiny_config("norm=prepbn", recalibrate_batches=0, **schedule), tmp_path)
    capfd.readouterr()
    evaluate_run(tmp_path, fold=True)
    lines = capfd.readouterr().out
    words = " ".join(lines.split())
    assert "warning: PRepBN is at step 6 of its decay in 4 norms" in words
    assert "exact from step 9 on" in words
    rows = {
        cells[0].strip(): [c.strip() for c in cells[1:]]
        for line in lines.splitlines()
        if len(cells := line.strip("│\n ").split("│")) == 5
    }
    numbers = {
        name: [int(cell.replace(",", "")) for cell in cells]
        for name, cells in rows.items()
        if name in ("unfolded", "folded") and cells[0].replace(",", "").isdigit()
    }
    (parameters, state, products, operations) = zip(
        numbers["unfolded"], numbers["folded"], strict=True
    )
    assert parameters[0] > parameters[1] and operations[0] > operations[1]
    assert state[0] > state[1] == 0 and products[0] == products[1]
