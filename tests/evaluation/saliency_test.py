"""Pictures of what answers look at, and errors of calibration, of small runs."""

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from normjax.analysis.__main__ import analysis_command
from normjax.cli.main import eval_command, run
from normjax.core.errors import UserError
from normjax.evaluation.calibrate import show_calibration
from normjax.evaluation.run import evaluate_run
from normjax.evaluation.saliency import Saliency, _grid_of, default_layer, draw
from normjax.train.loop import train
from tests.train.tiny import tiny_config

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "image", "grid"),
    [
        ((1, 4, 6, 8), (32, 48, 3), (4, 6)),
        ((1, 1, 1, 8), (32, 48, 3), None),
        ((1, 16, 8), (8, 8, 1), (4, 4)),
        ((1, 17, 8), (8, 8, 1), (4, 4)),  # a class token before
        ((1, 8, 8), (8, 16, 1), (2, 4)),
        ((1, 15, 8), (8, 8, 1), None),
        ((1, 10), (8, 8, 1), None),
    ],
)
def test_which_outputs_are_maps(shape, image, grid):
    assert _grid_of(shape, image) == grid


def test_the_layer_that_is_drawn():
    vit = ["stem", "blocks_0/norm1", "blocks_1/norm1", "blocks_1/mixer", "blocks_1"]
    assert default_layer(vit) == "blocks_1/norm1"
    assert default_layer(["stem", "blocks_0_0", "blocks_1_0"]) == "blocks_1_0"
    with pytest.raises(UserError, match="no block with a map: name one by --layer"):
        default_layer(["stem"])


def test_a_picture(tmp_path):
    maps = {"Grad-CAM": RNG.random((2, 2)), "SmoothGrad": RNG.random((4, 4))}
    image = RNG.integers(0, 256, (4, 4, 1), np.uint8)
    draw(Saliency("cat", 0.5, image, maps), "a", tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").ndim == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["salience"], "unknown command 'salience'; did you mean 'saliency'"),
        (["saliency", "a.png"], "--workdir is required"),
        (["saliency", "--workdir=x", "--samples=0", "a.png"], "samples"),
        (["saliency", "--workdir=x", "--spread=nan", "a.png"], "must be finite"),
    ],
)
def test_wrong_lines(arguments, message, capsys):
    assert run(analysis_command, ["analysis", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_flags_without_effect(capsys):
    line = ["eval.py", "--workdir=x", "--temperature=train", "--adapt=tent"]
    assert run(eval_command, line) == 2
    assert "--temperature has no effect with --adapt" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_of_a_run(tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    train(tiny_config("norm=prepbn"), workdir)
    with pytest.raises(UserError, match="'test' is the split that is scored"):
        evaluate_run(workdir, temperature="test")
    with pytest.raises(UserError, match="has examples of split 'test"):
        evaluate_run(workdir, split="test[50%:]", temperature="train+test[:60%]")
    kept = []
    monkeypatch.setattr(
        "normjax.evaluation.run.show_calibration",
        lambda *args: kept.append(show_calibration(*args)),
    )
    scores = evaluate_run(workdir, split="test", temperature="train")["unfolded"]
    before, behind = kept[0].values()
    assert before["NLL"] == pytest.approx(scores["nll"], rel=1e-5)
    assert before["ECE"] == pytest.approx(scores["ece"], abs=1e-5)
    assert before["T"] == 1 != behind["T"]
    assert (workdir / "reliability.png").exists()
    pixels = RNG.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    given = [f"--workdir={workdir}", "--samples=2", "--class=3"]
    command = ["analysis", "saliency", *given]
    assert run(analysis_command, [*command, str(tmp_path / "a.png")]) == 0
    assert (workdir / "saliency/a.png").exists()
    (tmp_path / "b.png").write_bytes(b"no image")
    assert run(analysis_command, [*command, str(tmp_path / "b.png")]) == 1
    assert (
        run(analysis_command, [*command, "--layer=bloc", str(tmp_path / "a.png")]) == 2
    )
    assert "--layer with a map 'bloc'" in capsys.readouterr().err
    taken = f"--out={tmp_path / 'a.png'}"
    assert run(analysis_command, [*command, taken, str(tmp_path / "a.png")]) == 2
    assert "File exists" in capsys.readouterr().err
