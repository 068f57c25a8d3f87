"""Graphs with edges, and the positions of their nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import mixers
from normjax.core.errors import UserError
from tests.mixers.sequence.long_oracles import graph_transformer

RNG = np.random.default_rng(2)
B, N, D, E = 2, 5, 4, 3


def test_edges_nodes_that_nothing_reaches_and_nodes_that_are_none(x64):
    kwargs = {"num_heads": 2, "epsilon": 1e-6}
    mixer = mixers.build("graph_transformer", **kwargs)()
    x, dy = RNG.normal(size=(2, B, N, D)) * 3
    edges, de = RNG.normal(size=(2, B, N, N, E)) * 3
    adjacency, mask = RNG.random((B, N, N)) < 0.5, np.ones((B, N), bool)
    adjacency[0, 1] = False  # no edge into it
    mask[1, 3:] = False
    given = {"adjacency": adjacency, "mask": mask}
    shapes = jax.eval_shape(
        lambda: mixer.init(jax.random.key(0), x, edges=edges, **given)
    )["params"]
    params = jax.tree.map(lambda t: RNG.normal(size=t.shape), shapes)
    poisoned = np.where(mask[..., None], x, np.nan)
    there = adjacency & mask[:, None] & mask[:, :, None]
    lost = np.where(there[..., None], edges, np.nan)

    @jax.jit
    def run(params, x, edges):
        def loss(params, x, edges):
            y, e = mixer.apply({"params": params}, x, edges=edges, **given)
            total = jnp.sum(jnp.where(mask[..., None], y * dy, 0)) + jnp.sum(e * de)
            return total, (y, e)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, edges)

    (_, (y, e)), gradients = run(params, poisoned, lost)
    expected = graph_transformer(x, params, mask, kwargs, adjacency, edges)
    np.testing.assert_allclose(y[mask], expected[0][mask], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(e, expected[1], rtol=1e-10, atol=1e-10)
    leaves = jax.tree.leaves((gradients[0]["edges"], gradients[2]))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    along = RNG.normal(size=x.shape) * mask[..., None]

    def moved(by):
        y, e = graph_transformer(x + by * along, params, mask, kwargs, adjacency, edges)
        return np.sum(y * dy * mask[..., None]) + np.sum(e * de)

    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    actual = np.sum(np.where(mask[..., None], gradients[1], 0) * along)
    np.testing.assert_allclose(actual, slope, rtol=1e-6)


def test_positions_are_eigenvectors_of_the_laplacian():
    adjacency = np.triu(RNG.random((7, 7)) < 0.6, 1)
    adjacency = adjacency | adjacency.T
    degree = np.maximum(adjacency.sum(1), 1)
    laplacian = np.eye(7) - adjacency / np.sqrt(np.outer(degree, degree))
    positions = mixers.laplacian_positions(adjacency, 3)
    product = laplacian @ positions
    values = (positions * product).sum(0) / (positions**2).sum(0)
    np.testing.assert_allclose(product, positions * values, atol=1e-9)
    expected = np.sort(np.linalg.eigvalsh(laplacian))[1:4]
    np.testing.assert_allclose(values, expected, atol=1e-9)
    with pytest.raises(UserError, match="a graph of 7 nodes has no 7 positions"):
        mixers.laplacian_positions(adjacency, 7)
