"""ParScale: streams by hand, files there and back, what is no parallel decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import convert, fusion, models
from normjax.core.errors import UserError
from normjax.families import PRESETS, parscale

SIZE = {"vocab_size": 7, "dim": 8, "depth": 2, "num_heads": 4, "mlp_hidden": 6}
STREAMS, SMOOTHING = 3, 0.25
TOKENS = jnp.array([[6, 3, 1, 4, 1], [6, 2, 0, 5, 3]])


def built(**changes):
    mixer = parscale.mixer(2, 3)
    more = {"streams": STREAMS, "smoothing": SMOOTHING, "mixer": mixer}
    return models.build("parscale_tiny", **{**SIZE, **more, **changes})


def variables_of(model):
    rng = np.random.default_rng(0)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape), shapes)


def test_streams_are_decoders_with_prefixes_of_their_own(x64):
    """Their last streams, weighed by hand, channel by channel, and smoothed."""
    model = built()
    variables = variables_of(model)
    params = dict(variables["params"])
    aggregate, head = params.pop("aggregate"), params.pop("head")
    table = np.eye(8)  # the stream itself
    mixer = parscale.mixer(2, 3)
    alone = models.build("decoder", **{**SIZE, "vocab_size": 8, "mixer": mixer})
    alone = alone.clone(norm=model.norm)

    def of_stream(p):
        own = {}
        for name, tree in params.items():
            own[name] = tree
            if name.startswith("blocks"):
                mixer = dict(tree["mixer"])
                for prefix in ("prefix_key", "prefix_value"):
                    mixer[prefix] = mixer[prefix][p : p + 1]
                own[name] = {**tree, "mixer": mixer}
        own["embed"] = np.concatenate((own["embed"], np.zeros((1, 8))))
        return {"params": {**own, "head": {"kernel": table}}}

    @jax.jit
    def run(variables, apart):
        return model.apply(variables, TOKENS), [alone.apply(v, TOKENS) for v in apart]

    actual, streams = run(variables, [of_stream(p) for p in range(STREAMS)])
    streams = np.stack(streams)
    u = np.empty((*TOKENS.shape, 8 * STREAMS))
    for channel, p in np.ndindex(8, STREAMS):
        u[..., channel * STREAMS + p] = streams[p, ..., channel]
    h = u @ aggregate["fc1"]["kernel"] + aggregate["fc1"]["bias"]
    h = h / (1 + np.exp(-h))
    weights = np.exp(h @ aggregate["fc2"]["kernel"] + aggregate["fc2"]["bias"])
    weights = weights / weights.sum(-1, keepdims=True)
    weights = (1 - SMOOTHING) * weights + SMOOTHING / STREAMS
    y = np.einsum("pbld,blp->bld", streams, weights)
    np.testing.assert_allclose(actual, y @ head["kernel"], rtol=0, atol=1e-11)


def test_files_there_and_back():
    model = built()
    variables = jax.tree.map(np.float32, variables_of(model))
    state = convert.to_torch(model, variables)
    assert state["model.layers.1.self_attn.prefix_k"].shape == (STREAMS, 2, 3, 2)
    assert state["model.aggregate_layer.0.weight"].shape == (8, 24)
    own = variables["params"]["blocks_0"]["mixer"]["prefix_value"]
    theirs = state["model.layers.0.self_attn.prefix_v"]
    np.testing.assert_array_equal(theirs[2, 1, 0], own[2, 0, 1])
    converted = convert.from_torch(model, state)
    assert converted.layout == "parscale"
    pairs = zip(*map(jax.tree.leaves, (converted.variables, variables)), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


def test_config_json_says_streams_and_prefixes():
    given = {"num_attention_heads": 4, "num_key_value_heads": 2}
    given |= {"parscale_n": 8, "parscale_n_tokens": 48}
    arguments = parscale.published(given)
    assert arguments == {
        "streams": 8,
        "smoothing": 0.01,
        "mixer": PRESETS["parscale_tiny"]["mixer"],
    }


def test_one_stream_is_refused_and_the_last_norm_stays():
    with pytest.raises(UserError, match="one stream has nothing to weigh"):
        jax.eval_shape(built(streams=1).init, jax.random.key(0), TOKENS)
    model = built(norm="batch_norm")
    variables = jax.tree.map(np.abs, variables_of(model))
    reasons = {fold.path: fold for fold in fusion.plan(model, variables)}
    assert "streams" in reasons["norm"].reason
    assert reasons["blocks_0/norm1"].into == ("blocks_0/mixer/q", "blocks_0/mixer/kv")


def test_rows_that_make_no_streams_are_refused():
    mixer = parscale.mixer(2, 3)
    model = models.build("decoder", **{**SIZE, "mixer": {**mixer, "streams": 3}})
    with pytest.raises(UserError, match="2 rows do not make 3 streams"):
        jax.eval_shape(model.init, jax.random.key(0), TOKENS)


def test_streams_that_nothing_tells_apart_are_refused():
    with pytest.raises(UserError, match="no prefixes by stream, such as prefix_att"):
        variables_of(built(mixer="softmax"))
