"""The command: a run from a checkpoint file and back, and every wrong input."""

import builtins
from pathlib import Path

import jax
import numpy as np
import pytest

from normjax import convert
from normjax.convert.__main__ import convert_command
from normjax.convert.names import abstract_variables
from normjax.train.cli import run
from normjax.train.config import load_config
from normjax.train.evaluate_run import evaluate_run
from normjax.train.experiment import build_model

CONFIG = "configs/imagenet_deit.py:variant=slab_tiny,runlocal"
SMALL = "configs/imagenet_pvt.py:variant=slab_tiny,runlocal"


@pytest.fixture
def command(capfd, monkeypatch, request):
    """Run the command in process; returns (exit code, stdout, lines on stderr)."""
    monkeypatch.chdir(request.config.rootpath)

    def call(*arguments):
        capfd.readouterr()
        code = run(convert_command, ["convert", *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out, [line for line in err.splitlines() if "error" in line]

    return call


@pytest.fixture
def state(request):
    """A state dict for the small model of CONFIG; modest, finite values."""
    model = build_model(load_config(str(request.config.rootpath / CONFIG)), num_classes=10)
    rng = np.random.default_rng(0)

    def value(leaf):
        if leaf.dtype == np.int32:
            return np.asarray(7, np.int32)
        return (rng.uniform(0.1, 0.3, leaf.shape)).astype(leaf.dtype)

    variables = abstract_variables(model, (32, 32, 1))
    return convert.to_torch(model, jax.tree.map(value, variables), (32, 32))


def test_there_and_back(command, state, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    workdir = tmp_path / "run"
    named = {f"module.{name}": array for name, array in state.items()}
    convert.write(first, named)
    code, out, errors = command(f"--config={CONFIG}", first, workdir)
    assert (code, errors) == (0, [])
    assert "num_batches_tracked" in out and "nothing reads it" in out
    scores = evaluate_run(workdir)
    assert np.isfinite(scores["unfolded"]["nll"])
    assert command("--to_torch", workdir, second)[0] == 0
    back = convert.read(second)
    assert back.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(back[name], state[name], err_msg=name)
    code, _, errors = command(f"--config={CONFIG}", first, workdir)
    assert code == 2 and "holds a checkpoint" in errors[0]


def test_wrong_commands(command, state, tmp_path):
    file = tmp_path / "a.safetensors"
    convert.write(file, state)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.bin").write_bytes(b"nothing")
    out, config = tmp_path / "run", f"--config={CONFIG}"
    for arguments, fragment in (
        ((), "python -m normjax.convert --model=NAME CHECKPOINT WORKDIR"),
        ((config, file), "CHECKPOINT WORKDIR"),
        (("--model=slab_swin_tny", file, out), "did you mean 'slab_swin_tiny'"),
        (("--model=resnet18", file, out), "unknown model 'resnet18'"),
        ((config, "--model=deit_tiny", file, out), "of --config is slab_deit_tiny"),
        (("--modle=deit_tiny", file, out), "'modle'"),
        ((config, tmp_path / "b.safetensors", out), "no checkpoint"),
        ((config, tmp_path / "bad.safetensors", out), "is damaged"),
        ((config, tmp_path / "a.bin", out), "unknown kind of checkpoint '.bin'"),
        ((config, "--averaged", file, out), "no averaged weights"),
        ((f"--config={SMALL}", file, out), "the file lacks block1.0.attn.dwc.bias"),
        (("--to_torch", tmp_path, file), "holds no run"),
    ):
        code, _, errors = command(*arguments)
        assert code == 2 and len(errors) == 1, (arguments, errors)
        assert fragment in errors[0]
    assert not out.exists()


def test_wrappers():
    weights, averaged = {"a.weight": np.zeros(2)}, {"a.weight": np.ones(2)}
    for key in ("model", "state_dict"):
        file = {key: weights, "state_dict_ema": averaged, "epoch": 3}
        assert convert.unwrapped(file) == weights
        assert convert.unwrapped(file, averaged=True) == averaged
    assert convert.unwrapped(weights) == weights
    prefixed = {"module.a.weight": weights["a.weight"]}
    assert convert.unwrapped(prefixed).keys() == weights.keys()
    with pytest.raises(ValueError, match="'epoch' is no tensor"):
        convert.unwrapped({"epoch": 3})
    with pytest.raises(ValueError, match="it is empty"):
        convert.unwrapped({})


def test_torch_is_named_where_it_is_absent(monkeypatch, tmp_path):
    path, original = tmp_path / "a.pth", builtins.__import__
    path.write_bytes(b"")

    def without_torch(name, *rest):
        if name == "torch":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(ValueError, match=r"pip install 'normjax\[torch\]'"):
        convert.read(path)


def test_pth_files(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"a.weight": torch.ones(2, 3), "n": torch.tensor(4)}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "a.pth")
    state = convert.read(tmp_path / "a.pth")
    np.testing.assert_array_equal(state["a.weight"], np.ones((2, 3)))
    assert state["n"] == 4
    torch.save({"model": weights, "config": Path("x")}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="more than tensors"):
        convert.read(tmp_path / "b.pth")
