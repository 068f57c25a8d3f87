"""LLaMA's layout: a network on the published names, counters, what a file may hold."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from normjax import convert, models
from normjax.convert.names import abstract_variables
from normjax.core.errors import UserError
from normjax.models import PRESETS
from normjax.norms.prepbn import progressive_weight
from tests.models import decoder_oracle as oracle

SIZES = {"dim": 12, "depth": 2, "num_heads": 3, "mlp_hidden": 20, "vocab_size": 7}
PREPBN, PLAIN = "slab_llama_350m", "lm_tiny"
NORM = PRESETS[PREPBN]["norm"]
NORMS = [
    f"model.layers.{i}.{norm}"
    for i in range(SIZES["depth"])
    for norm in ("input_layernorm", "post_attention_layernorm")
] + ["model.norm"]


def small(preset=PREPBN, **arguments):
    return models.build(preset, **{**SIZES, **arguments})


def published(model, seed=0):
    """A state dict for `model`, float64; running variances above 0, counters at 0."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if leaf.dtype == np.int32:
            return np.zeros((), np.int32)
        values = rng.standard_normal(leaf.shape)
        return 0.5 + values**2 if path[-1].key == "var" else values

    abstract = abstract_variables(model, ())
    return convert.to_torch(model, jax.tree_util.tree_map_with_path(value, abstract))


def norm_of(state, name):
    """RMSNorm, or the branch of PRepBN that evaluates."""
    if f"{name}.weight" in state:
        return lambda x: oracle.rms_norm(x, state[f"{name}.weight"])
    name = f"{name}.norm2"
    keys = ("weight", "bias", "running_mean", "running_var")
    g, b, m, v = (state[f"{name}.bn.{k}"] for k in keys)
    alpha = state[f"{name}.alpha"]
    return lambda x: (x - m) / np.sqrt(v + 1e-6) * g + b + alpha * x


def network(state, tokens, heads=SIZES["num_heads"]):
    """The published network in NumPy: (out, in) weights, one row of tokens."""
    layers = []
    for i in range(SIZES["depth"]):
        name = f"model.layers.{i}"
        places = {k: f"self_attn.{k}_proj" for k in "qkvo"}
        places |= {k: f"mlp.{k}_proj" for k in ("gate", "up", "down")}
        layer = {k: state[f"{name}.{at}.weight"].T for k, at in places.items()}
        layer["norm1"] = norm_of(state, f"{name}.input_layernorm")
        layer["norm2"] = norm_of(state, f"{name}.post_attention_layernorm")
        layers.append({"norm1_out": np.asarray, "norm2_out": np.asarray, **layer})
    table, head = state["model.embed_tokens.weight"], state["lm_head.weight"].T
    final = norm_of(state, "model.norm")
    return oracle.decoder(tokens, table, layers, final, head, heads)


@pytest.mark.parametrize("preset", [PREPBN, PLAIN])
def test_same_logits(preset, x64):
    model = small(preset)
    state = published(model)
    state = {k: v / 4 if k.endswith("_proj.weight") else v for k, v in state.items()}
    state = {k: np.float64(np.float32(v)) for k, v in state.items()}
    variables = convert.from_torch(model, state).variables
    wide = jax.tree.map(lambda a: jnp.asarray(a, np.float64), variables)
    tokens = np.random.default_rng(1).integers(0, 7, (2, 9))
    actual = jax.jit(model.apply)(wide, jnp.asarray(tokens))
    expected = np.stack([network(state, row) for row in tokens])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11 * scale)


