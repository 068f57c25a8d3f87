"""The encoder-decoder: a NumPy oracle, order, padding, mixers, folding, sizes."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models
from normjax.core.arguments import required_names
from normjax.core.errors import UserError
from normjax.mixers import MIXERS
from normjax.norms import NORMS
from tests.models import encoder_decoder_oracle as oracle
from tests.models.decoder_oracle import rms_norm

VOCABULARY, WIDTH = 11, 8
SOURCES, TARGETS = (7, 4, 1), (3, 6, 5)
"""Lengths of the rows of a batch."""
STATE = ["batch_stats", "losses", "diagnostics"]


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


MEMORY = sorted(e.name for e in MIXERS if "memory" in e.tags)
MASKED = sorted(e.name for e in NORMS if {"mask", "causal"} <= e.tags)
OFTEN = ("batch_norm", "power_norm", "softmax", "mixture_of_head", "pattention")
"""The others are among the slow tests."""


def marked(names):
    return [name if name in OFTEN else slow(name) for name in names]


def small(**changes):
    sizes = {"vocab_size": VOCABULARY, "dim": WIDTH, "depth": 2, "num_heads": 2}
    return models.build("encoder_decoder", **{**sizes, "mlp_hidden": 12, **changes})


def batch_of(poison=None, seed=1):
    """(tokens, known) of a padded batch; `poison`: the token at padding."""
    rng, rows = np.random.default_rng(seed), []
    for lengths in (TARGETS, SOURCES):
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
        tokens = rng.integers(0, VOCABULARY - 1, mask.shape)
        tokens = tokens if poison is None else np.where(mask, tokens, poison)
        rows.append((jnp.asarray(tokens), jnp.asarray(mask)))
    (tokens, mask), (source, source_mask) = rows
    return tokens, {"source": source, "source_mask": source_mask, "mask": mask}


def abstract(model):
    tokens, known = batch_of()
    return dict(jax.eval_shape(model.init, jax.random.key(0), tokens, **known))


def random_variables(model, dtype: Any = np.float32):
    """Parameters and states that are nowhere 0 or 1; the last token is far away."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        collection, name = path[0].key, path[-1].key
        if leaf.dtype.kind != "f":
            return jnp.zeros(leaf.shape, leaf.dtype)
        if collection != "params" or name in ("scale", "alpha"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), dtype)
        fan_in = leaf.shape[0] if leaf.ndim > 1 and name != "embed" else 1
        return jnp.asarray(rng.standard_normal(leaf.shape) / fan_in**0.5, dtype)

    variables = jax.tree_util.tree_map_with_path(draw, abstract(model))
    table = variables["params"]["embed"].at[-1].set(100.0)
    return {**variables, "params": {**variables["params"], "embed": table}}


POISON = VOCABULARY - 1


def weights_of(mixer):
    """Of queries, keys, values and the output."""
    if "qkv" in mixer:
        q, k, v = np.split(mixer["qkv"]["kernel"], 3, -1)
    else:
        q = mixer["q"]["kernel"]
        k, v = np.split(mixer["kv"]["kernel"], 2, -1)
    return q, k, v, mixer["proj"]["kernel"]


def norm_of(params, name, factor=1.0):
    if name not in params:
        return lambda x: x
    return lambda x: factor * rms_norm(x, params[name]["scale"])


def layer_of(block, placement, factor):
    """A block as the oracle takes it."""
    gate, up = np.split(block["mlp"]["fc1"]["kernel"], 2, -1)
    layer: dict[str, Any] = {"self": weights_of(block["mixer"])}
    layer["mlp"] = gate, up, block["mlp"]["fc2"]["kernel"]
    if "cross" in block:
        layer["cross"] = weights_of(block["cross"])
    where, other = ("stream", "in") if placement == "post" else ("in", "stream")
    for name in ("norm1", "norm2", "norm_cross"):
        layer[f"{name}_{where}"] = norm_of(block, name, factor)
        layer[f"{name}_{other}"] = lambda x: x
        layer[f"{name}_out"] = norm_of(block, f"{name}_out")
    return layer


@pytest.mark.parametrize(
    ("placement", "tied", "base"),
    [
        ("pre", False, 100.0),
        ("post", True, None),
        ("scaled", False, 100.0),
        ("peri", False, 100.0),
    ],
)
def test_value_equals_the_oracle(placement, tied, base, x64):
    """Of rows without padding, while the model gets them padded."""
    model = small(placement=placement, tied=tied, rotary_base=base)
    variables = random_variables(model, np.float64)
    tokens, known = batch_of(poison=POISON)
    logits = jax.jit(model.apply)(variables, tokens, **known)
    assert logits.dtype == np.float64
    params = jax.tree.map(np.asarray, variables["params"])
    factors = [1.0, 2**-0.5 if placement == "scaled" else 1.0]
    encoder, decoder = (
        [layer_of(params[f"{p}{i}"], placement, f) for i, f in enumerate(factors)]
        for p in ("encoder_blocks_", "blocks_")
    )
    ends = ("encoder_embed_norm", "encoder_norm", "embed_norm", "norm")
    norms = {name: norm_of(params, name) for name in ends}
    head = params["embed"].T if tied else params["head"]["kernel"]
    for row, (n, m) in enumerate(zip(TARGETS, SOURCES, strict=True)):
        expected = oracle.encoder_decoder(
            known["source"][row, :m],
            tokens[row, :n],
            params["embed"],
            encoder,
            decoder,
            norms,
            head,
            heads=2,
            base=base,
        )
        np.testing.assert_allclose(logits[row, :n], expected, 1e-11, 1e-11)


