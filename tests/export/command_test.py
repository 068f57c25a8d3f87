"""The export command: what it writes is what the live model computes."""

import numpy as np
import pytest

from normjax import data
from normjax.cli.main import run
from normjax.core.errors import UserError
from normjax.export import load
from normjax.export.__main__ import export_command
from normjax.records.datasets import keep_description, kept_description
from normjax.tasks.described import Images
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
def test_artifact_computes_the_logits(workdir, tmp_path, fold, capsys, monkeypatch):
    file = tmp_path / "model.stablehlo"
    argv = ["export", f"--workdir={workdir}", str(file), *["--fold"][: int(fold)]]
    with monkeypatch.context() as without_data:
        without_data.delattr(data, "open_images")
        assert run(export_command, argv) == 0
    assert "largest difference" in capsys.readouterr().out
    config = tiny_config("norm=prepbn", total_steps=3, recalibrate_batches=1)
    experiment = build_experiment(config)
    batch = next(experiment.task.eval_batches("test", batch_size=5))
    images, _ = experiment.task.objective.inputs(batch)
    expected = experiment.model.apply(saved_variables(workdir), images, train=False)
    got = load(file.read_bytes())({"image": batch["image"]})
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_run_knows_its_data_without_them(tmp_path):
    """Class count and shape of the images, though their folder is gone."""
    config = tiny_config(data__name="image_folder", data__path="/gone")
    with pytest.raises(UserError, match="/gone"):
        build_experiment(config)
    keep_description(Images("cats", 5, 3, (6, 6, 3), tuple("abcde")), tmp_path)
    described = kept_description("image_classification", tmp_path)
    experiment = build_experiment(config, described=described)
    assert experiment.task.row()["image"].shape == (6, 6, 3)
    params = experiment.abstract_state().params
    assert params["head"]["kernel"].shape[-1] == 5
    assert experiment.task.description() == described
    assert kept_description("language_modeling", tmp_path / "none") is None


def test_refusals(tmp_path, capsys):
    untrained = untrained_run(tiny_config(), tmp_path / "untrained")

    def refused(*arguments):
        assert run(export_command, ["export", *arguments]) == 2
        return capsys.readouterr().err

    where = f"--workdir={untrained}"
    assert "missing FILE" in refused(where)
    assert "did you mean 'cuda'" in refused(where, "--platforms=cud", "f")
    assert "cannot write" in refused(where, str(tmp_path / "no" / "such"))
    assert "holds no run" in refused(f"--workdir={tmp_path}", "f")
