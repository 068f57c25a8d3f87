"""Small decoders with drawn variables."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import models

VOCABULARY = 11
TINY = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_hidden": 8}
MIDDLES = {
    "scale": 1.0,
    "var": 2.0,
    "gain_a": 0.5,
    "gain_p": 0.5,
    "a_param": -4.0,
    "bias_a": 0.5,
    "bias_p": 0.5,
}


def decoder(model="decoder", **arguments):
    return models.build(model, **{"vocab_size": VOCABULARY, **TINY, **arguments})


def drawn(model, dtype="float32", seed=0):
    """Variables of which every one matters; without compiling `init`."""
    rng = np.random.default_rng(seed)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)

    def draw(path, leaf):
        middle = MIDDLES.get(path[-1].key, 0.0)
        return jnp.asarray(rng.normal(middle, 0.3, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
