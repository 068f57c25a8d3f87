"""eval.py --adapt: streams, orders and refusals."""

import json
import shutil

import numpy as np
import pytest

from normjax.adapt import ADAPTATIONS
from normjax.cli.main import eval_command, run
from normjax.evaluation.adapt import Stream, _batches, adapt_run
from normjax.evaluation.run import evaluate_run
from normjax.train.experiment import build_experiment
from normjax.train.loop import train
from tests.train.tiny import tiny_config, untrained_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapt") / "run"
    train(tiny_config("norm=batch_norm,mixer=softmax"), path)
    return path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return untrained_run(
        tiny_config("norm=batch_norm"), tmp_path_factory.mktemp("untrained")
    )


@pytest.mark.slow
def test_every_adaptation_scores_a_stream(workdir):
    names = [entry.name for entry in ADAPTATIONS if entry.name != "source"]
    scores = adapt_run(workdir, names, Stream(batch_size=128))
    assert list(scores) == ["source", *names]
    expected = evaluate_run(workdir)["unfolded"]
    for name, value in expected.items():
        np.testing.assert_allclose(scores["source"][name], value, rtol=1e-4)
    assert all(np.isfinite(list(s.values())).all() for s in scores.values())
    assert scores["batch_stats"]["nll"] != scores["source"]["nll"]


@pytest.mark.slow
def test_a_corruption_without_adaptation(workdir, capsys):
    """The score is that of the corrupted images, and the table says of which."""
    argv = ["eval.py", f"--workdir={workdir}", "--corruption=gaussian_noise", "--best"]
    assert run(eval_command, argv) == 0
    assert "gaussian_noise 5" in capsys.readouterr().out
    noise = adapt_run(workdir, [], Stream(corruption="gaussian_noise"), best=True)
    clean = adapt_run(workdir, [], Stream(), best=True)
    assert list(noise) == list(clean) == ["source"]
    assert noise["source"]["nll"] != clean["source"]["nll"]


def test_no_other_split_need_be_there(untrained, tmp_path):
    """As where published weights become a run of other people's data."""
    kept = json.loads((untrained / "config.json").read_text())
    kept["data"].update(train_split="gone", eval_split="gone", test_split="gone")
    other = tmp_path / "other"
    shutil.copytree(untrained, other)
    (other / "config.json").write_text(json.dumps(kept))
    scores = adapt_run(other, [], Stream(split="test[:50%]"))
    assert scores == adapt_run(untrained, [], Stream(split="test[:50%]"))


def test_streams():
    experiment = build_experiment(tiny_config())

    def stream(**changes):
        batches = list(_batches(experiment, Stream(batch_size=100, **changes)))
        merged = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        return merged, [len(b["label"]) for b in batches]

    mixed, sizes = stream()
    assert sizes == [100] * (len(sizes) - 1) + [sum(sizes) % 100 or 100]
    assert (np.diff(mixed["label"]) < 0).any()
    ordered, _ = stream(order="correlated")
    assert (np.diff(ordered["label"]) >= 0).all()
    sums = [np.sort(m["image"].sum((1, 2, 3))) for m in (mixed, ordered)]
    np.testing.assert_array_equal(*sums)
    few, sizes = stream(images=150)
    assert sizes == [100, 50]
    np.testing.assert_array_equal(few["label"], mixed["label"][:150])
    noisy, _ = stream(corruption="contrast", severity=5)
    ratio = noisy["image"].std((1, 2, 3)) / mixed["image"].std((1, 2, 3))
    np.testing.assert_allclose(ratio, 0.15, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--adapt=tnt"], "unknown adaptation 'tnt'"),
        (["--adapt=tent", "--stream=random"], "stream 'random'"),
        (["--adapt=tent", "--corruption=fog"], "corruption 'fog'"),
        (["--adapt=tent", "--severity=9", "--corruption=jpeg"], "1..5, got 9"),
    ],
)
def test_refusals(untrained, capsys, arguments, text):
    assert run(eval_command, ["eval.py", f"--workdir={untrained}", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
