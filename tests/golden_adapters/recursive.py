"""Adapters of recursive decoders."""

import re

import jax
import numpy as np

from normjax import convert, models
from tests.golden_adapters import registered
from tests.golden_adapters.compare import Tolerance
from tests.golden_adapters.decoders import compare, tokens_of
from tests.golden_adapters.run import cast
from tests.golden_adapters.translate import (
    translated,
)
from tests.golden_adapters.whole_models import state_of

RECURSIVE = (
    Tolerance("float64", 1e-8, 1e-8),
    Tolerance("float32", 5e-5, 5e-5),
)
"""Through a singular value decomposition."""


@registered("recursive", by="variant", tolerances=RECURSIVE)
def recursive_model(data, meta, tolerance):
    """The original, plain loops and relaxed ones, of every start; deltas by product."""
    kwargs, loops = dict(meta["kwargs"]), meta["num_loops"]
    heads = kwargs["num_attention_heads"]
    mixer = {
        "name": "grouped_query",
        "num_kv_heads": kwargs.pop("num_key_value_heads", heads),
    }
    names = {"hidden_size": "dim", "num_hidden_layers": "depth"}
    names |= {"num_attention_heads": "num_heads", "intermediate_size": "mlp_hidden"}
    names |= {"rope_theta": "rotary_base", "rope_base": "rotary_base"}
    names |= {"vocab_size": "vocab_size", "tie_word_embeddings": "tied"}
    epsilon = kwargs.pop("rms_norm_eps", 1e-6)
    kwargs.pop("max_position_embeddings", None)
    norm = {"name": "rms_norm", "epsilon": epsilon}
    given = {**translated(kwargs, names), "norm": norm, "mixer": mixer}
    whole = models.build("decoder", **given)
    state, tokens = state_of(meta, data, norm), tokens_of(meta)
    variables = cast(convert.from_torch(whole, state).variables, tolerance.dtype)

    def logits_of(model, variables):
        variables = cast(variables, tolerance.dtype)
        return jax.jit(model.apply)(variables, tokens)

    compare("original", logits_of(whole, variables), data["logits_original"], tolerance)
    depth = given["depth"] // loops * loops
    for start in meta["source_layers"]:
        for kind, rank in (("recursive", 0), ("relaxed", meta["lora_rank"])):
            more = {"loops": loops, "rank": rank, "depth": depth}
            model = models.build("recursive_decoder", **{**given, **more})
            assert model.unique == meta["unique_layers"]
            started = models.recursive_start(model, variables, start)
            logits = logits_of(model, started)
            name = f"logits_{kind}_{start}"
            compare(name, logits, data[name], tolerance)
        same = re.compile(rf"aux_shared_{start}_q_proj_(\d+)")
        for key, k in ((key, m[1]) for key in data if (m := same.fullmatch(key))):
            kernel = started["params"]["loop"][f"blocks_{k}"]["mixer"]["q"]["kernel"]
            compare(key, np.asarray(kernel).T, data[key], tolerance)
        if start == "average":
            for key in (key for key in data if key.startswith("aux_delta_")):
                _, _, layer, name = key.split("_", 3)
                product = delta_of(started, int(layer), name, model.unique)
                compare(key, product, data[key], tolerance)


PLACES = {
    **{"q_proj": ("mixer", "q", 0), "o_proj": ("mixer", "proj", 0)},
    **{"k_proj": ("mixer", "kv", 0), "v_proj": ("mixer", "kv", 1)},
    **{"gate_proj": ("mlp", "fc1", 0), "up_proj": ("mlp", "fc1", 1)},
    "down_proj": ("mlp", "fc2", 0),
}


def delta_of(variables, layer, name, unique):
    """B A, (out, in), of a layer of depth."""
    part, module, index = PLACES[name]
    pair = variables["params"]["deltas"][f"blocks_{layer % unique}"][part][module]
    down, up = (np.asarray(pair[n][layer // unique, index]) for n in ("down", "up"))
    return (down @ up).T
