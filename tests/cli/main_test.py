"""Every wrong input: one line on stderr, exit code 2, nothing overwritten."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from normjax.cli.main import eval_command, run, train_command
from normjax.records.workdir import LOCK_FILE
from normjax.train import loop
from normjax.train.config import keep_config
from tests.train.tiny import tiny_config

DIGITS = "configs/digits.py"


@pytest.fixture
def command(tmp_path, capfd, monkeypatch, request):
    """Run train or eval in process; returns (exit code, lines on stderr)."""
    monkeypatch.chdir(request.config.rootpath)

    def call(which, *arguments):
        capfd.readouterr()
        function = {"train": train_command, "eval": eval_command}[which]
        code = run(function, [f"{which}.py", *arguments])
        return code, capfd.readouterr().err.splitlines()

    return call


def assert_refused(result, *fragments):
    code, lines = result
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and "Traceback" not in lines[0]
    for fragment in fragments:
        assert fragment in lines[0]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (
            ["--config.optim.lrr=1"],
            ["unknown field of config.optim: 'lrr'", "did you mean 'lr'"],
        ),
        (["--config.modl.dim=8"], ["unknown field of config: 'modl'", "'model'"]),
        (["--config.mesh.tensr=2"], ["field of config.mesh: 'tensr'", "'tensor'"]),
        (["--config.mesh.fsdp=3"], ["config.mesh", "fsdp=3", "number of devices, 4"]),
        (["--config.sharding.mlp=tensr"], ["config.sharding.mlp: 'tensr'", "'tensor'"]),
        (["--config.parallelism=pmep"], ["config.parallelism 'pmep'", "'pmap'"]),
        (["--config.optim.lr.x=1"], ["config.optim.lr is a value", "'x'"]),
        (["--config.optim.lr=fast"], ["config.optim.lr", "float", "'fast'"]),
        (["--config.batch_size=1.5"], ["config.batch_size", "int", "'1.5'"]),
        (["--config.data.augment.flip=maybe"], ["flip", "bool", "'maybe'"]),
        (["--config.optim=3"], ["config.optim"]),
        (["--config.model.norm.name=layer_nrm"], ["norm 'layer_nrm'", "'layer_norm'"]),
        (["--config.model.mixer.name=slab"], ["mixer 'slab'", "'sla'"]),
        (["--config.model.activation=glu"], ["activation 'glu'", "'gelu'"]),
        (["--config.model.placement=sandwch"], ["placement", "'sandwich'"]),
        (["--config.model.pool=cls"], ["mixer 'sla' does not accept seq input"]),
        (["--config.model.name=vitt"], ["model 'vitt'", "'vit'"]),
        (["--config.optim.name=adam"], ["config.optim.name 'adam'", "'adamw'"]),
        (["--config.optim.trainable=nrom"], ["'nrom' matches no parameter"]),
        (["--config.optim.trainable=("], ["config.optim.trainable '('"]),
        (["--config.optim.warmup_fraction=1.0"], ["warmup_fraction"]),
        (["--config.optim.schedule=cosin"], ["schedule 'cosin'", "'cosine'"]),
        (
            ["--config.optim.groups=({'pattern': 'nrom'},)"],
            ["config.optim.groups[0]: pattern 'nrom' finds no parameter"],
        ),
        (["--config.dtype=float16"], ["config.dtype 'float16'", "'bfloat16'"]),
        (["--config.data.name=digts"], ["data set 'digts'", "'digits'"]),
        (["--config.data.train_split=trian"], ["split of 'digits': 'trian'"]),
        (["--config.data.eval_split=tset"], ["split of 'digits': 'tset'"]),
        (["--config.data.path=/nowhere"], ["data set 'digits' with path"]),
        (["--config.data.mean=(0.5,0.5)"], ["config.data.mean must be 1 or 3"]),
        (["--config.data.std=('a',)"], ["config.data.std"]),
        (["--config.data.augment.crop_padding=-1"], ["augment.crop_padding=-1"]),
        (["--config.batch_size=18"], ["config.batch_size 18", "4 devices"]),
        (
            ["--config.batch_size=24", "--config.microbatches=4"],
            ["config.batch_size 24 does not divide by 4 microbatches on 4 devices"],
        ),
        (["--config.batch_size=0"], ["config.batch_size must be at least 1"]),
        (["--config.total_steps=0"], ["config.total_steps must be at least 1"]),
        (["--config.eval_every=0"], ["config.eval_every must be at least 1"]),
        (["--config.checkpoint.every=0"], ["config.checkpoint.every must be"]),
        (["--config.model.norm.decay_fraction=1.5"], ["decay_fraction", "1.5"]),
        (["extra"], ["unexpected argument 'extra'"]),
        (["--wrkdir=x"], ["'wrkdir'", "workdir"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else None,
)
def test_wrong_overrides(command, tmp_path, arguments, fragments):
    workdir = tmp_path / "run"
    result = command(
        "train", f"--config={DIGITS}:runlocal", f"--workdir={workdir}", *arguments
    )
    assert_refused(result, *fragments)
    assert not list(workdir.rglob("checkpoints/*"))


@pytest.mark.parametrize(
    ("spec", "fragments"),
    [
        ("configs/digit.py", ["config file 'configs/digit.py'", "configs/digits.py"]),
        (f"{DIGITS}:nrm=prepbn", ["config argument 'nrm'", "'norm'"]),
        (f"{DIGITS}:norm=prebn", ["norm 'prebn'", "'prepbn'"]),
        (f"{DIGITS}:norm", ["config argument 'norm' needs a value"]),
        (f"{DIGITS}:runlocal=7", ["config argument 'runlocal' takes true or false"]),
    ],
)
def test_wrong_config(command, tmp_path, spec, fragments):
    assert_refused(
        command("train", f"--config={spec}", f"--workdir={tmp_path / 'run'}"),
        *fragments,
    )


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("\nimport no_such_module\n", ["line 2", "no_such_module"]),
        ("def get_config(arg=None):\n    return missing\n", ["line 2", "'missing'"]),
        ("def get_config(arg=None):\n    return {}\n", ["gives a dict, no ConfigDict"]),
        ("value = 1\n", ["get_config"]),
    ],
)
def test_faulty_config_file(command, tmp_path, text, fragments):
    path = tmp_path / "faulty.py"
    path.write_text(text)
    result = command("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert_refused(result, "faulty.py", *fragments)


def test_what_is_required(command):
    assert_refused(command("train", "--workdir=x"), "--config is required")
    assert_refused(command("train", f"--config={DIGITS}"), "--workdir is required")
    assert_refused(command("eval"), "--workdir is required")
    assert_refused(command("eval", "--workdir=caf\udce9"), "is no UTF-8")


def test_workdir_of_another_config(command, tmp_path):
    keep_config(tiny_config(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    result = command("train", f"--config={DIGITS}", f"--workdir={tmp_path}")
    assert_refused(result, "another config", "config.model.dim is 16 there and 64 here")
    assert (tmp_path / "config.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", LOCK_FILE}


def test_the_workdir_alone_goes_on(command, tmp_path, monkeypatch):
    """With the config that it keeps, and what a start may change."""
    started = []

    def train(config, workdir):
        started.append((config.to_dict(), workdir))

    monkeypatch.setattr(loop, "train", train)
    kept = tiny_config(optim__lr=0.5)
    keep_config(kept, tmp_path)
    where = f"--workdir={tmp_path}"
    assert command("train", where)[0] == 75  # as if a signal had stopped it
    assert command("train", where, "--config.data.path=/new", "--config.log_every=3")
    first, second = (config for config, _ in started)
    assert first == kept.to_dict()
    kept.data.path, kept.log_every = "/new", 3
    assert second == kept.to_dict()
    result = command("train", where, "--config.optim.lrr=1")
    assert_refused(result, "unknown field of config.optim: 'lrr'")
    result = command("train", f"--workdir={tmp_path / 'new'}")
    assert_refused(result, "--config is required")


def test_workdir_with_a_damaged_config(command, tmp_path):
    (tmp_path / "config.json").write_text("{")
    for result in (
        command("train", f"--config={DIGITS}", f"--workdir={tmp_path}"),
        command("eval", f"--workdir={tmp_path}"),
    ):
        assert_refused(result, "config.json", "damaged")
    assert (tmp_path / "config.json").read_text() == "{"


def test_workdir_that_is_a_file(command, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    result = command("train", f"--config={DIGITS}", f"--workdir={path}")
    assert_refused(result, f"workdir {path}")
    assert path.read_text() == "mine"


def test_eval_without_a_run(command, tmp_path):
    assert_refused(command("eval", f"--workdir={tmp_path}"), "holds no run")
    keep_config(tiny_config(), tmp_path)
    result = command("eval", f"--workdir={tmp_path}")
    assert_refused(result, "no complete checkpoint")
    assert_refused(command("eval", f"--workdir={tmp_path}", "--flod"), "'flod'", "fold")


def test_truncated_image(command, tmp_path, capfd):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    broken = tmp_path / "images" / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    code, lines = command(
        "train",
        f"--config={DIGITS}:runlocal",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.name=image_folder",
        f"--config.data.path={tmp_path / 'images'}",
        f"--config.data.data_dir={tmp_path / 'prepared'}",
    )
    errors = [line for line in lines if not line.startswith("prepar")]
    assert_refused((code, errors), "train/dog/1.png", "truncated")
    shutil.rmtree(tmp_path / "images")


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError, MemoryError])
def test_memory_that_runs_out_is_one_line(error, capfd):
    def command(argv):
        del argv
        raise error("RESOURCE_EXHAUSTED: Out of memory allocating 420 bytes.\nat 0x7")

    assert run(command, ["train.py"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (RESOURCE_EXHAUSTED: Out of memory al")
    assert "config.microbatches" in line and "0x7" not in line
