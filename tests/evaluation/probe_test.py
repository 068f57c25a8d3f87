"""Probes of frozen features."""

import numpy as np
import pytest
from PIL import Image

from normjax.cli.main import run
from normjax.evaluation import probe
from normjax.probe import probe_command
from normjax.tasks import TASKS
from tests.train.tiny import tiny_config, untrained_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    return untrained_run(tiny_config("norm=layer_norm,mixer=softmax"), folder)


def test_features_are_what_the_head_reads(workdir):
    frozen = probe.of_run(workdir)
    task = TASKS[frozen.config.task].make(frozen.config)
    found = probe.features_of(
        frozen, task, "test", probe.features(frozen, task.objective)
    )
    assert found.values.shape == (360, 16) and found.values.dtype == np.float32
    batch = next(iter(task.eval_batches("test", batch_size=8)))
    np.testing.assert_array_equal(found.labels[:8], batch["label"])
    x, _ = task.objective.inputs(batch)
    head = frozen.variables["params"]["head"]
    logits = found.values[:8] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    actual = frozen.model.apply(frozen.variables, x, train=False)
    np.testing.assert_allclose(actual, logits, rtol=1e-4, atol=1e-5)


def features(seed, spread):
    """Three classes around three directions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    values = np.eye(3, 8)[labels] + spread * rng.normal(size=(90, 8))
    return probe.Features(values.astype(np.float32), labels)


def test_probes_find_what_is_there_and_nothing_else():
    train, test = features(0, 0.1), features(1, 0.1)
    assert probe.nearest(train, test, 5) == 1.0
    assert probe.linear(train, test)[1] == 1.0
    noise = test._replace(values=np.random.default_rng(2).normal(size=(90, 8)))
    assert probe.nearest(train, noise, 5) < 0.6
    assert probe.linear(train, noise)[1] < 0.6


def test_a_folder_of_other_classes(workdir, tmp_path, capfd):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 60, (8, 8), np.uint8) + np.uint8(150 * label)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    given = [f"--workdir={workdir}", f"--data={tmp_path}", "--neighbors=1,3"]
    assert run(probe_command, ["probe", *given]) == 0
    out = capfd.readouterr().out
    assert "k-NN, k = 3" in out and "100.00 %" in out and "split test" in out
    assert run(probe_command, ["probe", *given, "--split=train[50%:]"]) == 0
    assert "split train[50%:]" in capfd.readouterr().out
    assert run(probe_command, ["probe", *given[:2], "--neighbors=50"]) == 2
    assert "50 neighbors of 12 training images" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "give one of --workdir and --model"),
        (["--model=deit_tiny"], "--model needs --weights and --data"),
        (["--workdir=x", "--neighbors=0"], "--neighbors=0: give numbers from 1"),
        (["--workdir=x", "--weights=y"], "--weights has no effect without --model"),
    ],
)
def test_wrong_command_lines(given, line, capfd):
    assert run(probe_command, ["probe", *given]) == 2
    assert line in capfd.readouterr().err
