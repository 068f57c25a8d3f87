"""An optimizer goes on from a checkpoint bit for bit, whatever its state is."""

import chex
import jax
import optax
import pytest

from normjax import optim
from normjax.core.arguments import field_names
from normjax.records.checkpoint import Checkpoints
from normjax.train.step import make_train_step
from tests.train.step_test import parts
from tests.train.tiny import Linear, toy_batch, toy_state

OFTEN = {"rank": 2, "interval": 2, "anneal_steps": 4}
"""So that subspaces and resets change before, at and behind the checkpoint."""
CHANGING = ("galore", "gradnormlorp", "subspace_momentum", "stable_spam")
NAMES = [
    pytest.param(entry.name, marks=() if entry.name in CHANGING else pytest.mark.slow)
    for entry in optim.OPTIMIZERS
]


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_as_if_nothing_had_been(name, tmp_path):
    make = optim.OPTIMIZERS[name].make
    known = {k: v for k, v in OFTEN.items() if k in field_names(make)}
    optimizer = make(optax.linear_schedule(0.1, 0.01, 6), None, **known)
    model, (objective, recipe) = Linear(), parts()
    rate = optax.constant_schedule(0.1)
    step = jax.jit(make_train_step(model, objective, optimizer, rate, recipe))
    state = toy_state(model, optimizer)
    like = jax.tree.map(lambda x: x, state)
    for i in range(3):
        state, _ = step(state, toy_batch(seed=i))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.wait()
    again = checkpoints.restore(3, like)
    checkpoints.close()
    chex.assert_trees_all_equal(again.opt_state, state.opt_state)
    for i in range(3, 6):
        state, _ = step(state, toy_batch(seed=i))
        again, _ = step(again, toy_batch(seed=i))
    chex.assert_trees_all_equal(again, state)
    chex.assert_tree_all_finite(state.params)
