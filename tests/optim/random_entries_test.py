"""Random entries of kernels that are trained, counted."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import optim

PARAMS = {
    "conv": {"kernel": jnp.zeros((3, 3, 4, 5)), "bias": jnp.zeros(5)},
    "blocks": {"fc": {"kernel": jnp.zeros((2, 6, 3))}},
}


def moved(seed=0):
    config = {
        "transformations": ({"name": "random_entries", "per_output": 2, "seed": seed},),
        "clip_norm": 0.0,
        "warmup_fraction": 0.0,
        "weight_decay": 0.0,
    }
    optimizer = optim.build(config, 10, ("blocks",))
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(3):
        grads = jax.tree.map(lambda x, s=step: jnp.cos(s + jnp.ones_like(x)), params)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return jax.tree.map(lambda x: np.asarray(x) != 0, params)


def test_so_many_inputs_of_every_output_move_and_the_same_ones():
    found = moved()
    conv, layers = found["conv"]["kernel"], found["blocks"]["fc"]["kernel"]
    np.testing.assert_array_equal(conv.reshape(-1, 5).sum(0), 2)
    np.testing.assert_array_equal(layers.sum(1), 2)  # of each layer by itself
    assert found["conv"]["bias"].all() and (layers[0] != layers[1]).any()
    again, other = moved(), moved(seed=1)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, again)))
    assert (other["conv"]["kernel"] != conv).any()
