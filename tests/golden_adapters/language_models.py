"""Adapter of whole decoders in LLaMA's layout: weights through our import."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from normjax import convert, fusion, models
from normjax.models import PRESETS
from tests.golden_adapters import model_runner
from tests.golden_adapters.run import cast
from tests.golden_adapters.whole_models import state_of

SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_hidden",
    "rope_base": "rotary_base",
}


def norm_of(meta):
    """PRepBN with the published schedule, or RMSNorm where no norm has an alpha."""
    epsilon = meta["kwargs"].get("rms_norm_eps", 1e-6)
    progressive = PRESETS["slab_llama_350m"]["norm"]
    if not any(key.endswith(".alpha") for key, *_ in meta["keys"]):
        return {**progressive["layer_norm"], "epsilon": epsilon}
    inner = {k: {**progressive[k], "epsilon": epsilon} for k in NORMS}
    return {**progressive, **inner}


NORMS = ("layer_norm", "batch_norm")


def published_state(meta, data, norm):
    """The state dict, with the frequencies that the published code keeps."""
    state = state_of(meta, data, norm)
    base = meta["kwargs"].get("rope_base", 10000)
    for key, shape, dtype, *_ in meta["keys"]:
        if key.endswith("inv_freq"):
            (count,) = shape
            powers = np.arange(0, 2 * count, 2) / (2 * count)
            state[key] = (1.0 / base**powers).astype(dtype)
    return state


def left_padding(meta, shape):
    """The mask of `logits_leftpad`, as the file describes it."""
    text = meta["numerics"]["leftpad"]
    row, count = re.search(r"(\w+) row: first (\d+) positions masked", text).groups()
    mask = np.ones(shape, bool)
    mask[("first", "second", "third", "fourth").index(row), : int(count)] = False
    return mask


@model_runner("llama")
def llama(data, meta, tolerance):
    """Logits, padded, folded; and every array back as it came."""
    norm = norm_of(meta)
    state = published_state(meta, data, norm)
    kwargs = meta["kwargs"]
    sizes = {ours: kwargs[name] for name, ours in SIZES.items() if name in kwargs}
    arguments = convert.arguments_of(state, norm)
    model = models.build("slab_llama_350m", **sizes, **arguments)
    converted = convert.from_torch(model, state)
    variables = cast(converted.variables, tolerance.dtype)
    shape = data["logits"].shape[:2]
    rng = np.random.default_rng(meta.get("input_seed", 0))
    tokens = rng.integers(0, arguments["vocab_size"], size=shape)

    def compare(name, model, variables, mask=None):
        given = {} if mask is None else {"mask": jnp.asarray(mask)}
        actual = jax.jit(model.apply)(variables, jnp.asarray(tokens), **given)
        error = np.abs(np.asarray(actual, np.float64) - data[name])
        seen = np.ones(shape, bool) if mask is None else mask
        assert error[seen].max() <= tolerance.value, f"{name}: {error[seen].max()}"

    compare("logits", model, variables)
    if "logits_leftpad" in data:
        mask = left_padding(meta, shape)
        compare("logits_leftpad", model, variables, mask)
    with warnings.catch_warnings():  # the published layout holds no counter
        warnings.simplefilter("ignore", fusion.UnfinishedDecay)
        folded, merged = fusion.fold(model, variables)
    if norm["name"] == "prepbn":
        assert merged.keys() == {"params"}, "norms that did not fold"
    compare("logits_merged" if "logits_merged" in data else "logits", folded, merged)
    back = convert.to_torch(model, converted.variables)
    assert back.keys() == {key for key, *_ in meta["keys"]}
    assert state.keys() == back.keys()
    for key in state:
        np.testing.assert_allclose(
            back[key], state[key], 1e-6 if "inv_freq" in key else 0, err_msg=key
        )
