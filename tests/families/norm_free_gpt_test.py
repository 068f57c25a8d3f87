"""GPT-2 without the norms of its blocks: its files there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import convert, models
from normjax.core.errors import UserError

SIZE = {"dim": 6, "depth": 2, "num_heads": 2, "mlp_hidden": 8, "max_length": 5}


def small(activation="relu"):
    return models.build(f"norm_free_gpt2_{activation}", vocab_size=7, **SIZE)


def variables_of(model):
    rng = np.random.default_rng(0)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda s: np.float32(rng.normal(size=s.shape)), shapes)


def test_files_there_and_back():
    """A layer's slope stands at its number; biases that are never trained are 0."""
    model = small("prelu")
    variables = variables_of(model)
    state = convert.to_torch(model, variables)
    own = variables["params"]["blocks_1"]
    slopes = state["transformer.h.1.mlp.act.slopes"]
    assert slopes.shape == (2,) and slopes[1] == own["mlp"]["act"]["slope"]
    name = "transformer.h.1.attn"
    np.testing.assert_array_equal(
        state[f"{name}.qk_attn.weight"], own["mixer"]["qk"]["kernel"]
    )
    assert {k for k in state if k.startswith(f"{name}.") and k.endswith("bias")} == {
        f"{name}.{layer}.bias" for layer in ("qk_attn", "v_attn", "c_proj")
    }
    assert not state[f"{name}.v_attn.bias"].any()
    converted = convert.from_torch(model, state)
    pairs = zip(*map(jax.tree.leaves, (converted.variables, variables)), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)
    state[f"{name}.v_attn.bias"] = np.ones(6, np.float32)
    with pytest.raises(UserError, match=r"v_attn\.bias is not what the model computes"):
        convert.from_torch(model, state)


def test_rows_longer_than_the_table_are_refused():
    model = small()
    with pytest.raises(UserError, match=r"6 tokens, but positions up to max_length=5"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6), int))


@pytest.mark.slow
def test_parameters():
    model = models.build("norm_free_gpt2_gelu")
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    layer = 768 * 1536 + 1536 + 2 * 768**2 + 2 * 768 * 3072
    expected = (50_257 + 1024) * 768 + 12 * layer + 2 * 768
    assert sum(p.size for p in jax.tree.leaves(shapes)) == expected
