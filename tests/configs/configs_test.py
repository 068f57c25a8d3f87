"""Every config: built, overridden, kept, read back, and trained for two steps."""

import ast
import functools
import importlib
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs.common import parse_arg
from normjax import models
from normjax.cli import flags
from normjax.core.errors import UserError
from normjax.train import config as configs
from normjax.train.experiment import build_experiment, build_model
from normjax.train.phases import TrainStep, trace_phase

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for path in (ROOT / "configs").rglob("*.py")
    if any(
        isinstance(node, ast.FunctionDef) and node.name == "get_config"
        for node in ast.parse(path.read_text()).body
    )
)
EVERY = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
LARGE = {"imagenet_swin", "imagenet_pvt", "imagenet_cswin", "lm_text", "lm_llama"}
LARGE |= {"cifar10", "transduction", "bn_only", "perp", "norm_free", "imagenet_deit"}
LARGE |= {"digit_lines", "masked_text", "digits", "finetune"}  # other tests train them
LARGE |= {"lm_liger", "lm_openelm", "digit_pairs"}
TRAINED = [
    pytest.param(path, marks=pytest.mark.slow) if path.stem in LARGE else path
    for path in FILES
]


def get(path, *arg):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return importlib.import_module(name).get_config(*arg)


def leaves(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def other(value):
    """Another value of the same type, and its text on a command line."""
    if isinstance(value, bool):
        return not value, str(not value).lower()
    if isinstance(value, int | float):
        return value + 3, str(value + 3)
    if isinstance(value, str):
        return value + "x", value + "x"
    if any(isinstance(item, dict) for item in value):
        changed = tuple({**item, "pattern": "x"} for item in value)
    else:
        changed = tuple(item + 1 for item in value)
    return changed, repr(changed)


def parse(*argv):
    argv = ["train.py", *argv]
    return flags.parse_flags(argv, flags.define_config, "", overrides=True).config()


def test_there_are_configs():
    assert ROOT / "configs" / "digits.py" in FILES


@EVERY
def test_every_field_can_be_overridden(path):
    wanted = {
        name: other(value)
        for name, value in leaves(get(path))
        if name != "model.mixer"  # several in turn
    }
    if "model.activation" in wanted:  # a component, by its name
        wanted["model.activation"] = "relu", "relu"
    given = [f"--config.{name}={text}" for name, (_, text) in wanted.items()]
    found = dict(leaves(parse(f"--config={path}", *given)))
    found.pop("model.mixer", None)
    assert found == {name: value for name, (value, _) in wanted.items()}


@EVERY
def test_configs_are_locked_and_fresh(path):
    config = parse(f"--config={path}")
    assert config.is_locked
    assert config.to_dict() == get(path).to_dict()
    get(path).seed = 7
    assert get(path).seed == config.seed


@EVERY
def test_kept_and_read_back(path, tmp_path):
    config = get(path)
    configs.keep_config(config, tmp_path / "new" / "run")
    configs.keep_config(get(path), tmp_path / "new" / "run")
    kept = configs.kept_config(tmp_path / "new" / "run")
    assert kept.to_dict() == config.to_dict()
    config.optim.lr = 7.0
    with pytest.raises(UserError, match=r"config\.optim\.lr is .* there and 7\.0 here"):
        configs.keep_config(config, tmp_path / "new" / "run")
    assert configs.kept_config(tmp_path / "new" / "run").optim.lr != 7.0


def test_llama_trains_the_norm_of_its_preset():
    """Written twice: configs import neither jax nor flax."""
    config = get(ROOT / "configs" / "lm_llama.py")
    norm = models.PRESETS["slab_llama_350m"]["norm"]
    assert config.model.norm.to_dict() == norm


def make_images(folder):
    """Two classes of four noisy 32x32 images, for training and for testing."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_two_steps(path, tmp_path, monkeypatch):
    """The config with a shrunken model, on its own data or on made-up images."""
    config = get(path)
    if "dim" in config.model:
        config.model.update(dim=16, depth=1, num_heads=2)
    else:  # a preset, which the file itself shrinks
        config = get(path, "runlocal")
    config.update(batch_size=4, total_steps=2, microbatches=1)
    if config.task == "language_modeling":
        (tmp_path / "words").write_bytes(b"To be, or not to be.\n" * 200)
        config.data.update(name="text_file", path=str(tmp_path / "words"))
        config.data.text.update(length=16, tokenizer="bytes")
    elif config.task == "image_classification" and config.data.name != "digits":
        config.data.update(name="image_folder", path=str(tmp_path / "images"))
        make_images(tmp_path / "images")
    config.data.data_dir = str(tmp_path)
    experiment = build_experiment(config)
    state = experiment.create_state()
    step = TrainStep(experiment, trace_phase(experiment))
    step.begin(state, 2)
    batches = experiment.train_batches()
    for _ in range(2):
        state, metrics = step(state, next(batches))
        assert all(np.isfinite(float(v)) for v in metrics.values()), metrics
    batches.close()
    step.close()
    for name, x in jax.tree_util.tree_leaves_with_path(state.params):
        assert np.isfinite(x).all(), name


def test_digits_with_a_convolutional_network():
    path = ROOT / "configs/digits.py"
    config = parse(f"--config={path}:model=resnet,norm=batch_norm", "--config.seed=3")
    model = build_model(config, num_classes=10)
    init = functools.partial(model.init, train=False)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 89_402
    with pytest.raises(UserError, match="unknown model 'resnt'; did you mean 'resnet'"):
        get(path, "model=resnt")


DEFAULTS = {"norm": "prepbn", "depth": 4, "rate": 0.5, "flip": False}


@pytest.mark.parametrize(
    ("arg", "changes"),
    [
        (None, {}),
        ("", {}),
        ("norm=x", {"norm": "x"}),
        ("depth=7,rate=1e-3", {"depth": 7, "rate": 1e-3}),
        ("flip", {"flip": True}),
        ("flip=true,", {"flip": True}),
        ("flip=false", {}),
        ("norm=", {"norm": ""}),
    ],
)
def test_parse_arg(arg, changes):
    assert parse_arg(arg, **DEFAULTS) == {**DEFAULTS, **changes}


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("nrm=x", "unknown config argument 'nrm'; did you mean 'norm'"),
        ("depth=1.5", "'depth' takes a int: '1.5'"),
        ("rate=fast", "'rate' takes a float: 'fast'"),
        ("flip=yes", "'flip' takes true or false: 'yes'"),
        ("norm", "'norm' needs a value"),
        ("depth", "'depth'"),
    ],
)
def test_parse_arg_errors(arg, message):
    with pytest.raises(UserError) as caught:
        parse_arg(arg, **DEFAULTS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ({"name": "prepbn", "decay_fraction": 0.8}, {"decay_steps": 80}),
        (
            {"name": "prepbn", "decay_fraction": 0.8, "warmup_fraction": 0.1},
            {"decay_steps": 80, "warmup_steps": 10},
        ),
        ({"name": "prepbn", "decay_steps": 3}, {"decay_steps": 3}),
        ({"name": "layer_norm", "epsilon": 1.0}, {"epsilon": 1.0}),
    ],
)
def test_fractions_become_steps(spec, steps):
    from normjax.norms import NORMS

    resolved = configs.resolve_fractions(NORMS, spec, 100)
    assert resolved == {"name": spec["name"], **steps}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"decay_fraction": 0.5, "decay_steps": 3}, "not both"),
        ({"decay_fraction": 1.5}, r"must lie in \[0, 1\], got 1.5"),
    ],
)
def test_fraction_errors(spec, message):
    from normjax.norms import NORMS

    with pytest.raises(UserError, match=message):
        configs.resolve_fractions(NORMS, {"name": "prepbn", **spec}, 100)


def test_arguments_that_the_file_leaves_out():
    """A component takes every plain argument of its class, at its type."""
    config = parse(
        f"--config={ROOT / 'configs/digits.py'}:norm=power_norm",
        "--config.model.norm.floor=0.01",
        "--config.model.norm.warmup_fraction=0.1",
        "--config.model.mixer.kernel_size=3",
    )
    assert config.model.norm.to_dict() == {
        "name": "power_norm",
        "floor": 0.01,
        "warmup_fraction": 0.1,
    }
    assert config.model.mixer.kernel_size == 3
    with pytest.raises(UserError, match="did you mean 'momentum'"):
        parse(
            f"--config={ROOT / 'configs/digits.py'}:norm=batch_norm",
            "--config.model.norm.momentun=0.5",
        )


@pytest.mark.parametrize("family", ["deit", "swin", "pvt", "cswin"])
def test_imagenet_variants_are_the_presets(family):
    from normjax.families import FAMILIES, PRESETS

    module = importlib.import_module(f"configs.imagenet_{family}")
    for variant in FAMILIES[family].recipes:
        model = module.get_config(f"variant={variant}").model.to_dict()
        preset = PRESETS[model["name"]].get("norm", {"name": "layer_norm"})
        assert preset.items() <= model["norm"].items(), variant
    with pytest.raises(UserError, match="unknown variant 'slab_tny'; did you mean"):
        module.get_config("variant=slab_tny")
