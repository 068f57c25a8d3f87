"""Norms of which nothing is trained keep their batch statistics, if asked to."""

import jax
import numpy as np
import pytest

from normjax.train.experiment import build_experiment
from normjax.train.frozen import frozen_modules
from normjax.train.programs import jit_train_step
from tests.train.tiny import tiny_config


def config_of(trainable, frozen):
    return tiny_config(
        "norm=repbn,mixer=softmax",
        optim__trainable=trainable,
        optim__frozen_statistics=frozen,
    )


def changed(trainable, frozen):
    """Norms whose statistics a step moves, and parameters that it moves."""
    experiment = build_experiment(config_of(trainable, frozen))
    state = experiment.create_state()
    before = jax.tree.map(np.asarray, (state.model_state["batch_stats"], state.params))
    batch = next(iter(experiment.train_batches(0)))
    state, _ = jit_train_step(experiment)(state, batch)
    after = state.model_state["batch_stats"], state.params
    found = [
        {
            "/".join(key.key for key in path[:-1])
            for (path, old), new in zip(
                jax.tree_util.tree_leaves_with_path(one),
                jax.tree.leaves(other),
                strict=True,
            )
            if not np.array_equal(old, new)
        }
        for one, other in zip(before, after, strict=True)
    ]
    return found


@pytest.mark.parametrize(
    ("trainable", "frozen", "moved"),
    [
        ("^head/", False, {"stem/norm_0", "blocks_0/norm1", "blocks_0/norm2", "norm"}),
        ("^head/", True, set()),
        ("^head/|blocks_0/norm1/bias", True, {"blocks_0/norm1"}),
    ],
)
def test_a_step(trainable, frozen, moved):
    norms, params = changed(trainable, frozen)
    stems = {name for name in norms if name.startswith("stem/norm")}
    assert norms - stems == {name for name in moved if not name.startswith("stem")}
    assert bool(stems) == any(name.startswith("stem") for name in moved)
    assert "head" in params and "blocks_0/mlp/fc1" not in params


def test_which_modules():
    experiment = build_experiment(tiny_config("norm=prepbn,mixer=softmax"))
    state = experiment.abstract_state()
    rule = {"trainable": "^head/|^norm/layer_norm/scale"}
    found = frozen_modules(rule, state)
    assert {"blocks_0/norm1", "blocks_0/norm1/batch_norm", "norm/batch_norm"} <= found
    assert "norm" not in found  # its schedule goes on: a part of it is trained
    assert frozen_modules({"trainable": ".*"}, state) == frozenset()
