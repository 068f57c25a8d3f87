"""The decoder: sizes, a NumPy oracle, order, documents, padding, what it refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.arguments import required_names
from normjax.core.errors import UserError
from normjax.mixers import MIXERS
from normjax.norms import NORMS
from tests.models import decoder_oracle as oracle

VOCABULARY, LENGTH = 11, 12
SMALL = {"vocab_size": VOCABULARY, "dim": 8, "depth": 2, "num_heads": 2}
STATE = ["batch_stats", "losses", "diagnostics"]


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


CAUSAL = sorted(e.name for e in MIXERS if "causal" in e.tags)
MASKED = sorted(e.name for e in NORMS if {"mask", "causal"} <= e.tags)
OFTEN = ("batch_norm", "repbn", "power_norm", "unified_norm")
"""Norms of language models; the others are among the slow tests."""


def small(**changes):
    return models.build("decoder", **{**SMALL, "mlp_hidden": 12, **changes})


def abstract(model):
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    return dict(jax.eval_shape(model.init, jax.random.key(0), tokens))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(model, dtype=np.float32, size=1.0):
    """Parameters and states that are nowhere 0 or 1; counters at 0.

    Args:
      size: of the weights, times what keeps the size of activations.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        collection, name = path[0].key, path[-1].key
        if leaf.dtype.kind != "f":
            return jnp.zeros(leaf.shape, leaf.dtype)
        if collection != "params" or name in ("scale", "alpha"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), dtype)
        fan_in = leaf.shape[0] if leaf.ndim > 1 and name != "embed" else 1
        values = size * rng.standard_normal(leaf.shape) / fan_in**0.5
        return jnp.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(model))


def tokens_of(rows, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, VOCABULARY - 1, (rows, LENGTH))


@pytest.mark.parametrize(
    ("preset", "vocabulary", "dim", "depth", "hidden", "norm", "mixer"),
    [
        # a mixer: queries, keys, values and the output
        ("lm_tiny", 257, 192, 4, 512, 192, 4 * 192**2),
        ("lm_70m", 32_000, 512, 12, 1368, 512, 4 * 512**2),
        ("lm_130m", 32_000, 768, 12, 2048, 768, 4 * 768**2),
        # a norm: that of RMSNorm, scale and bias of BatchNorm, alpha
        ("slab_llama_350m", 32_000, 1024, 18, 4096, 3 * 1024 + 1, 4 * 1024**2),
        # no norm has parameters; the mixer has a gate, too
        ("transnormer_tiny", 257, 192, 4, 512, 0, 5 * 192**2),
    ],
)
def test_parameter_counts(preset, vocabulary, dim, depth, hidden, norm, mixer):
    layer = mixer + 3 * dim * hidden + 2 * norm
    expected = 2 * vocabulary * dim + depth * layer + norm
    if preset == "transnormer_tiny":
        expected += dim  # the frequencies of the first layer
    params = abstract(models.build(preset))["params"]
    assert count(params) == expected == PARAMETERS[preset]


PARAMETERS = {
    "lm_tiny": 1_869_888,
    "lm_70m": 70_578_688,
    "lm_130m": 134_105_856,
    "slab_llama_350m": 367_639_589,  # as published
    "transnormer_tiny": 2_015_808,
}


def test_a_tied_model_lacks_the_output_layer():
    tied, untied = (abstract(small(tied=tied))["params"] for tied in (True, False))
    assert set(untied) - set(tied) == {"head"}
    assert count(untied) - count(tied) == VOCABULARY * 8


def layer_of(params, name, factor):
    """The weights of a block as the oracle names them."""
    block = params[name]
    weights = {"o": block["mixer"]["proj"]["kernel"]}
    qkv = np.split(block["mixer"]["qkv"]["kernel"], 3, -1)
    weights["q"], weights["k"], weights["v"] = qkv
    weights["gate"], weights["up"] = np.split(block["mlp"]["fc1"]["kernel"], 2, -1)
    weights["down"] = block["mlp"]["fc2"]["kernel"]

    def norm(which):
        if which not in block:
            return lambda x: x
        return lambda x: factor * oracle.rms_norm(x, block[which]["scale"])

    norms = ("norm1", "norm2", "norm1_out", "norm2_out")
    return {**weights, **{which: norm(which) for which in norms}}


@pytest.mark.parametrize(
    ("placement", "tied"),
    [("pre", False), ("pre", True), ("scaled", False), ("peri", False)],
)
def test_value_equals_the_oracle(placement, tied, x64):
    model = small(placement=placement, tied=tied, rotary_base=100.0)
    variables = random_variables(model, np.float64)
    tokens = tokens_of(3)
    logits = jax.jit(model.apply)(variables, jnp.asarray(tokens))
    params = jax.tree.map(np.asarray, variables["params"])
    factors = [1.0, 2**-0.5 if placement == "scaled" else 1.0]
    layers = [layer_of(params, f"blocks_{i}", f) for i, f in enumerate(factors)]
    table = params["embed"]
    start = table
    if placement == "peri":
        start = oracle.rms_norm(table, params["embed_norm"]["scale"])
    for row, actual in zip(tokens, logits, strict=True):
        expected = oracle.decoder(
            row,
            start,
            layers,
            lambda x: oracle.rms_norm(x, params["norm"]["scale"]),
            table.T if tied else params["head"]["kernel"],
            heads=2,
            base=100.0,
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)


