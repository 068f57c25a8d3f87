"""Decoders folded, and turned from Pre-LN into Pre-RMSNorm and Pre-CRMSNorm ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion
from normjax.core.errors import UserError
from normjax.models import PRESETS
from tests.models.decoder_test import LENGTH, VOCABULARY, random_variables, small
from tests.models.decoder_test import tokens_of as tokens

# At the end of its decay, whatever the counters.
PUBLISHED = {**PRESETS["slab_llama_350m"]["norm"], "warmup_steps": 0, "decay_steps": 0}
CASES = [
    # norm, mixer, placement, tied
    (PUBLISHED, "softmax", "pre", False),
    (PUBLISHED, "gated_linear", "scaled", True),
    ("repbn", "transnormer", "sandwich", False),
    ("repbn", "mixture_of_head", "peri", True),
    ("batch_norm", "rg_lru", "mix", False),
]


def build(norm, mixer="softmax", placement="pre", tied=False, **more):
    depth = 4 if placement == "mix" else 2
    arguments = {"mixer": mixer, "placement": placement, "tied": tied}
    return small(norm=norm, depth=depth, **arguments, **more)


def packed():
    """What a model is called with: two documents in a row, a row with padding."""
    places = np.arange(LENGTH)
    positions = np.stack([places % 7, places])
    mask = np.stack([places >= 0, places < 9])
    return jnp.asarray(tokens(2)), {
        "mask": jnp.asarray(mask),
        "positions": jnp.asarray(positions),
    }


def largest_difference(model, variables):
    """Of a logit, in their standard deviations."""
    folded, merged = fusion.fold(model, variables)
    x, known = packed()
    before, after = (
        np.asarray(jax.jit(m.apply)(v, x, **known))[np.asarray(known["mask"])]
        for m, v in ((model, variables), (folded, merged))
    )
    assert 1e-3 < before.std() < 1e2
    return np.abs(before - after).max() / before.std()


def named(cases):
    def text(part):
        return part["name"] if isinstance(part, dict) else str(part)

    ids = ["-".join(map(text, case)) for case in cases]
    return pytest.mark.parametrize(
        ("norm", "mixer", "placement", "tied"), cases, ids=ids
    )


@pytest.mark.slow
@named(CASES)
def test_folded_logits_in_float64(norm, mixer, placement, tied, x64):
    model = build(norm, mixer, placement, tied)
    variables = random_variables(model, np.float64, size=0.5)
    assert largest_difference(model, variables) < 1e-9


@named(CASES[:2])
def test_folded_logits_in_float32(norm, mixer, placement, tied):
    model = build(norm, mixer, placement, tied)
    assert largest_difference(model, random_variables(model, size=0.5)) < 1e-4


def test_where_the_norms_go():
    model = build(PUBLISHED)
    variables = random_variables(model)
    plan = fusion.plan(model, variables)
    into = {f"blocks_{i}/norm1": (f"blocks_{i}/mixer/qkv",) for i in (0, 1)}
    into |= {f"blocks_{i}/norm2": (f"blocks_{i}/mlp/fc1",) for i in (0, 1)}
    assert {entry.path: entry.into for entry in plan} == into | {"norm": ("head",)}
    _, merged = fusion.fold(model, variables)
    assert merged.keys() == {"params"}


def test_closed_form_of_the_merged_projections():
    """q, k, v and gate, up: diag(a) W and c W, a and c of RepBN with epsilon 1e-6."""
    model = build(PUBLISHED)
    variables = random_variables(model)
    _, merged = fusion.fold(model, variables)
    before, stats = (
        jax.tree.map(np.float64, variables[k]) for k in ("params", "batch_stats")
    )
    sites = (
        (("blocks_1", "norm1"), ("blocks_1", "mixer", "qkv")),
        (("blocks_1", "norm2"), ("blocks_1", "mlp", "fc1")),
        (("norm",), ("head",)),
    )
    for norm, layer in sites:
        bn, running = (at(tree, norm)["batch_norm"] for tree in (before, stats))
        slope = bn["scale"] / np.sqrt(running["var"] + 1e-6)
        shift = bn["bias"] - running["mean"] * slope
        kernel, new = (at(tree, layer) for tree in (before, merged["params"]))
        a = slope + bn["alpha"]
        np.testing.assert_allclose(
            new["kernel"], a[:, None] * kernel["kernel"], rtol=1e-6
        )
        expected = shift @ kernel["kernel"]
        np.testing.assert_allclose(new["bias"], expected, rtol=1e-5, atol=1e-6)


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_a_tied_head_and_an_embedding_keep_their_norms():
    model = build("repbn", placement="peri", tied=True)
    plan = fusion.plan(model, random_variables(model))
    assert {entry.path: entry.reason for entry in plan if entry.reason} == {
        "embed_norm": "its output is the residual stream",
        "norm": "the output layer is the table of embeddings",
    }


TO = pytest.mark.parametrize("to", ["rms_norm", "crms_norm"])


@pytest.mark.slow
@TO
@pytest.mark.parametrize(
    ("mixer", "placement"), [("softmax", "pre"), ("rela", "scaled")]
)
def test_pre_ln_conversion_is_exact(to, mixer, placement, x64):
    """Logits and gradients, in training and in inference."""
    model = build("layer_norm", mixer, placement)
    variables = random_variables(model, np.float64, size=0.5)
    conversion = fusion.convert_pre_norm(model, variables, to)
    x, known = packed()
    weights = np.random.default_rng(3).normal(size=(2, LENGTH, VOCABULARY))
    weights = jnp.asarray(weights * np.asarray(known["mask"])[..., None])

    @jax.jit
    def both(variables):
        def loss(given, apply):
            logits = apply(given, x, train=True, **known)
            return jnp.sum(jnp.sin(logits) * weights), logits

        def new_apply(given, *args, **kwargs):
            given = conversion.transform(given)
            return conversion.model.apply(given, *args, **kwargs)

        def training(apply):
            return jax.value_and_grad(loss, has_aux=True)(variables, apply)

        inference = (
            conversion.model.apply(conversion.variables, x, **known),
            model.apply(variables, x, **known),
        )
        return training(new_apply), training(model.apply), inference

    new, old, (logits, expected) = both(variables)
    chex.assert_trees_all_close(new, old, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


@TO
def test_variables_of_the_converted_decoder(to):
    model = build("layer_norm")
    conversion = fusion.convert_pre_norm(model, random_variables(model), to)
    params, width = conversion.variables["params"], 8 - (to == "crms_norm")
    assert params["embed"].shape == (VOCABULARY, width)
    assert params["head"]["kernel"].shape == (width, VOCABULARY)
    assert params["blocks_1"]["mixer"]["qkv"]["kernel"].shape == (width, 24)
    assert params["blocks_1"]["mlp"]["fc2"]["kernel"].shape == (12, width)
    # The bias of LayerNorm goes where there was none.
    assert params["blocks_1"]["mlp"]["fc1"]["bias"].shape == (24,)
    assert "norm1" not in params["blocks_0"] and "norm" not in params
    assert dict(conversion.report)["embed"] == "centred over the channels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tied": True}, "the output layer is the table of embeddings"),
        ({"dropout_rate": 0.1}, "dropout acts on the stream"),
        ({"placement": "peri"}, "'peri' adds norms"),
        ({"norm": "rms_norm"}, "norm1 is RMSNorm"),
        ({"mixer": "identity"}, "blocks_0/mixer is IdentityMixer, whose output no"),
    ],
)
def test_what_cannot_be_converted_is_named(arguments, message):
    model = build(**{"norm": "layer_norm", **arguments})
    with pytest.raises(UserError, match=message):
        fusion.convert_pre_norm(model, random_variables(model), "crms_norm")
