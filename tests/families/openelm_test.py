"""OpenELM: sizes of the published models, their files there and back, config.json."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from normjax import convert, models
from normjax.convert.settings import settle
from normjax.core.errors import UserError
from normjax.families import PRESETS, openelm

SIZES = {
    "270m": (271_527_168, "12x5 16x7 20x4"),
    "450m": (457_179_136, "12x3 16x7 20x6 24x4"),
    "1_1b": (1_079_891_456, "16x3 20x7 24x8 28x6 32x4"),
    "3b": (3_036_647_424, "12x4 16x14 20x12 24x6"),
}
"""Parameters, and heads of queries x layers, as they are published."""


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_heads(size):
    parameters, heads = SIZES[size]
    model = models.build(f"openelm_{size}")
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(shapes)) == parameters
    pairs = (map(int, pair.split("x")) for pair in heads.split())
    expected = [number for number, layers in pairs for _ in range(layers)]
    assert [m["num_heads"] for m in PRESETS[f"openelm_{size}"]["mixer"]] == expected


def test_widths_of_mlps():
    """Of 1.1B, which has one width twice."""
    widths = PRESETS["openelm_1_1b"]["mlp_hidden"]
    assert widths[:6] == (1024, 1280, 1536, 1792, 2048, 2304)
    assert widths[12:16] == (4096, 4608, 4608, 5120) and widths[-1] == 8192


def small(**changes):
    heads = openelm.mixers([2, 4], [1, 2], 4)
    size = {"dim": 12, "depth": 2, "mixer": heads, "mlp_hidden": (8, 16)}
    return models.build("openelm_270m", vocab_size=7, **{**size, **changes})


def variables_of(model, seed=0):
    rng = np.random.default_rng(seed)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("layout", ["openelm", "openelm_corenet"])
def test_files_there_and_back(layout):
    """The rows of the joint projection are those of queries, keys and values."""
    model = small()
    variables = variables_of(model)
    state = convert.to_torch(model, variables, layout=layout)
    start = "transformer." if layout == "openelm" else ""
    shapes = {name: array.shape for name, array in state.items() if "s.1.attn." in name}
    assert shapes == {
        f"{start}layers.1.attn.qkv_proj.weight": ((4 + 2 * 2) * 4, 12),
        f"{start}layers.1.attn.q_norm.weight": (4,),
        f"{start}layers.1.attn.k_norm.weight": (4,),
        f"{start}layers.1.attn.out_proj.weight": (12, 16),
    }
    assert state[f"{start}layers.0.ffn.proj_1.weight"].shape == (2 * 8, 12)
    assert len(state) == 2 * 8 + 2
    converted = convert.from_torch(model, state)
    assert converted.layout == layout
    pairs = zip(*map(jax.tree.leaves, (converted.variables, variables)), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


def test_a_joint_projection_is_that_of_queries_beside_that_of_keys_and_values():
    """The mixer with layers of their own gives the same."""
    joint = small()
    apart = small(
        mixer=tuple(
            {"name": "grouped_query", **m.keywords, "joint": False} for m in joint.mixer
        )
    )
    variables = variables_of(joint)
    split = jax.tree.map(lambda a: a, variables)
    for i, queries in ((0, 8), (1, 16)):
        mixer = split["params"][f"blocks_{i}"]["mixer"]
        q, kv = np.split(mixer.pop("qkv")["kernel"], [queries], 1)
        mixer |= {"q": {"kernel": q}, "kv": {"kernel": kv}}
    tokens = jnp.array([[6, 3, 1, 4, 1]])

    @jax.jit
    def both(variables, split):
        return joint.apply(variables, tokens), apart.apply(split, tokens)

    np.testing.assert_allclose(*both(variables, split), rtol=0, atol=1e-4)


CONFIG = {
    "model_type": "openelm",
    "model_dim": 1280,
    "num_transformer_layers": 16,
    "head_dim": 64,
    "num_query_heads": [12] * 5 + [16] * 7 + [20] * 4,
    "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 4,
    "ffn_multipliers": [0.5, 4.0],
    "ffn_dim_divisor": 256,
    "rope_freq_constant": 10000,
    "share_input_output_layers": True,
    "ffn_with_glu": True,
    "normalize_qk_projections": True,
    "activation_fn_name": "swish",
}


def settled(**changes):
    spec = {"name": "openelm_270m", "norm": dict(PRESETS["openelm_270m"]["norm"])}
    config = ConfigDict({"model": spec, "data": {}})
    model = models.build("openelm_270m")
    return settle(config, model, {**CONFIG, **changes}), config


def test_lists_of_config_json_count():
    assert settled() == ([], settled()[1])
    scales = [0.5] * 15 + [4.0]
    changes, config = settled(num_kv_heads=[1] * 16, ffn_multipliers=scales)
    assert {c.field for c in changes} == {"model.mixer", "model.mlp_hidden"}
    model = models.build(config.model.to_dict())
    assert {m.keywords["num_kv_heads"] for m in model.mixer} == {1}
    assert model.mlp_hidden == (768,) * 15 + (5120,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type='llama', the model is for openelm"),
        ({"normalize_qk_projections": False}, "normalize_qk_projections=False"),
        ({"head_dim": None}, "does not describe the model"),
        ({"num_kv_heads": [3]}, "does not describe the model"),
        ({"ffn_multipliers": [0.5, 1.0, 4.0]}, "3 layers, not 16"),
    ],
)
def test_other_networks_are_refused(changes, words):
    with pytest.raises(UserError, match=words) as error:
        settled(**changes)
    assert "\n" not in str(error.value)
