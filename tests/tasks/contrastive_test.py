"""Gradients of whole batches from chunks, with dropout, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from normjax.core.errors import UserError
from normjax.devices.mesh import device_mesh
from normjax.tasks import cached_gradients, contrastive_loss

RNG = np.random.default_rng(0)
PARAMS = {
    "image": RNG.normal(size=(6, 4)),
    "text": RNG.normal(size=(5, 4)),
    "log_temperature": np.log(0.2),
}
INPUTS = {"image": RNG.normal(size=(8, 6)), "text": RNG.normal(size=(8, 5))}


def encode(params, inputs, key=None):
    def one(tower):
        x = inputs[tower]
        if key is not None:
            x = x * jax.random.bernoulli(key, 0.7, x.shape)
        z = jnp.tanh(x @ params[tower])
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

    return one("image"), one("text")


def loss(params, embeddings):
    return contrastive_loss(*embeddings, params["log_temperature"])


def whole(params, inputs):
    return loss(params, encode(params, inputs))


def assert_alike(found, expected, tolerance=1e-11):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_the_loss_by_hand(x64):
    a, b = (np.asarray(t) for t in encode(PARAMS, INPUTS))
    scores = np.exp(a @ b.T / 0.2)
    right = np.diag(scores)
    rows, columns = -np.log(right / scores.sum(1)), -np.log(right / scores.sum(0))
    expected = (rows.mean() + columns.mean()) / 2
    np.testing.assert_allclose(contrastive_loss(a, b, np.log(0.2)), expected, 1e-12)


@pytest.mark.parametrize("size", [3, 4, 8, 20])
def test_chunks_give_the_gradient_of_the_batch(size, x64):
    """Whatever is left for the last one."""
    run = functools.partial(cached_gradients, encode, loss, chunk_size=size)
    found, expected = jax.jit(
        lambda p, x: (run(p, x), jax.value_and_grad(whole)(p, x))
    )(PARAMS, INPUTS)
    assert_alike(found, expected)


def test_a_chunk_has_one_dropout_in_both_passes(x64):
    key, sizes = jax.random.key(1), ((0, 3), (3, 6), (6, 8))

    def by_hand(params):
        parts = []
        for i, (start, end) in enumerate(sizes):
            part = jax.tree.map(lambda t, s=slice(start, end): t[s], INPUTS)
            parts.append(encode(params, part, jax.random.fold_in(key, i)))
        return loss(params, jax.tree.map(lambda *t: jnp.concatenate(t), *parts))

    run = functools.partial(cached_gradients, encode, loss, chunk_size=3, key=key)
    both = jax.jit(lambda p: (run(p, INPUTS), jax.value_and_grad(by_hand)(p)))
    assert_alike(*both(PARAMS))


@pytest.mark.parametrize("checked", [True, False])
def test_devices_sum_what_their_examples_give(checked, x64):
    """An average would be too small by their number."""
    mesh, rows = device_mesh(jax.devices()[:4], 4, 1, 1), P("data")
    kind = {"chunk_size": 1, "axis_name": "data"}
    run = functools.partial(cached_gradients, encode, loss, **kind)
    given = {"in_specs": (P(), rows), "out_specs": P(), "check_vma": checked}
    split = jax.jit(jax.shard_map(run, mesh=mesh, **given))(PARAMS, INPUTS)
    assert_alike(split, jax.jit(jax.value_and_grad(whole))(PARAMS, INPUTS))


def test_an_empty_chunk_is_refused():
    with pytest.raises(UserError, match="a chunk of 0 examples"):
        cached_gradients(encode, loss, PARAMS, INPUTS, chunk_size=0)
