"""What TensorBoard shows of an evaluation."""

import functools

import numpy as np

from normjax.records import pictures
from normjax.train.experiment import build_experiment
from normjax.train.pictures import EXAMPLES, Pictures
from tests.train.tiny import progressive_config


class Log:
    """Keeps what it is given to show."""

    def show(self, step, images, histograms):
        self.shown = step, images, histograms


def rows_of(labels, size):
    """As of batches whose answers are all 3, the last of them filled up."""
    padded = np.resize(labels, -(-len(labels) // size) * size)
    rows = {
        "label": padded,
        "answer": np.full(len(padded), 3),
        "probability": np.arange(len(padded)) / len(padded),
        "counted": np.arange(len(padded)) < len(labels),
    }
    return [
        {name: value[i : i + size] for name, value in rows.items()}
        for i in range(0, len(padded), size)
    ]


def _keep(drawn, name, *arguments):
    drawn[name] = arguments


def test_examples_of_the_whole_split_with_their_answers(monkeypatch):
    drawn = {}
    for name in ("guesses", "confusion"):
        keep = functools.partial(_keep, drawn, name)
        monkeypatch.setattr(pictures, name, keep)
    experiment = build_experiment(progressive_config())
    source, log = experiment.task.source("test"), Log()
    labels = np.array([source[i][1] for i in range(len(source))])
    shown = Pictures(experiment)
    counts = {"a": {"step": np.array(0)}, "b": {"step": np.array(3)}}
    rows = rows_of(labels, 100)
    shown.write(7, {"batch_stats": counts}, "test", rows, log)
    numbers = np.arange(EXAMPLES) * 360 // EXAMPLES
    images, truths, answers, probabilities = drawn["guesses"]
    np.testing.assert_array_equal(images, [source[i][0] for i in numbers])
    assert truths == [str(labels[i]) for i in numbers] and len(set(truths)) > 3
    assert answers == ["3"] * EXAMPLES
    assert probabilities == [i / 400 for i in numbers]
    np.testing.assert_array_equal(drawn["confusion"][0], labels)
    step, _, histograms = log.shown
    # lam of 0.8 * 6 = 5 updates.
    np.testing.assert_allclose(histograms["lam"], [1.0, 0.4], rtol=1e-6)
    assert step == 7 and len(histograms["probability"]) == 360

    # Rows that do not count were left out: which is which is unknown.
    drawn.clear()
    shown.write(8, {}, "test", rows[:3], log)
    assert set(drawn) == {"confusion"} and "lam" not in log.shown[2]
