"""Loops by hand, starts from a whole decoder, what cannot loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.errors import UserError

SIZE = {"vocab_size": 7, "dim": 8, "num_heads": 2, "mlp_hidden": 6, "depth": 4}
MIXER = {"name": "grouped_query", "num_kv_heads": 1}
TOKENS = jnp.array([[6, 3, 1, 4, 1]])


def built(model="recursive_decoder", **changes):
    return models.build(model, **{**SIZE, "mixer": MIXER, **changes})


def variables_of(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape), shapes)


def unrolled(params):
    """The decoder with a layer of its own for every layer of depth."""
    params = dict(params)
    loop, deltas = params.pop("loop"), params.pop("deltas")
    for layer in range(4):
        block = jax.tree.map(np.array, loop[f"blocks_{layer % 2}"])
        own = deltas[f"blocks_{layer % 2}"]
        for part, module in [(p, m) for p in own for m in own[p]]:
            pair = {k: t[layer // 2] for k, t in own[part][module].items()}
            products = pair["down"] @ pair["up"]
            block[part][module]["kernel"] += np.concatenate(list(products), -1)
        params[f"blocks_{layer}"] = block
    return {"params": params}


@pytest.mark.slow
def test_equals_a_decoder_with_the_products_in_its_weights(x64):
    """Values and gradients: a shared weight gets the sum of its layers'."""
    looped, whole = built(rank=2), built("decoder")
    variables = variables_of(looped)
    apart = unrolled(variables["params"])

    def loss(params, model):
        return jnp.sum(jnp.sin(model.apply({"params": params}, TOKENS)))

    @jax.jit
    def both(params, apart):
        found = [
            jax.value_and_grad(loss)(*p) for p in ((params, looped), (apart, whole))
        ]
        return found

    (a, ours), (b, theirs) = both(variables["params"], apart["params"])
    np.testing.assert_allclose(a, b, rtol=1e-11)
    expected = theirs["blocks_1"]["mixer"]["q"]["kernel"]
    expected = expected + theirs["blocks_3"]["mixer"]["q"]["kernel"]
    found = ours["loop"]["blocks_1"]["mixer"]["q"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    up = variables["params"]["deltas"]["blocks_1"]["mixer"]["kv"]["up"]
    value = theirs["blocks_3"]["mixer"]["kv"]["kernel"][:, 4:] @ up[1, 1].T
    found = ours["deltas"]["blocks_1"]["mixer"]["kv"]["down"][1, 1]
    np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "start",
    [
        "average",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("stepwise", "lower")),
    ],
)
def test_starts(start, x64):
    """The layers that are taken; all ranks give the weights back."""
    whole = built("decoder")
    variables = variables_of(whole)
    for i in range(4):  # of which loops have but one
        for norm in ("norm1", "norm2"):
            variables["params"][f"blocks_{i}"][norm]["scale"] = np.ones(8)
    looped = built(rank=8)
    started = models.recursive_start(looped, variables, start)
    each = [
        variables["params"][f"blocks_{i}"]["mlp"]["fc2"]["kernel"] for i in range(4)
    ]
    taken = {"stepwise": each[3], "lower": each[1], "average": (each[1] + each[3]) / 2}
    found = started["params"]["loop"]["blocks_1"]["mlp"]["fc2"]["kernel"]
    np.testing.assert_allclose(found, taken[start], rtol=1e-12)
    run = jax.jit(lambda a, b: (looped.apply(a, TOKENS), whole.apply(b, TOKENS)))
    np.testing.assert_allclose(*run(started, variables), rtol=0, atol=1e-11)


def test_a_low_rank_is_the_nearest():
    """Of the residual by its singular values; a new delta gives 0."""
    whole = built("decoder", depth=5)
    variables = jax.tree.map(np.float32, variables_of(whole))
    looped = built(rank=1)  # the layer in the middle of five goes
    started = models.recursive_start(looped, variables, "lower")["params"]
    q = [variables["params"][f"blocks_{i}"]["mixer"]["q"]["kernel"] for i in (0, 3)]
    pair = started["deltas"]["blocks_0"]["mixer"]["q"]
    left = q[1] - q[0] - pair["down"][1, 0] @ pair["up"][1, 0]
    s = np.linalg.svd(q[1] - q[0], compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(left, 2), s[1], rtol=1e-4)
    fresh = jax.jit(looped._new_deltas)(jax.random.key(0))
    assert not fresh["blocks_0"]["mlp"]["fc1"]["up"].any()
    assert fresh["blocks_0"]["mlp"]["fc1"]["down"].shape == (2, 2, 8, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loops": 3}, "4 layers do not make 3 loops"),
        ({"norm": "batch_norm"}, "norm 'batch_norm' of a recursive decoder"),
    ],
)
def test_what_cannot_loop(changes, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(built(**changes).init, jax.random.key(0), TOKENS)


def test_decoders_that_are_others_are_refused():
    variables = variables_of(built("decoder", depth=3))
    with pytest.raises(UserError, match="3 layers are fewer than 4"):
        models.recursive_start(built(), variables)
    variables = variables_of(built("decoder", mlp_hidden=5))
    with pytest.raises(UserError, match="in more than loops"):
        models.recursive_start(built(), variables)
    with pytest.raises(UserError, match="'upper'"):
        models.recursive_start(built(), variables, "upper")
