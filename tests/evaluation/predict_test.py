"""The likeliest classes of image files, against PIL and the model by hand."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from normjax import convert
from normjax.cli.main import run
from normjax.config.overrides import Override, override
from normjax.config.recipes import load_config
from normjax.evaluation.predict import of_run, of_weights, predict
from normjax.evaluation.published import recipe_of
from normjax.export.__main__ import export_command
from normjax.predict import predict_command
from normjax.tasks.described import Images
from normjax.train.experiment import build_model
from normjax.train.start import start_from

NAMES = ("cat", "dog", "eel", "fox")
SIDE = 16
TINY = [
    Override(f"model.{name}", str(value))
    for name, value in (
        ("depth", 1),
        ("dim", 16),
        ("num_heads", 2),
        ("stem.patch_size", 8),
    )
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that knows its classes, its weights as published, and three images."""
    root = tmp_path_factory.mktemp("predict")
    size = [
        Override("data.augment.image_size", str(SIDE)),
        Override("data.augment.eval_resize", str(int(SIDE / 0.875))),
    ]
    config = override(load_config(recipe_of("deit_tiny")), [*TINY, *size])
    config.dtype = "float32"
    model = build_model(config, num_classes=4)
    x = np.zeros((1, SIDE, SIDE, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rng = np.random.default_rng(0)
    variables["params"]["head"]["kernel"] = rng.normal(size=(16, 4)).astype("f4")
    convert.write(
        root / "w.safetensors", convert.to_torch(model, variables, (SIDE, SIDE))
    )
    known = Images("image_folder", 4, 3, None, NAMES)
    start_from(config, variables, root / "run", known)
    (root / "in").mkdir()
    for i, shape in enumerate(((40, 30), (25, 50), (16, 16))):
        pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"in/{i}.png")
    return root, model, variables


def by_hand(model, variables, file):
    """Probabilities [4], in float64."""
    with Image.open(file) as image:
        resize, (width, height) = int(SIDE / 0.875), image.size
        short = min(width, height)
        size = resize * width // short, resize * height // short
        image = image.resize(size, Image.BICUBIC)
        left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = ((pixels / 255 - mean) / std).astype(np.float32)
    logits = np.asarray(model.apply(variables, x[None], train=False), np.float64)[0]
    return np.exp(logits) / np.exp(logits).sum()


def check(found, made, names):
    root, model, variables = made
    assert [file for file, _ in found] == [root / f"in/{i}.png" for i in range(3)]
    for file, guesses in found:
        expected = by_hand(model, variables, file)
        order = np.argsort(-expected)[: len(guesses)]
        assert [guess.name for guess in guesses] == [names[i] for i in order]
        np.testing.assert_allclose(
            [guess.probability for guess in guesses], expected[order], rtol=1e-4
        )


def test_of_a_run_and_of_published_weights(made):
    root, _, _ = made
    files = [root / f"in/{i}.png" for i in range(3)]
    check(list(predict(of_run(root / "run"), files)), made, NAMES)
    weights = of_weights("deit_tiny", root / "w.safetensors", side=SIDE, overrides=TINY)
    unnamed = [f"class {i}" for i in range(4)]
    check(list(predict(weights, files, top=2)), made, unnamed)


@pytest.fixture
def command(capfd):
    def call(*arguments, code=0, of=predict_command):
        capfd.readouterr()
        assert run(of, ["predict", *map(str, arguments)]) == code
        out, err = capfd.readouterr()
        assert not code or len(err.splitlines()) == 1
        return err if code else out

    return call


def rows(out):
    """Cells of the table."""
    lines = [line for line in out.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_the_table_and_an_exported_model(made, command, tmp_path, monkeypatch):
    monkeypatch.chdir(made[0])
    expected = by_hand(made[1], made[2], "in/1.png")
    order = np.argsort(-expected)[:2]
    lines = [
        ["in/1.png" * (k == 0), NAMES[i], f"{100 * expected[i]:.2f} %"]
        for k, i in enumerate(order)
    ]
    assert rows(command("--workdir=run", "--top=2", "in/1.png")) == lines
    artifact = tmp_path / "m.stablehlo"
    command("--workdir=run", artifact, of=export_command)
    known = json.loads((tmp_path / "m.stablehlo.json").read_text())
    assert known["classes"] == list(NAMES)
    given = f"--artifact={artifact}", "--top=2"
    assert rows(command(*given, "in/1.png")) == lines
    (tmp_path / "names.txt").write_text("n00000001 a, b\nc\nd\ne\n")
    of_file = ["n00000001 a, b", "c", "d", "e"]
    named = rows(command(*given, f"--classes={tmp_path}/names.txt", "in/1.png"))
    assert [row[1].split()[-1] for row in named] == [
        of_file[i].split()[-1] if i else "b" for i in order
    ]
    everything = rows(command("--workdir=run", "--top=1", "in"))
    assert [row[0] for row in everything] == [f"in/{i}.png" for i in range(3)]


def test_what_cannot_be_read_keeps_no_other_from_its_answer(made, capfd, tmp_path):
    root, _, _ = made
    bad = [tmp_path / "bad.png", tmp_path / "cut.png"]
    bad[0].write_bytes(b"no image")
    bad[1].write_bytes((root / "in/0.png").read_bytes()[:500])
    files = [str(f) for f in (bad[0], root / "in/1.png", bad[1], root / "in/2.png")]
    flags = [f"--workdir={root / 'run'}", "--top=1"]
    assert run(predict_command, ["predict", *flags, *files]) == 1
    out, err = capfd.readouterr()
    names = [f"error: cannot read {str(file)!r}: " for file in bad]
    lines = zip(err.splitlines(), names, strict=True)
    assert all(line.startswith(name) for line, name in lines)
    shown = rows(out)
    assert [row[0] for row in shown] == files
    assert [row[1] == "not read" for row in shown] == [True, False, True, False]
    alone = rows_of_files(flags, files[1::2], capfd)
    assert [row for row in shown if row[1] != "not read"] == alone


def rows_of_files(flags, files, capfd):
    assert run(predict_command, ["predict", *flags, *files]) == 0
    return rows(capfd.readouterr().out)


def test_what_is_refused(made, command, tmp_path, monkeypatch):
    monkeypatch.chdir(made[0])
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "names.txt").write_text("a\nb\n")
    for words, arguments in (
        ("missing IMAGE", ["--workdir=run"]),
        ("no such image 'none.png'", ["--workdir=run", "none.png"]),
        ("--top=0", ["--workdir=run", "--top=0", "in"]),
        ("give one of", ["in"]),
        ("give one of", ["--workdir=run", "--model=deit_tiny", "in"]),
        ("--model needs --weights", ["--model=deit_tiny", "in"]),
        ("--best has no effect", ["--artifact=x", "--best", "in"]),
        (
            "names 2 classes, the model has 4",
            ["--workdir=run", f"--classes={tmp_path}/names.txt", "in"],
        ),
    ):
        assert words in command(*arguments, code=2)
