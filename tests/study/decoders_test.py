"""The decoders that are compared cost what the study says."""

import pytest

from configs.studies.text_decoders import OPERATIONS, SIZES, get_study
from normjax.train.experiment import build_experiment
from normjax.train.programs import trace_train_step


@pytest.mark.slow
def test_decoders_have_equal_parameters_or_equal_operations():
    """To a hundredth; and every one can be trained."""
    figures = {}
    for cell, config in get_study()["runs"].items():
        experiment = build_experiment(config)
        parts = experiment.parts()
        figures[cell] = (
            sum(part.parameters for part in parts),
            sum(part.multiply_adds for part in parts),
        )
        trace_train_step(experiment)
    plain = figures["plain", "equal parameters"]
    for row, column in SIZES:
        i = int(column == OPERATIONS)
        assert figures[row, column][i] == pytest.approx(plain[i], rel=0.01), row
    assert figures["norm-free", "equal parameters"] == pytest.approx(plain, rel=0.01)
