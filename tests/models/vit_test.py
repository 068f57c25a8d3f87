"""The vision transformer: sizes, published parameter counts, what it refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.errors import UserError

TINY = {"num_classes": 3, "dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
PATCH = {"name": "patch", "patch_size": 4}


def tiny(**changes):
    return models.build("vit", **{**TINY, "stem": PATCH, **changes})


def abstract(model, side=224, channels=3):
    init = functools.partial(model.init, train=False)
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return jax.eval_shape(init, jax.random.key(0), images)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_parameter_count_by_hand():
    variables = abstract(tiny(pool="cls"), side=8)
    dim, hidden, tokens = 8, 16, 5
    stem = 4 * 4 * 3 * dim + dim
    block = (dim * 3 * dim + 3 * dim) + (dim * dim + dim)  # mixer
    block += (dim * hidden + hidden) + (hidden * dim + dim)  # MLP
    block += 2 * 2 * dim  # norms
    rest = tokens * dim + dim + 2 * dim + (dim * 3 + 3)  # positions, token, norm, head
    assert count(variables["params"]) == stem + 2 * block + rest
    assert set(variables) == {"params"}


@pytest.mark.parametrize("placement", sorted(models.PLACEMENTS))
@pytest.mark.parametrize(
    ("pool", "stem"), [("cls", PATCH), ("mean", {"name": "conv", "strides": (2, 2)})]
)
def test_shapes(pool, placement, stem):
    model = tiny(pool=pool, placement=placement, stem=stem, norm="repbn")
    variables = abstract(model, side=8, channels=1)

    def apply(variables, images):
        return model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )

    images = jax.ShapeDtypeStruct((5, 8, 8, 1), jnp.float32)
    logits, new = jax.eval_shape(apply, variables, images)
    assert (logits.shape, logits.dtype) == ((5, 3), jnp.float32)
    expected = {k: v for k, v in variables.items() if k == "batch_stats"}
    chex.assert_trees_all_equal_shapes_and_dtypes(dict(new), expected)


def test_bfloat16_computes_with_float32_parameters_and_logits():
    model = tiny(dtype=jnp.bfloat16, norm="repbn")
    variables = abstract(model, side=8)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    apply = functools.partial(model.apply, train=False)
    assert jax.eval_shape(apply, variables, images).dtype == jnp.float32


def test_remat_changes_neither_values_nor_gradients():
    images = jnp.asarray(
        np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32
    )
    norm = {"name": "prepbn", "decay_steps": 4}
    results, variables = [], None
    for remat in (False, True):
        model = tiny(depth=1, remat=remat, norm=norm, dropout_rate=0.3)
        variables = variables or jax.jit(model.init)(jax.random.key(1), images)

        def loss(params, model=model, variables=variables):
            logits, new = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats", "diagnostics"],
                rngs={"dropout": jax.random.key(2)},
            )
            return jnp.sum(logits**2), new

        grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
        results.append(grad(variables["params"]))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        ("deit_tinny", {}, "unknown model 'deit_tinny'; did you mean 'deit_tiny'"),
        ("vit", {"dpth": 3}, "argument of model 'vit': 'dpth'; did you mean 'depth'"),
        ("vit", {"norm": "prepbm"}, "unknown norm 'prepbm'; did you mean 'prepbn'"),
        ("vit", {"norm": "prepbn"}, "norm 'prepbn' needs decay_steps"),
        ("vit", {"mixer": "slab"}, "unknown mixer 'slab'; did you mean 'sla'"),
        ("vit", {"stem": "cnv"}, "unknown stem 'cnv'; did you mean 'conv'"),
        ("vit", {"activation": "glu"}, "unknown activation 'glu'; did you mean"),
        ("vit", {"placement": "pst"}, "unknown placement 'pst'; did you mean 'post'"),
        ("vit", {"pool": "max"}, "pool 'max' is none of cls, distilled, mean"),
        (
            "vit",
            {"mixer": "sla", "pool": "cls"},
            "model 'vit': mixer 'sla' does not accept seq input (it accepts: grid)",
        ),
    ],
)
def test_errors(spec, changes, message):
    with pytest.raises(UserError) as caught:
        models.build(spec, num_classes=3, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_do_not_split_into_patches():
    with pytest.raises(UserError, match="10x10 pixels do not split into patches of"):
        abstract(tiny(), side=10)


@pytest.mark.parametrize("norm", ["rms_norm", {"name": "layer_norm", "epsilon": 1e-3}])
def test_a_config_names_the_norm_of_queries_and_keys(norm):
    model = tiny(mixer={"name": "softmax", "qk_norm": norm})
    mixer = abstract(model, side=8)["params"]["blocks_0"]["mixer"]
    assert mixer["q_norm"]["scale"].shape == mixer["k_norm"]["scale"].shape == (4,)


def test_an_unknown_norm_of_queries_and_keys():
    with pytest.raises(UserError, match="rms_norm"):
        tiny(mixer={"name": "softmax", "qk_norm": "rmsnorm"})
