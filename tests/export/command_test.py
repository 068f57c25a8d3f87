"""The export command: what it writes is what the live model computes."""

import numpy as np
import pytest

from normjax.export import load
from normjax.export.__main__ import export_command
from normjax.train.cli import run
from normjax.train.experiment import build_experiment
from normjax.train.loop import train
from normjax.train.start import saved_variables
from tests.train.tiny import tiny_config, untrained_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    config = tiny_config("norm=prepbn", total_steps=3, recalibrate_batches=1)
    path = tmp_path_factory.mktemp("export") / "run"
    train(config, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("fold", [False, True])
def test_artifact_computes_the_logits(workdir, tmp_path, fold, capsys):
    file = tmp_path / "model.stablehlo"
    argv = ["export", f"--workdir={workdir}", str(file), *["--fold"][: int(fold)]]
    assert run(export_command, argv) == 0
    assert "largest difference" in capsys.readouterr().out
    config = tiny_config("norm=prepbn", total_steps=3, recalibrate_batches=1)
    experiment = build_experiment(config)
    batch = next(experiment.task.eval_batches("test", batch_size=5))
    images, _ = experiment.task.objective.inputs(batch)
    expected = experiment.model.apply(saved_variables(workdir), images, train=False)
    got = load(file.read_bytes())({"image": batch["image"]})
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_refusals(tmp_path, capsys):
    untrained = untrained_run(tiny_config(), tmp_path / "untrained")

    def refused(*arguments):
        assert run(export_command, ["export", *arguments]) == 2
        return capsys.readouterr().err

    where = f"--workdir={untrained}"
    assert "--workdir=DIR" in refused(where)
    assert "did you mean 'cuda'" in refused(where, "--platforms=cud", "f")
    assert "cannot write" in refused(where, str(tmp_path / "no" / "such"))
    assert "holds no run" in refused(f"--workdir={tmp_path}", "f")
