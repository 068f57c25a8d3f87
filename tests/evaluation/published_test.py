"""Published weights on folders of images, against PIL and the model by hand."""

import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from normjax import convert
from normjax.cli.main import eval_command, run
from normjax.config.overrides import Override, override
from normjax.config.recipes import load_config
from normjax.evaluation.published import evaluate_published, recipe_of
from normjax.families import FAMILIES
from normjax.train.experiment import build_model

WNIDS = [f"n0000000{i}" for i in range(4)]
TINY = [("depth", 1), ("dim", 16), ("num_heads", 2)]
OVERRIDES = [
    *(Override(f"model.{name}", str(value)) for name, value in TINY),
    Override("batch_size", "4"),
]
SIDE = 32


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Weights of small models, the models with their variables, and a val folder."""
    root, models = tmp_path_factory.mktemp("published"), {}
    for seed, preset in enumerate(("deit_tiny", "slab_deit_tiny")):
        config = override(load_config(recipe_of(preset)), OVERRIDES)
        model = build_model(config, num_classes=4)
        x = np.zeros((1, SIDE, SIDE, 3), np.float32)
        variables = jax.jit(model.init)(jax.random.key(seed), x)
        rng = np.random.default_rng(seed)
        variables["params"]["head"]["kernel"] = rng.normal(size=(16, 4)).astype("f4")
        state = convert.to_torch(model, variables, (SIDE, SIDE))
        convert.write(root / f"{preset}.safetensors", state)
        models[preset] = model, variables
    rng, images = np.random.default_rng(7), []
    for label, wnid in enumerate(WNIDS):
        (root / "val" / wnid).mkdir(parents=True)
        for i in range(3):
            size = (*rng.integers(40, 70, 2), 3)
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(
                root / f"val/{wnid}/{i}.png"
            )
            images.append((root / f"val/{wnid}/{i}.png", label))
    return root, models, images


def by_hand(model, variables, images, labels=None):
    """top-1, NLL: as torchvision resizes, crops and normalises, in float64."""
    hits, losses = [], []
    for file, label in images:
        with Image.open(file) as image:
            width, height = image.size
            resize = int(SIDE / 0.875)
            short = min(width, height)
            image = image.resize(
                (resize * width // short, resize * height // short), Image.BICUBIC
            )
            left = round((image.width - SIDE) / 2)
            top = round((image.height - SIDE) / 2)
            pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        x = ((pixels / 255 - mean) / std).astype(np.float32)
        logits = np.asarray(model.apply(variables, x[None], train=False), np.float64)[0]
        label = label if labels is None else labels[label]
        hits.append(logits.argmax() == label)
        losses.append(math.log(np.exp(logits).sum()) - logits[label])
    return np.mean(hits), np.mean(losses)


def evaluate(root, preset="deit_tiny", data="val", **given):
    path = root / f"{preset}.safetensors"
    given = {"side": SIDE, "overrides": OVERRIDES, **given}
    return evaluate_published(preset, path, root / data, **given)


@pytest.mark.parametrize("preset", ["deit_tiny", "slab_deit_tiny"])
def test_scores_are_those_of_the_model_by_hand(published, capfd, preset):
    root, models, images = published
    scores = evaluate(root, preset, fold=preset.startswith("slab"))
    top1, nll = by_hand(*models[preset], images)
    for found in scores.values():
        assert found["top1"] == pytest.approx(top1)
        assert found["nll"] == pytest.approx(nll, rel=1e-4)
    assert ("folded" in scores) == preset.startswith("slab")
    words = " ".join(capfd.readouterr().out.split())
    assert "12 of all 4 classes" in words and "ImageNet's: sorted wnids" in words
    assert f"short side to {int(SIDE / 0.875)}, bicubic" in words


def test_tables_of_positions_are_resampled(published, capfd):
    root, _, _ = published
    scores = evaluate(root, side=48)["unfolded"]
    assert 0 < scores["nll"] < 100
    words = " ".join(capfd.readouterr().out.split())
    assert "1 + 2x2 positions to 1 + 3x3" in words and "center 48 x 48" in words


def test_averaged_weights_are_those_asked_for(published, capfd):
    root, models, images = published
    state = convert.read(root / "deit_tiny.safetensors")
    both = {f"student.{name}": array * 0 for name, array in state.items()}
    both |= {f"teacher.{name}": array for name, array in state.items()}
    convert.write(root / "both.safetensors", both)
    given = {"side": SIDE, "overrides": OVERRIDES}
    paths = root / "both.safetensors", root / "val"
    scores = evaluate_published("deit_tiny", *paths, averaged=True, **given)
    _, nll = by_hand(*models["deit_tiny"], images)
    assert scores["unfolded"]["nll"] == pytest.approx(nll, rel=1e-4)
    capfd.readouterr()
    scores = evaluate_published("deit_tiny", *paths, **given)
    assert scores["unfolded"]["nll"] == pytest.approx(math.log(4))
    words = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "taken of the file student." in words
    assert "teacher.*: averaged weights: --averaged" in words


def test_the_order_of_classes_from_a_file(published, tmp_path):
    root, models, images = published
    order = [2, 0, 3, 1]  # class i of the model is the folder order[i]
    file = tmp_path / "classes.txt"
    file.write_text("".join(f"{WNIDS[i]} name {i}, other {i}\n" for i in order))
    scores = evaluate(root, classes=str(file))["unfolded"]
    labels = [order.index(label) for label in range(4)]
    top1, nll = by_hand(*models["deit_tiny"], images, labels)
    assert scores["top1"] == pytest.approx(top1)
    assert scores["nll"] == pytest.approx(nll, rel=1e-4)
    # a folder of some of the classes, by their names, and a JSON file
    (tmp_path / "some").mkdir()
    (tmp_path / "some/Other_3").symlink_to(root / "val" / WNIDS[3])
    (tmp_path / "some/name 0").symlink_to(root / "val" / WNIDS[0])
    known = {str(i): [WNIDS[k], f"name {k}", f"other {k}"] for i, k in enumerate(order)}
    (tmp_path / "classes.json").write_text(json.dumps(known))
    given = {"data": tmp_path / "some", "classes": str(tmp_path / "classes.json")}
    some = [(file, label) for file, label in images if label in (0, 3)]
    top1, nll = by_hand(*models["deit_tiny"], some, labels)
    scores = evaluate(root, **given)["unfolded"]
    assert scores["top1"] == pytest.approx(top1)
    assert scores["nll"] == pytest.approx(nll, rel=1e-4)


@pytest.fixture
def command(published, capfd):
    """The line on stderr of a command that is refused."""
    root = published[0]

    def call(data, *arguments, preset="deit_tiny", weights="deit_tiny.safetensors"):
        tiny = [f"--config.model.{name}={value}" for name, value in TINY]
        argv = [f"--model={preset}", f"--weights={root / weights}", f"--data={data}"]
        capfd.readouterr()
        argv = ["eval.py", *argv, f"--image_size={SIDE}", *tiny, *arguments]
        assert run(eval_command, argv) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return call


def test_what_is_refused(published, command, tmp_path):
    root = published[0]
    for name in ("a", "b"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).symlink_to(root / "val" / WNIDS[0])
    for i, name in enumerate(("2", "10", "0", "1")):
        (tmp_path / "numbers").mkdir(exist_ok=True)
        (tmp_path / "numbers" / name).symlink_to(root / "val" / WNIDS[i])
    line = command(tmp_path / "two")
    assert "the folder has 2 classes, the model 4" in line and "--classes=FILE" in line
    assert "--classes=numeric" in command(tmp_path / "numbers")
    line = command(tmp_path / "numbers", "--classes=numeric")
    assert "the folder has 11 classes, the model 4" in line
    file = tmp_path / "classes.txt"
    file.write_text("x\na\ny\nz\n")
    assert "class 'b' is none of it" in command(tmp_path / "two", f"--classes={file}")
    file.write_text("a, c\nb, c\nd, a\ne\n")
    line = command(tmp_path / "two", f"--classes={file}")
    assert "class 'a' is number 0 and number 2 of it" in line
    assert "no such path" in command(tmp_path / "none")
    assert "unknown model 'deit_tny'" in command(root / "val", preset="deit_tny")
    assert "no checkpoint" in command(root / "val", weights="none.pth")
    assert "--workdir has no effect" in command(root / "val", "--workdir=x")
    assert "unknown split" in command(root / "val", "--split=foo")
    more = convert.read(root / "deit_tiny.safetensors") | {"loss.x": np.ones(2, "f4")}
    convert.write(root / "more.safetensors", more)
    line = command(root / "val", weights="more.safetensors")
    assert "no place for loss.x" in line and "config.init" not in line
    bad = tmp_path / "bad"
    for wnid in WNIDS:
        (bad / wnid).mkdir(parents=True)
        (bad / wnid / "0.png").write_bytes((root / f"val/{wnid}/0.png").read_bytes())
    (bad / WNIDS[1] / "1.png").write_bytes(b"no image")
    line = command(bad)
    assert f"cannot decode {WNIDS[1]}/1.png" in line and "undecodable=skip" in line


def test_an_undecodable_image_counts_for_nothing(published, tmp_path):
    root, models, images = published
    for file, label in images:
        (tmp_path / "in" / WNIDS[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / WNIDS[label] / file.name).write_bytes(file.read_bytes())
    (tmp_path / "in" / WNIDS[1] / "1.png").write_bytes(b"no image")
    skip = [*OVERRIDES, Override("data.undecodable", "skip")]
    scores = evaluate(root, data=tmp_path / "in", overrides=skip)["unfolded"]
    rest = [pair for pair in images if pair[0] != root / f"val/{WNIDS[1]}/1.png"]
    assert scores["nll"] == pytest.approx(
        by_hand(*models["deit_tiny"], rest)[1], rel=1e-4
    )


@pytest.mark.parametrize(
    ("preset", "side", "resized", "interpolation"),
    [  # the authors' own evaluation
        ("deit_tiny", 224, 256, "bicubic"),
        ("deit_base", 384, 438, "bicubic"),
        ("swin_tiny", 256, 292, "bicubic"),
        ("slab_pvt_tiny", 224, 256, "bicubic"),
        ("cswin_tiny", 224, 248, "bicubic"),
        ("slab_cswin_tiny", 224, 256, "bicubic"),
        ("resnet50", 224, 256, "bilinear"),
    ],
)
def test_preprocessing_of_families(preset, side, resized, interpolation):
    (family,) = [f for f in FAMILIES.values() if preset in f.presets]
    found = family.preprocessing_of(preset)
    assert found.resized(side) == resized
    assert found.interpolation == interpolation
    assert FAMILIES["llama"].preprocessing_of("llama_350m") is None
