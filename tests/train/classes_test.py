"""Classes of a run: kept with it, compared by every command that uses it."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from normjax.cli.main import eval_command, run, train_command
from normjax.config.recipes import load_config
from normjax.core.console import console
from normjax.export.__main__ import export_command
from normjax.prune.__main__ import prune_command
from normjax.tasks import TASKS

pytestmark = pytest.mark.usefixtures("compiled_once")
CONFIG = "--config=configs/digits.py:runlocal,norm=layer_norm,mixer=softmax"
SMALL = (
    *(f"--config.model.{x}" for x in ("dim=16", "depth=1", "num_heads=2")),
    *(f"--config.{x}" for x in ("total_steps=1", "batch_size=4")),
    "--config.data.name=image_folder",
)


def make_images(root, mode="RGB"):
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for label in ("cat", "[red]"):
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                path = root / split / os.fsdecode(label) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).convert(mode).save(path)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request, compiled_once):
    """The folder of a run of one step, on images in DATA beside it."""
    root = tmp_path_factory.mktemp("classes")
    make_images(root / "DATA")
    (root / "DATA/notes.txt").write_text("")
    before = os.getcwd()
    os.chdir(request.config.rootpath)
    try:
        with console.capture() as said:
            assert run(train_command, train_arguments(root)) == 0
    finally:
        os.chdir(before)
    (root / "said").write_text(said.get())
    return root


def train_arguments(root):
    data = f"--config.data.path={root / 'DATA'}"
    return ["train.py", CONFIG, *SMALL, data, f"--workdir={root / 'run'}"]


@pytest.fixture
def changed(trained, tmp_path, monkeypatch, request):
    """A copy of the run whose `cat` can be renamed, added to or removed."""
    monkeypatch.chdir(request.config.rootpath)
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "DATA", tmp_path / "DATA")
    config = tmp_path / "run/config.json"
    kept = json.loads(config.read_text())
    kept["data"]["path"] = str(tmp_path / "DATA")
    config.write_text(json.dumps(kept))
    return tmp_path


def rename(data):
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "zebra")


def add(data):
    for split in ("train", "test"):
        shutil.copytree(data / split / "cat", data / split / "emu")


def refused(command, *arguments):
    return run(command, ["command", *arguments]) == 2


def test_classes_are_shown_and_kept(trained):
    said = (trained / "said").read_text()
    assert "2: [red], cat" in said
    assert "train 6, 3 a class; test 2, 1 a class" in said
    assert "1 .txt" in said
    kept = json.loads((trained / "run/inputs.json").read_text())
    assert kept["class_names"] == ["[red]", "cat"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (rename, "gone: 'cat'; new: 'zebra'"),
        (add, "new: 'emu'; 2 then, 3 now"),
    ],
)
def test_every_command_refuses_other_classes(changed, capfd, change, difference):
    change(changed / "DATA")
    workdir, new = f"--workdir={changed / 'run'}", str(changed / "new")
    capfd.readouterr()
    for command, *arguments in (
        (eval_command, workdir),
        (eval_command, workdir, "--adapt=alpha_bn"),
        (export_command, workdir, f"--config.data.path={changed / 'DATA'}", new),
        (train_command, *train_arguments(changed)[1:]),
        (prune_command, *train_arguments(changed)[1:], "--sparsity=0.5", new),
    ):
        assert refused(command, *arguments)
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and "damaged" not in line
        assert difference in line, line
    assert not (changed / "new").exists()


def test_another_order_is_refused(changed, capfd):
    file = changed / "run/inputs.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "class_names": ["cat", "[red]"]}))
    assert refused(eval_command, f"--workdir={changed / 'run'}")
    said = capfd.readouterr().err
    assert "another order: class 0 was 'cat' and is '[red]'" in said


def test_a_run_without_names_is_compared_by_their_number(changed, capfd):
    (changed / "run/inputs.json").unlink()
    workdir = f"--workdir={changed / 'run'}"
    assert run(eval_command, ["eval.py", workdir]) == 0
    add(changed / "DATA")
    capfd.readouterr()
    for command, *more in (
        (eval_command,),
        (eval_command, "--adapt=alpha_bn"),
        (export_command, str(changed / "new")),
    ):
        assert refused(command, workdir, *more)
        line = capfd.readouterr().err.splitlines()[-1]
        assert "another model" in line and "number of classes" in line
        assert "head/bias is (2,) there and (3,) here" in line and "damaged" not in line


@pytest.mark.slow
def test_an_artifact_comes_with_the_names(changed):
    file = changed / "model"
    arguments = ["export", f"--workdir={changed / 'run'}", str(file)]
    assert run(export_command, arguments) == 0
    named = json.loads((changed / "model.json").read_text())
    assert named["classes"] == ["[red]", "cat"]
    assert named["images"]["shape"] == [8, 8, 3]


def task(data, tmp_path, **fields):
    config = load_config("configs/digits.py:runlocal")
    with config.unlocked():
        config.data.update(
            name="image_folder",
            path=str(data),
            data_dir=str(tmp_path / "made"),
            **fields,
        )
    return TASKS[config.task].make(config)


@pytest.mark.parametrize(("mean", "channels"), [((0.5,), 1), ((0.4, 0.5, 0.6), 3)])
def test_gray_images_and_the_mean_of_a_recipe(
    tmp_path, monkeypatch, request, mean, channels
):
    monkeypatch.chdir(request.config.rootpath)
    data = make_images(tmp_path / "gray", "L")
    made = task(data, tmp_path, mean=mean, std=mean)
    assert made.row()["image"].shape == (8, 8, channels)
    batch = next(made.eval_batches("test", batch_size=2))
    assert batch["image"].shape == (2, 8, 8, channels)
    images, _ = made.objective.inputs(batch)
    expected = (batch["image"] / 255 - np.array(mean)) / np.array(mean)
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_a_slice_to_train_on_must_hold_every_class(tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    data = make_images(tmp_path / "images")
    with pytest.raises(
        ValueError, match=r"'train\[:1\]' holds no image of class 'cat'"
    ):
        task(data, tmp_path, train_split="train[:1]")
    rows = dict(task(data, tmp_path, eval_split="test[:1]").details())
    assert rows["images"] == "train 6, 3 a class; test[:1] 1, 1 a class of 1 classes"