def test_heads_that_share_keys_and_values(x64):
    """Two keys for six heads: as if each stood in the file three times."""
    heads, groups, size = 6, 2, 2
    mixer = {"name": "grouped_query", "num_kv_heads": groups}
    model = small(PLAIN, num_heads=heads, mixer=mixer)
    state = published(model)
    state = {k: v / 4 if k.endswith("_proj.weight") else v for k, v in state.items()}
    state = {k: np.float64(np.float32(v)) for k, v in state.items()}
    shape = (groups * size, SIZES["dim"])
    assert state["model.layers.1.self_attn.v_proj.weight"].shape == shape
    whole = {
        name: np.repeat(v.reshape(groups, size, -1), heads // groups, 0).reshape(12, 12)
        if name.endswith(("k_proj.weight", "v_proj.weight"))
        else v
        for name, v in state.items()
    }
    variables = convert.from_torch(model, state).variables
    wide = jax.tree.map(lambda a: jnp.asarray(a, np.float64), variables)
    tokens = np.random.default_rng(1).integers(0, 7, 9)
    actual = jax.jit(model.apply)(wide, jnp.asarray(tokens[None]))[0]
    expected = network(whole, tokens, heads)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize(
    ("warm", "left", "step", "weight"),
    [
        (10_000, 18_000, 0, 1.0),
        (9_000, 18_000, 1_000, 1.0),
        (0, 18_000, 10_000, 1.0),
        (0, 4_500, 23_500, 0.25),
        (0, 0, 28_000, 0.0),
    ],
)
def test_the_schedule_goes_on(warm, left, step, weight):
    """Updates made, of 10,000 and 18,000; the mixing weight is iter / total_step."""
    model = small()
    state = published(model)
    for norm in NORMS:
        given = {"num_step": 7, "warm": warm, "iter": left, "total_step": 18_000}
        state |= {f"{norm}.{k}": np.asarray(v) for k, v in given.items()}
    norm = {**convert.arguments_of(state, NORM)["norm"], "warmup_steps": 10_000}
    assert norm["decay_steps"] == 18_000
    model = small(norm=norm)
    converted = convert.from_torch(model, state)
    actual = converted.variables["batch_stats"]["blocks_1"]["norm2"]["step"]
    assert actual == step
    assert progressive_weight(actual, 10_000, 18_000) == weight
    reasons = dict(converted.dropped)
    assert reasons["model.norm.num_step"] == "counts the calls within an update"
    back = convert.to_torch(model, converted.variables)
    assert back["model.norm.num_step"] == 0
    for name in back.keys() - {name for name in back if name.endswith("num_step")}:
        np.testing.assert_array_equal(back[name], np.float32(state[name]), name)


def test_the_rest_of_a_warmup_is_a_warmup():
    model = small()
    state = published(model)
    state |= {f"{norm}.warm": np.asarray(600) for norm in NORMS}
    norm = convert.arguments_of(state, NORM)["norm"]
    assert norm["warmup_steps"] == 600
    stats = convert.from_torch(small(norm=norm), state).variables["batch_stats"]
    assert stats["norm"]["step"] == 0


def test_what_the_file_decides():
    state = published(small())
    arguments = convert.arguments_of(state, NORM)
    assert arguments["vocab_size"] == 7
    batch_norm = {**NORM["batch_norm"], "unbiased_running_var": True}
    assert batch_norm["epsilon"] == 1e-6
    assert arguments["norm"] == {**NORM, "batch_norm": batch_norm}
    plain = PRESETS[PLAIN]["norm"]
    arguments = convert.arguments_of(published(small(PLAIN)), plain)
    assert arguments == {"vocab_size": 7, "norm": plain}
    with pytest.raises(UserError, match="are prepbn, those of the model rms_norm"):
        convert.arguments_of(state, plain)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_frequencies_are_compared(dtype):
    model = small()
    state = published(model)
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    expected = [1.0, 10000**-0.5]
    np.testing.assert_allclose(state[name], expected, rtol=1e-6)
    converted = convert.from_torch(model, {**state, name: state[name].astype(dtype)})
    assert converted.dropped[name] == "recomputed, equal"
    without = {k: v for k, v in state.items() if "inv_freq" not in k}
    assert convert.from_torch(model, without).used == converted.used
    state[name] = np.array([1.0, 20000**-0.5], dtype)
    with pytest.raises(UserError, match=f"{name} is not what the model computes"):
        convert.from_torch(model, state)


def test_a_tied_model_has_no_output_layer():
    model = small(PLAIN, tied=True)
    state = published(model)
    assert "lm_head.weight" not in state
    converted = convert.from_torch(model, state)
    assert convert.size_of(converted.variables) == {"vocab_size": 7}
    with pytest.raises(UserError, match=r"the file lacks lm_head\.weight"):
        convert.from_torch(small(PLAIN), state)


def test_single_norms_may_be_repbn_alone():
    model = small()
    state = published(model)
    wanted = convert.from_torch(model, state).variables
    repbn = "model.layers.0.input_layernorm"
    for name in [k for k in state if k.startswith(f"{repbn}.")]:
        value, new = state.pop(name), name.replace("norm2.", "")
        if "norm2." in name:
            state[new] = value
    converted = convert.from_torch(model, state)
    assert (
        converted.filled.pop(f"{repbn}.norm1.weight") == "RepBN alone: as initialised"
    )
    assert set(converted.filled) == {f"{repbn}.{k}" for k in COUNTERS}
    actual = converted.variables
    ours, theirs = (v["params"]["blocks_0"]["norm1"] for v in (actual, wanted))
    for name, value in theirs["batch_norm"].items():
        np.testing.assert_array_equal(ours["batch_norm"][name], value)
    assert actual["batch_stats"]["blocks_0"]["norm1"]["step"] == 28_000


COUNTERS = ("warm", "iter", "total_step")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"model.layers.0.self_attn.k_proj.weight": np.zeros((4, 12))},
            r"k_proj\.weight has shape \(4, 12\) instead of \(12, 12\)",
        ),
        ({"model.norm.norm1.bias": np.zeros(12)}, r"unknown model\.norm\.norm1\.bias"),
        ({"lm_head.bias": np.zeros(7)}, r"unknown lm_head\.bias"),
    ],
)
def test_what_is_refused(edit, message):
    model = small()
    with pytest.raises(UserError, match=message) as caught:
        convert.from_torch(model, {**published(model), **edit})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"mixer": "gated_linear"}, "blocks_0/mixer"),
        ({"mixer": "differential"}, "blocks_0/mixer/lambda_"),
        ({"placement": "sandwich"}, "blocks_0/norm1_out"),
    ],
)
def test_decoders_that_are_no_llama(changes, place):
    model = small(PLAIN, **changes)
    with pytest.raises(UserError, match=f"layout 'llama' has no place for .*{place}"):
        published(model)


def test_a_folder_of_shards(tmp_path):
    model = small()
    state = published(model)
    names = sorted(state)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = tmp_path / f"model-0000{i}-of-00002.safetensors"
        convert.write(file, {name: state[name] for name in part})
    (tmp_path / "optimizer.pt").write_bytes(b"nothing")
    found = convert.read(tmp_path)
    assert found.keys() == state.keys()
    for name in names:
        np.testing.assert_array_equal(found[name], state[name])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds none of"):
        convert.read(empty)
