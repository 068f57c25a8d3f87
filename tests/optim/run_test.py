"""Runs whose config has groups: on a mesh, stopped and gone on with, compared."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax.core.errors import UserError
from normjax.core.layer_decay import layer_decay
from normjax.records.checkpoint import Checkpoints
from normjax.train import loop
from normjax.train.config import keep_config, kept_config
from normjax.train.experiment import build_experiment
from tests.train.loop_test import signal_at
from tests.train.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_once")
GROUPS = (
    {"pattern": "^stem", "trainable": False},
    {"pattern": "norm", "weight_decay": 0.5, "transformation": "adaptive_clip"},
    *layer_decay(0.5, 1, stem="^pos_embed"),
)


def config_with(groups=GROUPS, **changes):
    return tiny_config("norm=layer_norm,mixer=softmax", optim__groups=groups, **changes)


def test_on_a_mesh_as_on_one_device():
    """Three updates by gradients that are a function of the parameters."""

    @jax.jit
    def after(state):
        params, opt_state = state.params, state.opt_state
        for _ in range(3):
            gradients = jax.tree.map(lambda x: jnp.cos(5 * x), params)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
        return params, opt_state

    found = []
    for count, mesh in ((1, {}), (4, {"mesh__fsdp": 2, "mesh__tensor": 2})):
        experiment = build_experiment(config_with(**mesh), jax.devices()[:count])
        optimizer, state = experiment.optimizer, experiment.create_state()
        found.append(jax.device_get(after(state)))
        after.clear_cache()
    chex.assert_trees_all_close(*found, atol=1e-6)
    kernel = "blocks_0/mlp/fc1/kernel"
    lie = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.sharding.spec
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
    }
    moments = [spec for name, spec in lie.items() if name.endswith(kernel)]
    assert len(moments) == 2
    assert all(
        spec == state.params["blocks_0"]["mlp"]["fc1"]["kernel"].sharding.spec
        for spec in moments
    )
    assert not [name for name in lie if "stem" in name]


def test_a_run_goes_on_exactly_and_only_with_its_groups(tmp_path, monkeypatch):
    config = config_with(total_steps=4, checkpoint__every=2)
    loop.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        assert loop.train(config, tmp_path / "stopped") is None
    assert kept_config(tmp_path / "stopped").optim.groups == config.optim.groups
    loop.train(kept_config(tmp_path / "stopped"), tmp_path / "stopped")
    states = []
    for name in ("whole", "stopped"):
        checkpoints = Checkpoints(tmp_path / name)
        states.append(checkpoints.read_newest())
        checkpoints.close()
    chex.assert_trees_all_equal(*states)
    first = build_experiment(config).create_state().params
    stem = states[0]["params"]["stem"], first["stem"]
    jax.tree.map(np.testing.assert_array_equal, *stem)
    with pytest.raises(UserError, match=r"config\.optim\.groups is \(.* there and"):
        loop.train(config_with(GROUPS[1:], total_steps=4), tmp_path / "whole")


def test_arguments_said_or_left_out(tmp_path):
    """An optimizer's own argument at its default says nothing new."""
    config = tiny_config()
    keep_config(config, tmp_path)
    config.optim.epsilon = 1e-8
    keep_config(config, tmp_path)
    config.optim.epsilon = 1e-6
    with pytest.raises(UserError, match=r"config\.optim\.epsilon is 1e-08 there and"):
        keep_config(config, tmp_path)
