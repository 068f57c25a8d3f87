"""ViTs with a token of distillation: two heads, averaged."""

import jax
import numpy as np
import pytest

from normjax import convert, fusion, models

SIZES = {"dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
PATCH = {"name": "patch", "patch_size": 4}


@pytest.fixture(scope="module", params=["layer_norm", "repbn"])
def made(request):
    model = models.build(
        "vit", norm=request.param, pool="distilled", stem=PATCH, **SIZES
    )
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = model.init(jax.random.key(1), images)

    def moved(x):
        return x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)

    return (
        model,
        images,
        {**variables, "params": jax.tree.map(moved, variables["params"])},
    )


def test_logits_are_the_mean_of_both_heads(made):
    model, images, variables = made
    logits, found = model.apply(
        variables, images, capture_intermediates=True, mutable=["intermediates"]
    )
    x = np.asarray(found["intermediates"]["norm"]["__call__"][0])
    params = jax.tree.map(np.asarray, variables["params"])
    each = [
        x[:, i] @ params[head]["kernel"] + params[head]["bias"]
        for i, head in enumerate(("head", "head_dist"))
    ]
    np.testing.assert_allclose(logits, sum(each) / 2, rtol=1e-4, atol=1e-5)


def test_the_tokens_may_change_places(made):
    model, images, variables = made
    params = dict(variables["params"])
    params["head"], params["head_dist"] = params["head_dist"], params["head"]
    params["cls_token"], params["dist_token"] = (
        params["dist_token"],
        params["cls_token"],
    )
    table = params["pos_embed"]
    params["pos_embed"] = table[:, np.r_[1, 0, 2 : table.shape[1]]]
    swapped = {**variables, "params": params}
    np.testing.assert_allclose(
        model.apply(swapped, images), model.apply(variables, images), atol=1e-5
    )


def test_norms_fold_into_both_heads(made):
    model, images, variables = made
    if "batch_stats" not in variables:
        return
    folded, merged = fusion.fold(model, variables)
    assert "norm" not in merged["params"]
    np.testing.assert_allclose(
        folded.apply(merged, images), model.apply(variables, images), atol=1e-4
    )


def test_a_file_of_deit_there_and_back(made):
    model, images, variables = made
    state = convert.to_torch(model, variables, (8, 8))
    shapes = {
        k: state[k].shape for k in ("dist_token", "head_dist.weight", "pos_embed")
    }
    assert shapes == {
        "dist_token": (1, 1, 16),
        "head_dist.weight": (5, 16),
        "pos_embed": (1, 6, 16),
    }
    back = convert.from_torch(model, state, images.shape[1:])
    jax.tree.map(np.testing.assert_array_equal, back.variables, dict(variables))