CUT = 5
"""Where the first of two documents ends in a row."""


@pytest.fixture(params=CAUSAL, scope="module")
def mixed(request):
    """(apply, variables) of a model with one of the causal mixers."""
    window = {"window": 3} if request.param == "local_attention" else {}
    model = small(mixer={"name": request.param, **window}, depth=1)
    with jax.enable_x64(True):
        return jax.jit(model.apply), random_variables(model, np.float64)


def test_no_token_sees_a_later_one(mixed, x64):
    apply, variables = mixed
    tokens = tokens_of(1).repeat(3, 0)
    tokens[1, CUT] = (tokens[1, CUT] + 1) % VOCABULARY
    tokens[2, -1] = (tokens[2, -1] + 1) % VOCABULARY
    logits = np.asarray(apply(variables, jnp.asarray(tokens)))
    np.testing.assert_array_equal(logits[1, :CUT], logits[0, :CUT])
    np.testing.assert_array_equal(logits[2, :-1], logits[0, :-1])
    assert (logits[1, CUT] != logits[0, CUT]).all()


def test_documents_in_one_row_and_behind_padding_are_as_alone(mixed, x64):
    """Packed ones start at position 0; padding in front counts for nothing."""
    apply, variables = mixed
    tokens = tokens_of(1).repeat(3, 0)
    first, second = tokens[0, :CUT], tokens[0, CUT:]
    places = np.arange(LENGTH)
    positions = np.tile(np.where(places < CUT, places, places - CUT), (3, 1))
    mask = np.ones_like(tokens, bool)
    mask[1, :CUT] = False
    tokens[1, :CUT] = VOCABULARY - 1
    mask[2, 3:CUT] = False
    tokens[2, 3:CUT] = VOCABULARY - 1
    mask, positions = jnp.asarray(mask), jnp.asarray(positions)
    packed = apply(variables, jnp.asarray(tokens), mask=mask, positions=positions)
    padded = apply(variables, jnp.asarray(tokens), mask=mask)
    # Behind a document nothing matters: the test above.
    alone = np.stack([np.resize(t, LENGTH) for t in (first, second, first[:3])])
    alone = np.asarray(apply(variables, jnp.asarray(alone)))
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(packed[0, :CUT], alone[0, :CUT], **close)
    for row in (0, 1, 2):
        np.testing.assert_allclose(packed[row, CUT:], alone[1, :-CUT], **close)
    np.testing.assert_allclose(packed[2, :3], alone[2, :3], **close)
    np.testing.assert_allclose(padded[1, CUT:], alone[1, :-CUT], **close)
    np.testing.assert_allclose(padded[2, :3], alone[2, :3], **close)


def normed(name, **changes):
    """A model with that norm, its variables and a padded batch."""
    steps = {k: 1 for k in required_names(NORMS[name].make)}
    model = small(norm={"name": name, **steps}, depth=1, **changes)
    mask = np.arange(LENGTH) < np.array([LENGTH, 7, 1])[:, None]
    variables = random_variables(model)
    # Another row of the table for padding, far from all others.
    embed = variables["params"]["embed"].at[-1].set(100.0)
    variables["params"]["embed"] = embed
    return model, variables, tokens_of(3), mask


def training(model, variables, mask):
    """Function of tokens: logits, state after the step, gradients of what counts."""
    state = {k: v for k, v in variables.items() if k != "params"}
    weights = np.random.default_rng(2).normal(size=(*mask.shape, VOCABULARY))
    weights = jnp.asarray(weights * mask[..., None], jnp.float32)

    @jax.jit
    def step(tokens):
        def loss(params, overwrite):
            given = {**state, **overwrite, "params": params}
            logits, new = model.apply(
                given, tokens, train=True, mask=jnp.asarray(mask), mutable=STATE
            )
            return jnp.sum(logits * weights), (logits, new.get("batch_stats", {}))

        overwrite = {k: v for k, v in state.items() if k.startswith("_overwrite")}
        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        gradients, (logits, stats) = gradient(variables["params"], overwrite)
        return logits, stats, gradients

    return step


