"""Runs that begin with other weights: a run's, a file's; once, and never unsaid."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import lm_bytes
from normjax import convert
from normjax.core.errors import UserError
from normjax.records.checkpoint import Checkpoints
from normjax.train.begin import INIT_FILE, beginning, begun_state
from normjax.train.experiment import build_experiment
from normjax.train.loop import train
from normjax.train.start import saved_state
from tests.train.tiny import tiny_config, untrained_run

pytestmark = pytest.mark.usefixtures("compiled_once")


def flat(tree):
    return {k: np.asarray(v) for k, v in flatten_dict(dict(tree), sep="/").items()}


def state_from(path, **changes):
    experiment = build_experiment(tiny_config(init__path=str(path), **changes))
    return begun_state(experiment, beginning(experiment))


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A run of six steps with averaged weights."""
    workdir = tmp_path_factory.mktemp("old") / "run"
    train(tiny_config(ema_decay=0.5), workdir)
    return workdir


def test_a_run_begins_with_another_and_goes_on_without_it(old_run, tmp_path, capsys):
    source, workdir = tmp_path / "source", tmp_path / "new"
    shutil.copytree(old_run, source)
    config = tiny_config(init__path=str(source), seed=5, total_steps=1)
    train(config, workdir)
    assert "begins with" in capsys.readouterr().out
    then = saved_state(old_run).eval_variables()
    first = Checkpoints(workdir)
    like = build_experiment(config).abstract_state()
    begun = first.restore(0, like)
    first.close()
    for path, array in flat(begun.variables()["params"]).items():
        np.testing.assert_array_equal(array, flat(then["params"])[path], err_msg=path)
    kept = json.loads((workdir / INIT_FILE).read_text())
    assert kept["new"] == {} and len(kept["taken"]) > 20
    shutil.rmtree(source)
    train(config, workdir)
    with pytest.raises(UserError, match=r"config.init.path"):
        train(
            tiny_config(init__path=str(source), seed=5, total_steps=1), tmp_path / "b"
        )
    with pytest.raises(UserError, match=r"config.init.head is auto there and new here"):
        config.init.head = "new"
        train(config, workdir)


def test_averaged_or_raw_weights(old_run):
    saved = saved_state(old_run)
    for ema, params in (("auto", saved.ema), ("raw", saved.params)):
        begun = flat(state_from(old_run, init__ema=ema).params)
        for path, array in flat(params).items():
            np.testing.assert_array_equal(begun[path], array, err_msg=path)


def test_an_average_begins_with_the_weights(old_run):
    state = state_from(old_run, ema_decay=0.9)
    assert state.ema_stats is not None
    for one, other in zip(
        jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_an_optimizer_begins_with_the_weights(old_run):
    """`project_weights` brings weights back to the norms that they begin with."""
    state = state_from(old_run, optim__project_weights=True)
    own = build_experiment(tiny_config(optim__project_weights=True)).create_state()
    there, other = (jax.tree.leaves(s.opt_state) for s in (state, own))
    assert any(
        a.size and not np.array_equal(a, b) for a, b in zip(there, other, strict=True)
    )


def test_another_resolution_and_mesh(old_run):
    state = state_from(
        old_run, data__augment__image_size=16, mesh__data=2, mesh__fsdp=2
    )
    assert state.params["pos_embed"].shape == (1, 8, 8, 16)
    old = saved_state(old_run).eval_variables()["params"]
    kernel = state.params["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    np.testing.assert_array_equal(kernel, old["blocks_0"]["mlp"]["fc1"]["kernel"])


def test_what_is_wrong_leaves_no_run_behind(old_run, tmp_path):
    config = tiny_config(init__path=str(old_run), model__dim=8)
    with pytest.raises(
        UserError, match=r"^config.init: .* in .*old.* \(step 6, averaged"
    ):
        train(config, tmp_path / "new")
    assert not (tmp_path / "new/config.json").exists()
    train(tiny_config(init__path=str(old_run), total_steps=1), tmp_path / "new")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"init__head": "keep"}, r"config.init.head has no effect without"),
        ({"init__exclude": "x"}, r"config.init.exclude has no effect without"),
        ({"init__path": "/nowhere"}, r"config.init.path /nowhere: there is nothing"),
        ({"init__path": "x", "init__head": "old"}, r"unknown config.init.head 'old'"),
    ],
)
def test_wrong_fields(changes, line, tmp_path):
    with pytest.raises(UserError, match=line):
        train(tiny_config(**changes), tmp_path)


