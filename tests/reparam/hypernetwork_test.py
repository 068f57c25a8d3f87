"""Weights that a network predicts: what they are, and where they start."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import reparam
from normjax.core.errors import UserError

SHAPES = {"fc1/kernel": (30, 40), "fc1/bias": (40,), "norm/scale": (40,)}


def made(**arguments):
    network = reparam.Hypernetwork(SHAPES, **arguments)
    gamma = {"b": jnp.linspace(0, 1, 4)[:, None], "a": jnp.zeros((4, 1, 2))}
    return network, gamma, network.init(jax.random.key(0), gamma)


def test_where_weights_start():
    _, _, variables = made(hidden=(200, 300))
    params = variables["params"]
    base, heads = params["base"], params["heads"]
    assert not base["fc1"]["bias"].any() and not base["norm"]["scale"].any()
    deviations = {
        "base": (base["fc1"]["kernel"], (2 / 30) ** 0.5),
        "kernel": (heads["fc1"]["kernel"], (2 / 1200) ** 0.5),
        "bias": (heads["fc1"]["bias"], (2 / 40) ** 0.5),
        "hidden": (params["hidden_1"]["kernel"], (2 / 300) ** 0.5),
    }
    for name, (array, expected) in deviations.items():
        assert abs(np.std(array) / expected - 1) < 0.1, name


def test_what_the_encodings_give():
    """By the equation, inputs in the order of their names."""
    for encoding, width in (("cos_sin", 6), ("complement", 6), ("none", 3)):
        network, gamma, variables = made(hidden=(5,), encoding=encoding)
        params = jax.tree.map(np.float64, variables["params"])
        z = np.concatenate([np.zeros((4, 2)), np.linspace(0, 1, 4)[:, None]], -1)
        e = {
            "cos_sin": np.concatenate(
                [np.cos(np.pi * z / 2), np.sin(np.pi * z / 2)], 1
            ),
            "complement": np.concatenate([z, 1 - z], 1),
            "none": z,
        }[encoding]
        assert e.shape[1] == width
        h = e @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"]
        h = np.where(h > 0, h, 0.01 * h)
        kernel = np.einsum("bh,hio->bio", h, params["heads"]["fc1"]["kernel"])
        y = network.apply(variables, gamma)
        expected = kernel + params["base"]["fc1"]["kernel"]
        np.testing.assert_allclose(y["fc1"]["kernel"], expected, rtol=1e-4, atol=1e-5)
        assert y["norm"]["scale"].shape == (4, 40)


def test_trained_weights_as_the_base():
    """What is predicted is then a difference to them."""
    main, x = nn.Dense(3), jnp.ones((2, 4))
    trained = main.init(jax.random.key(1), x)["params"]
    shapes = {name: leaf.shape for name, leaf in trained.items()}
    network, gamma = reparam.Hypernetwork(shapes), {"z": jnp.array([[0.0], [1.0]])}
    params = dict(network.init(jax.random.key(0), gamma)["params"])
    heads = jax.tree.map(jnp.zeros_like, params["heads"])
    params |= {"base": trained, "heads": heads}
    weights = network.apply({"params": params}, gamma)
    y = jax.vmap(lambda p, x: main.apply({"params": p}, x))(weights, x)
    np.testing.assert_allclose(y, main.apply({"params": trained}, x), rtol=1e-6)


def test_an_unknown_encoding():
    with pytest.raises(UserError, match="unknown encoding 'cos'; did you mean"):
        made(encoding="cos")
