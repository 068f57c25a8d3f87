"""The command: a run from a checkpoint file and back, and every wrong input."""

import argparse
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import language_config
from normjax import convert, models
from normjax.cli.main import run
from normjax.config.recipes import load_config
from normjax.convert.__main__ import convert_command
from normjax.convert.names import abstract_variables
from normjax.evaluation.published import recipe_of
from normjax.evaluation.run import evaluate_run
from normjax.models import PRESETS
from normjax.tasks.described import Text
from normjax.train.config import kept_config
from normjax.train.experiment import build_model
from normjax.train.start import saved_variables, start_from

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
    model = build_model(
        load_config(str(request.config.rootpath / CONFIG)), num_classes=10
    )
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


TEXT_CONFIG = """
from ml_collections import ConfigDict

from configs.common import language_config


def get_config(path):
    config = language_config()
    config.data.name, config.data.path = "text_file", path
    config.data.data_dir = path + ".cache"
    config.data.text.length = 16
    config.batch_size = 4
    config.model = ConfigDict({"name": "slab_llama_350m", "dim": 12, "depth": 1})
    config.model.num_heads, config.model.mlp_hidden = 3, 16
    rms_norm = {"name": "rms_norm", "epsilon": 1e-6}
    repbn = {"name": "repbn", "epsilon": 1e-6, "alpha_init": 0.0, "scale_init": 0.0}
    prepbn = {"name": "prepbn", "warmup_fraction": 0.1, "decay_fraction": 0.8}
    config.model.norm = ConfigDict(
        {**prepbn, "layer_norm": rms_norm, "batch_norm": repbn}
    )
    return config
"""


def text_state():
    """A state dict of the model of TEXT_CONFIG, in the middle of its decay."""
    sizes = {"dim": 12, "depth": 1, "num_heads": 3, "mlp_hidden": 16}
    model = models.build("slab_llama_350m", vocab_size=257, **sizes)
    rng = np.random.default_rng(0)

    def value(leaf):
        if leaf.dtype == np.int32:
            return np.asarray(10_000 + 7_000, np.int32)
        return rng.uniform(0.1, 0.3, leaf.shape).astype(leaf.dtype)

    return convert.to_torch(model, jax.tree.map(value, abstract_variables(model, ())))


def test_a_language_model_there_and_back(command, tmp_path):
    text, config = tmp_path / "text.txt", tmp_path / "llama.py"
    text.write_text("".join(f"{i} is a number\n\n" for i in range(400)))
    config.write_text(TEXT_CONFIG)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    workdir, state = tmp_path / "run", text_state()
    convert.write(first, state)
    code, out, errors = command(f"--config={config}:{text}", first, workdir)
    assert (code, errors) == (0, [])
    assert "num_step" in out and "inv_freq" in out
    norm = kept_config(workdir).model.norm
    assert (norm.decay_steps, norm.batch_norm.epsilon) == (18_000, 1e-6)
    assert "decay_fraction" not in norm
    scores = evaluate_run(workdir)
    assert 0 < scores["unfolded"]["nll"] < 20
    assert command("--to_torch", workdir, second)[0] == 0
    back = convert.read(second)
    assert back.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(back[name], state[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "shape", "sizes"),
    [
        ("digit_lines.py:variant=sviptr_v2_t", (32, 192, 1), {"num_classes": 11}),
        ("communities.py:variant=cluster", (), {"num_classes": 6, "vocab_size": 7}),
        ("masked_text.py:variant=m2_bert_80m", (), {"vocab_size": 256}),
    ],
)
def test_lines_graphs_and_masked_texts(command, tmp_path, config, shape, sizes):
    """Whose images have other sides, and whose data fix two arguments."""
    config = f"configs/{config}"
    model = build_model(load_config(config), **sizes)
    shapes = abstract_variables(model, shape)
    variables = jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), shapes)
    state = convert.to_torch(model, variables, shape)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert.write(first, state)
    code, _, errors = command(f"--config={config}", first, tmp_path / "run")
    assert (code, errors) == (0, [])
    assert command("--to_torch", tmp_path / "run", second)[0] == 0
    back = convert.read(second)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], array) for name, array in state.items())


@pytest.mark.parametrize(
    "name",
    [
        *("slab_llama_350m", "lm_70m", "lm_130m", "slab_swin_tiny", "deit_small"),
        *("sviptr_v2_t", "sviptr_v1_l", "m2_bert_80m", "m2_bert_341m"),
    ],
)
def test_a_preset_stands_for_itsrecipe_of(name):
    config = load_config(recipe_of(name))
    assert config.model.name == name
    kept = {k: v for k, v in PRESETS[name].get("norm", {}).items() if "init" not in k}
    norm = config.model.norm.to_dict()
    assert {k: norm.get(k, kept[k]) for k in kept} == kept