@pytest.fixture(params=marked(MEMORY), scope="module")
def mixed(request):
    """(model, variables) with one of the mixers everywhere, and a norm that folds."""
    model = small(mixer=request.param, norm="repbn", depth=1)
    with jax.enable_x64(True):
        return model, random_variables(model, np.float64)


def test_target_tokens_see_no_later_one_and_the_whole_source(mixed, x64):
    model, variables = mixed
    tokens = jnp.tile(jnp.arange(6)[None], (4, 1)).at[1, 3].set(8)
    source = jnp.tile(jnp.arange(5)[None], (4, 1)).at[2, 0].set(8).at[3, -1].set(8)
    logits = np.asarray(jax.jit(model.apply)(variables, tokens, source=source))
    np.testing.assert_array_equal(logits[1, :3], logits[0, :3])
    assert (logits[1, 3:] != logits[0, 3:]).any(-1).all()
    assert (logits[2:] != logits[0]).any(-1).all()


def test_padding_of_the_source_is_as_if_it_were_not_there(mixed, x64):
    model, variables = mixed
    tokens, known = batch_of(poison=POISON)
    apply = jax.jit(model.apply)
    padded = apply(variables, tokens, **known)
    alone = apply(variables, tokens[1:2], source=known["source"][1:2, : SOURCES[1]])
    assert TARGETS[1] == len(padded[1]) and SOURCES[1] < known["source"].shape[1]
    np.testing.assert_allclose(padded[1], alone[0], 1e-9, 1e-9)


def test_all_norms_fold_whatever_the_mixer(mixed, x64):
    """The encoder's last norm goes into the keys and values of every layer."""
    model, variables = mixed
    folded, merged = fusion.fold(model, variables)
    plan = {fold.path: fold for fold in fusion.plan(model, variables)}
    assert not any(fold.reason for fold in plan.values())
    assert len(plan) == 2 + 3 + 2
    assert "batch_stats" not in merged
    tokens, known = batch_of(poison=POISON)
    before, after = (
        np.asarray(jax.jit(m.apply)(v, tokens, **known))[known["mask"]]
        for m, v in ((model, variables), (folded, merged))
    )
    np.testing.assert_allclose(after, before, 1e-9, 1e-9 * np.abs(before).max())


def test_where_the_norms_go():
    model = small(norm="repbn")
    plan = {f.path: f.into for f in fusion.plan(model, random_variables(model))}
    assert plan["encoder_norm"] == ("blocks_0/cross/kv", "blocks_1/cross/kv")
    assert plan["blocks_1/norm_cross"] == ("blocks_1/cross/q",)
    assert plan["blocks_1/norm1"] == ("blocks_1/mixer/qkv",)
    assert plan["encoder_blocks_0/norm2"] == ("encoder_blocks_0/mlp/fc1",)
    assert plan["norm"] == ("head",)


@pytest.mark.parametrize("placement", ["post", "peri"])
def test_norms_that_cannot_fold_say_why(placement):
    model = small(norm="repbn", placement=placement, tied=True)
    plan = fusion.plan(model, random_variables(model))
    reasons = {fold.path: fold.reason for fold in plan}
    if placement == "post":
        assert all("residual stream" in reason for reason in reasons.values())
        return
    assert not reasons["blocks_0/norm_cross_out"]
    assert "residual stream" in reasons["encoder_embed_norm"]
    assert "table of embeddings" in reasons["norm"]


def training(model, variables):
    """Function of a batch: logits, state after the step, gradients of what counts."""
    state = {k: v for k, v in variables.items() if k != "params"}
    mask = np.asarray(batch_of()[1]["mask"])
    weights = np.random.default_rng(2).normal(size=(*mask.shape, VOCABULARY))
    weights = jnp.asarray(weights * mask[..., None], jnp.float32)

    @jax.jit
    def step(tokens, known):
        def loss(params, overwrite):
            given = {**state, **overwrite, "params": params}
            logits, new = model.apply(given, tokens, train=True, mutable=STATE, **known)
            return jnp.sum(logits * weights), (logits, new.get("batch_stats", {}))

        overwrite = {k: v for k, v in state.items() if k.startswith("_overwrite")}
        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        gradients, (logits, stats) = gradient(variables["params"], overwrite)
        return logits, stats, gradients

    return step


