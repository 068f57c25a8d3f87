"""Scanned layers: the model with a module for every layer, compiled once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models
from normjax.core.errors import UserError
from normjax.generate import init_cache

GEOMETRY = {"vocab_size": 11, "dim": 8, "depth": 3, "num_heads": 2, "mlp_hidden": 12}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)))


def scanned(**changes):
    arguments = {"norm": "repbn", "scan_layers": True, **GEOMETRY, **changes}
    return models.build("decoder", **arguments)


def noisy(variables, seed=1):
    """Variables that differ from layer to layer."""
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    moved = [x + 0.1 * rng.random(x.shape, np.float32) for x in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.fixture(scope="module")
def model():
    return scanned()


@pytest.fixture(scope="module")
def variables(model):
    return noisy(jax.jit(model.init)(jax.random.key(0), TOKENS))


def test_variables(model, variables):
    assert set(variables["params"]) == {"embed", "blocks", "norm", "head"}
    kernels = variables["params"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernels.shape == (3, 8, 24)
    plain, unrolled = model.unrolled(variables)
    own = jax.jit(plain.init)(jax.random.key(0), TOKENS)
    chex.assert_trees_all_equal_shapes_and_dtypes(dict(own), unrolled)
    layer = unrolled["params"]["blocks_2"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(layer, kernels[2])


def test_layers_start_apart(model):
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]["blocks"]
    kernels = params["mlp"]["fc1"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])


@pytest.mark.parametrize("remat", [False, True])
def test_outputs_gradients_and_state_are_those_of_the_unrolled_model(variables, remat):
    model = scanned(remat=remat)
    plain, unrolled = model.unrolled(variables)

    def run(model):
        def loss(params, rest):
            logits, new = model.apply(
                {**rest, "params": params}, TOKENS, True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(logits)), (logits, new)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    def parts(variables):
        rest = {k: v for k, v in variables.items() if k != "params"}
        return variables["params"], rest

    (_, (logits, new)), grads = run(model)(*parts(variables))
    (_, (expected, state)), slopes = run(plain)(*parts(unrolled))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    _, got = model.unrolled({"params": grads, **new})
    wanted = {"params": slopes, **state}
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_fold(model, variables):
    folded_model, folded = fusion.fold(model, variables)
    assert {site.norm for site in fusion.plan(model, variables)} == {"RepBN"}
    assert set(folded) == {"params"}
    expected = jax.jit(model.apply)(variables, TOKENS)
    logits = jax.jit(folded_model.apply)(folded, TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_cached(model, variables):
    cache = init_cache(model, variables, len(TOKENS), TOKENS.shape[1])

    @jax.jit
    def step(cache, tokens):
        given = {**variables, "cache": cache}
        return model.apply(given, tokens, decode=True, mutable=["cache"])

    expected, logits = jax.jit(model.apply)(variables, TOKENS), []
    for i in range(TOKENS.shape[1]):
        out, new = step(cache, TOKENS[:, i : i + 1])
        cache = new["cache"]
        logits.append(out)
    np.testing.assert_allclose(jnp.concatenate(logits, 1), expected, atol=1e-5)


def test_images():
    """State as well: a vision transformer and the one with a module for every layer."""
    sizes = {"num_classes": 3, "dim": 8, "depth": 2, "num_heads": 2, "norm": "repbn"}
    stem = {"name": "patch", "patch_size": 4}
    model = models.build("vit", scan_layers=True, stem=stem, **sizes)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = noisy(jax.jit(model.init)(jax.random.key(1), images))
    plain, unrolled = model.unrolled(variables)
    ours, theirs = (
        jax.jit(lambda v, m=m: m.apply(v, images, True, mutable=["batch_stats"]))(v)
        for m, v in ((model, variables), (plain, unrolled))
    )
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    _, state = model.unrolled(ours[1])
    chex.assert_trees_all_close(state, dict(theirs[1]), atol=1e-5)
    folded_model, folded = fusion.fold(model, variables)
    expected = model.apply(variables, images)
    np.testing.assert_allclose(folded_model.apply(folded, images), expected, atol=1e-5)
    with pytest.raises(UserError, match="share_layers has those of one"):
        model.clone(share_layers=True).apply(variables, images)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"placement": models.PLACEMENTS["mix"], "depth": 4},
            "placement of layers 0 and 1",
        ),
        ({"mixer": "lightning"}, "mixer of layers 0 and 1"),
        ({"drop_path_rate": 0.1}, "drop_path of layers 0 and 1"),
    ],
)
def test_layers_that_differ_are_refused(changes, what):
    with pytest.raises(UserError, match=what):
        jax.eval_shape(scanned(**changes).init, jax.random.key(0), TOKENS)