@pytest.mark.parametrize("name", [n if n in OFTEN else slow(n) for n in MASKED])
def test_padding_reaches_no_token_no_statistics_and_no_gradient(name):
    """Not even where the backward pass of a norm averages over all positions."""
    model, variables, tokens, mask = normed(name)
    step = training(model, variables, mask)
    clean = step(jnp.asarray(tokens))
    poisoned = np.where(mask, tokens, VOCABULARY - 1)
    logits, stats, gradients = step(jnp.asarray(poisoned))
    np.testing.assert_array_equal(logits[mask], clean[0][mask])
    chex.assert_trees_all_equal(stats, clean[1])
    changed = jax.tree.map(lambda a, b: (a != b).any(), stats, variables["batch_stats"])
    assert any(jax.tree.leaves(changed))
    chex.assert_trees_all_close(gradients, clean[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask_norms", [True, False])
def test_which_tokens_the_statistics_are_of(mask_norms):
    """The first norm moves by a tenth of the way to the moments of what counts."""
    model, variables, tokens, mask = normed("batch_norm", mask_norms=mask_norms)
    poisoned = np.where(mask, tokens, VOCABULARY - 1)
    run = jax.jit(functools.partial(model.apply, train=True, mutable=STATE))
    _, new = run(variables, jnp.asarray(poisoned), mask=jnp.asarray(mask))
    embedded = np.asarray(variables["params"]["embed"], np.float64)[poisoned]
    counted = embedded[mask] if mask_norms else embedded.reshape(-1, 8)
    start = variables["batch_stats"]["blocks_0"]["norm1"]
    for name, moment in (("mean", counted.mean(0)), ("var", counted.var(0))):
        expected = 0.9 * np.asarray(start[name]) + 0.1 * moment
        actual = new["batch_stats"]["blocks_0"]["norm1"][name]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=name)


def test_packed_and_padded_batches_train_alike():
    """The same documents give the same logits and the same statistics."""
    model, variables, tokens, _ = normed("repbn")
    tokens, places = tokens[:2], np.arange(LENGTH)
    positions = np.tile(np.where(places < CUT, places, places - CUT), (2, 1))
    lengths = np.array([CUT, LENGTH - CUT])
    mask = np.tile(places < lengths[:, None], (2, 1))
    padded = np.full((4, LENGTH), VOCABULARY - 1)
    padded[mask] = tokens.reshape(-1)

    @jax.jit
    def run(tokens, **known):
        return model.apply(variables, tokens, train=True, mutable=STATE, **known)

    logits, new = run(jnp.asarray(tokens), positions=jnp.asarray(positions))
    other, same = run(jnp.asarray(padded), mask=jnp.asarray(mask))
    actual = other[mask].reshape(logits.shape)
    np.testing.assert_allclose(actual, logits, rtol=1e-4, atol=1e-4)
    stats, others = new["batch_stats"], same["batch_stats"]
    chex.assert_trees_all_close(others, stats, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", sorted(models.PLACEMENTS))
def test_placements_build(placement):
    model = small(placement=placement, norm="repbn", depth=4)
    variables = abstract(model)
    has = {name: name in variables["params"] for name in ("embed_norm", "norm")}
    ends = models.PLACEMENTS[placement]
    assert has == {"embed_norm": ends.embedding, "norm": ends.final}
    norms = [name for name in variables["params"]["blocks_3"] if "norm" in name]
    placement = ends.layer(3, 4)
    assert len(norms) == 2 * sum(map(bool, placement[:3]))


@pytest.mark.parametrize("norm", ["rms_norm", slow("repbn")])
@pytest.mark.parametrize(
    "placement", [p if p in ("mix", "peri") else slow(p) for p in models.PLACEMENTS]
)
def test_gradients_are_finite_and_reach_everything(placement, norm):
    # Mix-LN has layers of either kind from four on.
    model = small(placement=placement, norm=norm, depth=4 if placement == "mix" else 2)
    variables = random_variables(model)
    step = training(model, variables, np.ones((3, LENGTH), bool))
    logits, stats, (gradients, _) = step(jnp.asarray(tokens_of(3)))
    assert logits.dtype == jnp.float32
    chex.assert_tree_all_finite((logits, stats, gradients))
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients():
    results, tokens = [], jnp.asarray(tokens_of(2))
    positions = jnp.asarray(np.tile(np.arange(LENGTH) % CUT, (2, 1)))
    prepbn = {"name": "prepbn", "decay_steps": 4}
    for remat in (False, True):
        model = small(norm=prepbn, depth=1, remat=remat, dropout_rate=0.3)
        variables = random_variables(model)

        def loss(params, model=model, variables=variables):
            logits, new = model.apply(
                {**variables, "params": params},
                tokens,
                train=True,
                positions=positions,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2)},
            )
            return jnp.sum(logits**2), new

        grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
        results.append(grad(variables["params"]))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_computes_with_float32_parameters_and_logits(tied):
    model = small(dtype=jnp.bfloat16, norm="repbn", tied=tied)
    variables = abstract(model)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    tokens = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)
    logits = jax.eval_shape(model.apply, variables, tokens)
    assert (logits.shape, logits.dtype) == ((2, LENGTH, VOCABULARY), jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "sla"}, "mixer 'sla' does not accept causal + seq input"),
        ({"norm": "group_norm"}, "norm 'group_norm' does not accept causal input"),
        ({"mlp": "conv_glu"}, "mlp 'conv_glu' does not accept causal + seq input"),
        ({"norm": "prepbn"}, "norm 'prepbn' needs decay_steps"),
        ({"placement": "pst"}, "unknown placement 'pst'; did you mean 'post'"),
        ({"rotary": 10}, "argument of model 'decoder': 'rotary'; did you mean"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError) as caught:
        small(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
