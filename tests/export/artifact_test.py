"""Artifacts of models, without a run."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.errors import UserError
from normjax.export.artifact import export_model, input_row, load, predictor
from normjax.tasks.classification import Classification
from normjax.tasks.language import NextToken

LENGTH = 8
IMAGES = {
    "image": jax.ShapeDtypeStruct((8, 8, 1), jnp.uint8),
    "label": jax.ShapeDtypeStruct((), jnp.int32),
}


def test_labels_are_no_input():
    assert set(input_row(Classification(3, (0.5,), (0.5,)), IMAGES)) == {"image"}


def test_a_decoder_for_any_batch():
    shape = (LENGTH,)
    ints = ("tokens", "targets", "positions")
    row = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ints}
    row["mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    row["weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    objective = NextToken(0.0, True, False)
    wanted = input_row(objective, row)
    assert "targets" not in wanted and "weights" not in wanted
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_hidden": 16}
    model = models.build({"name": "lm_tiny", **sizes}, vocab_size=11)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (5, LENGTH)).astype(np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (5, 1))
    full = {
        "tokens": tokens,
        "positions": positions,
        "mask": np.ones((5, LENGTH), bool),
    }
    batch = {name: full[name] for name in wanted}
    x, known = objective.inputs(full)
    variables = jax.jit(model.init)(jax.random.key(0), x, **known)
    call = load(export_model(predictor(model, variables, objective), wanted))
    expected = model.apply(variables, x, train=False, **known)
    for size in (1, 5):
        got = call({name: value[:size] for name, value in batch.items()})
        np.testing.assert_allclose(got, expected[:size], atol=1e-5)


def test_wrong_artifacts():
    with pytest.raises(UserError, match="no artifact"):
        load(b"nothing of the kind")
    scale = {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}
    foreign = export_model(lambda batch: 2 * batch["x"], scale, ["tpu"])
    with pytest.raises(UserError, match="runs on tpu; this is cpu"):
        load(foreign)


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        ("slab_swin_tiny", (224, 224, 3)),
        ("swin_tiny", (224, 224, 3)),
        ("slab_pvt_tiny", (224, 224, 3)),
        ("flatten_cswin_tiny", (224, 224, 3)),
        ("transnormer_tiny", (16,)),
    ],
)
@pytest.mark.slow
def test_models_take_a_batch_size_that_is_no_number(preset, shape):
    text = len(shape) == 1
    size = {"vocab_size": 5} if text else {"num_classes": 5}
    model = models.build(preset, **size)
    dtype = jnp.int32 if text else jnp.float32
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape), dtype))
    )
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, *shape), dtype)
    logits = jax.eval_shape(model.apply, variables, x)
    assert logits.shape[0] == batch and logits.shape[-1] == 5
