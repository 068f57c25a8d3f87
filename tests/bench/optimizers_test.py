"""What a row of the table of optimizers is made of."""

import jax.numpy as jnp
import pytest

from normjax.bench.optimizers import measure, optimizers_command
from normjax.core.errors import UserError


def test_the_state_beside_the_parameters():
    params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
    milliseconds, ratio, state = measure("adamw", params, 1)
    assert milliseconds > 0 and ratio > 0
    assert state == pytest.approx(2, abs=1e-2)  # two moments, and counters
    assert measure("sgd", params, 1)[2] == pytest.approx(1, abs=1e-2)


def test_errors():
    with pytest.raises(UserError, match="unknown optimizer 'adam'"):
        optimizers_command(["optimizers", "adam"])