def test_no_average_to_begin_with(tmp_path):
    old = untrained_run(tiny_config(), tmp_path / "old")
    with pytest.raises(UserError, match=r"config.init.ema='averaged': .* no average"):
        state_from(old, init__ema="averaged")


@pytest.fixture(scope="module")
def published(old_run, tmp_path_factory):
    """A file in DeiT's layout, of 7 classes, 4 x 4 patches, LayerNorm."""
    config = tiny_config("norm=layer_norm,mixer=softmax", **CLS)
    experiment = build_experiment(config)
    model = experiment.model.clone(num_classes=7)
    variables = model.init(jax.random.key(3), np.zeros((1, 8, 8, 3), np.float32))
    state = convert.to_torch(model, variables, (8, 8))
    path = tmp_path_factory.mktemp("file") / "weights.safetensors"
    convert.write(path, {f"module.{name}": array for name, array in state.items()})
    return path, flat(variables["params"])


CLS = {
    "model__pool": "cls",
    "model__stem": {"name": "patch", "patch_size": 2},
    "data__augment__image_size": 8,
}


@pytest.mark.parametrize("norm", ["layer_norm", "prepbn"])
def test_a_file_of_other_classes_channels_and_norms(published, norm):
    path, old = published
    config = tiny_config(f"norm={norm},mixer=softmax", **CLS)
    config.init.path = str(path)
    config.data.augment.image_size = 12
    experiment = build_experiment(config)
    begin = beginning(experiment)
    state = begun_state(experiment, begin)
    new = flat(state.params)
    inside = "" if norm == "layer_norm" else "layer_norm/"
    np.testing.assert_array_equal(
        new[f"blocks_0/norm1/{inside}scale"], old["blocks_0/norm1/scale"]
    )
    np.testing.assert_allclose(
        new["stem/proj/kernel"],
        old["stem/proj/kernel"].sum(2, keepdims=True),
        rtol=1e-5,
    )
    assert new["pos_embed"].shape == (1, 37, 16)
    np.testing.assert_array_equal(new["pos_embed"][:, 0], old["pos_embed"][:, 0])
    assert begin.matched.how["params/head/bias"] == "7 classes there, 10 here"
    untouched = flat(experiment.create_state().params)["head/kernel"]
    np.testing.assert_array_equal(new["head/kernel"], untouched)


def test_a_config_beside_the_weights_that_says_otherwise(published, tmp_path):
    path, _ = published
    shutil.copy(path, tmp_path / "model.safetensors")
    facts = {"architecture": "deit", "num_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    config = tiny_config("norm=layer_norm,mixer=softmax", **CLS)
    config.init.path = str(tmp_path)
    with pytest.raises(UserError, match=r"says model.num_heads=4, .* run 2"):
        beginning(build_experiment(config))


def words(folder, scanned, **changes):
    """A language model of two layers, one array for both where they are scanned."""
    (folder / "text.txt").write_text("To be, or not to be.\n" * 100)
    config = lm_bytes.get_config()
    config.data.update(name="text_file", path=str(folder / "text.txt"))
    config.data.update(data_dir=str(folder / "cache"))
    config.data.text.length, config.batch_size = 16, 4
    config.model.update(dim=16, depth=2, num_heads=2, mlp_hidden=32)
    config.model.scan_layers = scanned
    config.update(changes)
    return config


@pytest.mark.parametrize("scanned", [False, True])
def test_layers_that_are_scanned_and_those_that_are_not(scanned, tmp_path):
    def layers(params):
        name = "mlp/fc1/kernel"
        new = flat(params)
        if f"blocks/{name}" in new:
            return new[f"blocks/{name}"]
        return np.stack([new[f"blocks_{i}/{name}"] for i in range(2)])

    old = untrained_run(words(tmp_path, scanned), tmp_path / "old")
    config = words(tmp_path, not scanned, seed=9)
    config.init.path, config.init.exclude = str(old), "^blocks_1/"
    experiment = build_experiment(config)
    new = layers(begun_state(experiment, beginning(experiment)).params)
    then = layers(saved_state(old).params)
    np.testing.assert_array_equal(new[0], then[0])
    assert not np.array_equal(new[1], then[1])