@pytest.mark.parametrize("name", marked(MASKED))
def test_padding_reaches_no_token_no_statistics_and_no_gradient(name):
    """Not even where the backward pass of a norm averages over all positions."""
    steps = {k: 1 for k in required_names(NORMS[name].make)}
    model = small(norm={"name": name, **steps}, depth=1)
    variables = random_variables(model)
    step = training(model, variables)
    clean, poisoned = step(*batch_of(poison=0)), step(*batch_of(poison=POISON))
    chex.assert_tree_all_finite(poisoned)
    mask = batch_of()[1]["mask"]
    np.testing.assert_array_equal(poisoned[0][mask], clean[0][mask])
    chex.assert_trees_all_equal(poisoned[1], clean[1])
    chex.assert_trees_all_close(poisoned[2], clean[2], rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(
        lambda a, b: (a != b).any(), clean[1], variables["batch_stats"]
    )
    parts = {name: any(jax.tree.leaves(tree)) for name, tree in moved.items()}
    assert parts == dict.fromkeys(
        ("encoder_blocks_0", "encoder_norm", "blocks_0", "norm"), True
    )


@pytest.mark.parametrize("mask_norms", [True, False])
def test_which_tokens_the_statistics_are_of(mask_norms):
    """The first norms move by a tenth of the way to the moments of what counts."""
    model = small(norm="batch_norm", mask_norms=mask_norms, depth=1)
    variables = random_variables(model)
    tokens, known = batch_of(poison=POISON)
    run = jax.jit(functools.partial(model.apply, train=True, mutable=STATE))
    _, new = run(variables, tokens, **known)
    table = np.asarray(variables["params"]["embed"], np.float64)
    rows = {
        "encoder_blocks_0": (known["source"], known["source_mask"]),
        "blocks_0": (tokens, known["mask"]),
    }
    for block, (row, mask) in rows.items():
        x = table[row][np.asarray(mask)] if mask_norms else table[row]
        x = x.reshape(-1, WIDTH)
        start = variables["batch_stats"][block]["norm1"]
        for name, moment in (("mean", x.mean(0)), ("var", x.var(0))):
            expected = 0.9 * np.asarray(start[name]) + 0.1 * moment
            actual = new["batch_stats"][block]["norm1"][name]
            np.testing.assert_allclose(actual, expected, 1e-5, err_msg=name)


def test_parameter_count():
    dim, hidden = 96, 256
    feed = 3 * dim * hidden
    encoder, decoder = 4 * dim**2 + feed + 2 * dim, 8 * dim**2 + feed + 3 * dim
    expected = 2 * 53 * dim + 2 * (encoder + decoder) + 2 * dim
    params = abstract(models.build("transduction_tiny"))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == expected == 527_424


@pytest.mark.parametrize("placement", sorted(models.PLACEMENTS))
def test_placements_build(placement):
    params = abstract(small(placement=placement, norm="repbn", depth=4))["params"]
    ends = models.PLACEMENTS[placement]
    for prefix in ("", "encoder_"):
        assert (f"{prefix}embed_norm" in params) == ends.embedding
        assert (f"{prefix}norm" in params) == ends.final
    places = sum(map(bool, ends.layer(3, 4)[:3]))
    for block, branches in (("blocks_3", 3), ("encoder_blocks_3", 2)):
        assert sum("norm" in name for name in params[block]) == branches * places


@pytest.mark.slow
@pytest.mark.parametrize("placement", sorted(models.PLACEMENTS))
def test_gradients_are_finite_and_reach_everything(placement):
    # Mix-LN has layers of either kind from four on.
    depth = 4 if placement == "mix" else 2
    model = small(placement=placement, norm="power_norm", depth=depth)
    _, _, (gradients, _) = training(model, random_variables(model))(*batch_of())
    chex.assert_tree_all_finite(gradients)
    assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(gradients))


def test_each_of_the_three_mixers_has_its_place():
    params = abstract(small(mixer=("pattention", "softmax", "rela"), depth=1))["params"]
    assert set(params["encoder_blocks_0"]["mixer"]) == {"q", "k", "v", "proj"}
    assert set(params["blocks_0"]["mixer"]) == {"qkv", "proj"}
    assert set(params["blocks_0"]["cross"]) == {"q", "kv", "proj", "norm"}


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients():
    results = []
    for remat in (False, True):
        model = small(norm="power_norm", depth=1, remat=remat)
        results.append(training(model, random_variables(model))(*batch_of()))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


def test_bfloat16_computes_with_float32_parameters_and_logits():
    model = small(dtype=jnp.bfloat16, norm="power_norm")
    variables = abstract(model)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {
        jnp.dtype("float32")
    }
    tokens, known = batch_of()
    logits = jax.eval_shape(model.apply, variables, tokens, **known)
    assert (logits.shape, logits.dtype) == ((3, 6, VOCABULARY), jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "gated_linear"}, "mixer 'gated_linear' does not accept memory"),
        ({"mixer": "sla"}, "mixer 'sla' does not accept seq input"),
        ({"norm": "group_norm"}, "norm 'group_norm' does not accept causal input"),
        ({"placement": "pst"}, "unknown placement 'pst'; did you mean 'post'"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError) as caught:
        small(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