def test_wrong_commands(command, state, tmp_path):
    file = tmp_path / "a.safetensors"
    convert.write(file, state)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.txt").write_bytes(b"nothing")
    out, config = tmp_path / "run", f"--config={CONFIG}"
    for arguments, fragment in (
        ((), "missing CHECKPOINT: give CHECKPOINT WORKDIR"),
        ((config, file), "CHECKPOINT WORKDIR"),
        (("--model=slab_swin_tny", file, out), "did you mean 'slab_swin_tiny'"),
        (("--model=transduction_tiny", file, out), "unknown model 'transduction_tiny'"),
        (("--model=resnet18", file, out), "are prepbn, those of the model batch_norm"),
        ((config, "--model=deit_tiny", file, out), "of --config is slab_deit_tiny"),
        (("--modle=deit_tiny", file, out), "'modle'"),
        ((config, tmp_path / "b.safetensors", out), "no checkpoint"),
        (("--model=deit_tiny", "--config.seed=1", tmp_path / "b.pt", out), "no check"),
        ((config, tmp_path / "bad.safetensors", out), "is damaged"),
        ((config, tmp_path / "a.txt", out), "unknown kind of checkpoint '.txt'"),
        ((config, "--averaged", file, out), "no averaged weights"),
        ((f"--config={SMALL}", file, out), "the file lacks block1.0.attn.dwc.bias"),
        (("--to_torch", tmp_path, file), "holds no run"),
    ):
        code, _, errors = command(*arguments)
        assert code == 2 and len(errors) == 1, (arguments, errors)
        assert fragment in errors[0]
    assert not out.exists()


def test_pth_files(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"a.weight": torch.ones(2, 3), "n": torch.tensor(4)}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "a.pth")
    state = convert.read(tmp_path / "a.pth")
    np.testing.assert_array_equal(state["a.weight"], np.ones((2, 3)))
    assert state["n"] == 4
    torch.save({"model": weights, "config": Path("x")}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"more than tensors .*Path"):
        convert.read(tmp_path / "b.pth")
    training = {"args": argparse.Namespace(lr=1), "metric": np.float64(0.7)}
    torch.save({"state_dict": weights, **training}, tmp_path / "model_best.pth.tar")
    assert convert.read(tmp_path / "model_best.pth.tar")["n"] == 4
    raw = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(raw[:-40])
    with pytest.raises(ValueError, match="is cut off"):
        convert.read(tmp_path / "c.pth")
    quantized = {"a.weight": torch.ones(2).to(torch.float8_e4m3fn)}
    torch.save(quantized, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=r"a\.weight is quantized"):
        convert.read(tmp_path / "d.pth")


def run_of(model, workdir):
    """A run of a small decoder before its first step."""
    config = language_config()
    sizes = {"dim": 8, "depth": 2, "num_heads": 2, "mlp_hidden": 8}
    config.model = ConfigDict({"name": "decoder", "norm": "rms_norm", **sizes, **model})
    shapes = abstract_variables(build_model(config, vocab_size=257), ())
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), shapes)
    start_from(config.lock(), drawn, workdir, Text(257))
    return drawn


def test_softmax_layers_become_a_recurrence(command, tmp_path):
    """Those that are there; the others, and every array, stay."""
    first, second = tmp_path / "softmax", tmp_path / "liger"
    grouped = {"name": "grouped_query", "num_kv_heads": 1}
    drawn = run_of({"mixer": ("rg_lru", grouped)}, first)
    code, out, errors = command("--linearize", first, second)
    assert (code, errors) == (0, []) and "liger" in out
    config = kept_config(second)
    assert config.model.mixer[0] == "rg_lru"
    assert dict(config.model.mixer[1]) == {"name": "liger", "num_kv_heads": 1}
    kept = saved_variables(second)
    jax.tree.map(np.testing.assert_array_equal, kept, drawn)
    code, _, errors = command("--linearize", first, second)
    assert code == 2 and "holds a checkpoint" in errors[0]


def test_fields_of_a_linearized_run(command, tmp_path):
    run_of({}, tmp_path / "a")
    field = "--config.model.mixer.recurrence=gsa"
    assert command("--linearize", tmp_path / "a", tmp_path / "b", field)[0] == 0
    expected = {"name": "liger", "joint": True, "recurrence": "gsa"}
    assert dict(kept_config(tmp_path / "b").model.mixer) == expected


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ({"mixer": "rg_lru"}, (), "no softmax attention in mixer 'rg_lru'"),
        (
            {"mixer": {"name": "softmax", "relative_bias": "alibi"}},
            (),
            "liger has nothing like relative_bias='alibi'",
        ),
        ({}, ("--averaged",), "--averaged has no effect with --linearize"),
        ({}, ("--config.model.mixer.windw=3",), "did you mean 'window'"),
        ({}, ("--config.model.mixer.joint=false",), "mixer/kv/kernel is absent"),
    ],
)
def test_what_is_not_linearized(command, tmp_path, model, arguments, message):
    run_of(model, tmp_path / "a")
    where = tmp_path / "a", tmp_path / "b"
    code, _, errors = command("--linearize", *where, *arguments)
    assert code == 2 and message in errors[0] and len(errors) == 1
    assert not (tmp_path / "b" / "config.json").exists()
