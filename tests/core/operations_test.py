"""Multiply-adds counted from a trace against closed forms and published tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from normjax import models
from normjax.core.operations import multiply_adds


def test_products_convolutions_loops_and_branches():
    x, w = np.zeros((5, 7), np.float32), np.zeros((7, 3), np.float32)
    assert multiply_adds(lambda x, w: jax.nn.relu(x @ w), x, w) == 5 * 7 * 3
    batched = functools.partial(jnp.einsum, "bij,bjk->bik")
    assert multiply_adds(batched, np.zeros((2, 3, 4)), np.zeros((2, 4, 5))) == 120

    def loop(x, w):
        return jax.lax.scan(lambda c, _: (c, jnp.sum(c @ w)), x, length=11)

    assert multiply_adds(jax.jit(loop), x, w) == 11 * 105

    def branch(x, w):
        wide = jnp.concatenate([w, w], 1)
        return jax.lax.cond(
            x[0, 0] > 0, lambda: jnp.sum(x @ w), lambda: jnp.sum(x @ wide)
        )

    assert multiply_adds(branch, x, w) == 210

    def conv(x, w, groups):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (2, 2),
            "SAME",
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    image = np.zeros((2, 8, 8, 6), np.float32)
    dense = functools.partial(conv, groups=1)
    assert multiply_adds(dense, image, np.zeros((3, 3, 6, 4))) == 2 * 16 * 4 * 54
    depthwise = functools.partial(conv, groups=6)
    assert multiply_adds(depthwise, image, np.zeros((3, 3, 1, 6))) == 2 * 16 * 6 * 9


# 10**9 multiply-adds of one image of 224 x 224, as published.
PUBLISHED = {
    "deit_tiny": 1.254,
    "deit_small": 4.599,
    "slab_deit_tiny": 1.139,
    "slab_deit_small": 4.359,
    "pvt_tiny": 1.933,
    "pvt_small": 3.816,
    "pvt_medium": 6.659,
    "pvt_large": 9.814,
    "slab_pvt_tiny": 2.036,
    "slab_pvt_small": 4.028,
    "slab_pvt_medium": 7.034,
    "swin_tiny": 4.491,
    "slab_swin_tiny": 4.483,
    "slab_swin_small": 8.734,
    "slab_swin_base": 15.421,
    "slab_cswin_tiny": 4.324,
    "slab_cswin_small": 6.783,
    "flatten_swin_tiny": 4.483,
    "flatten_swin_small": 8.734,
    "flatten_swin_base": 15.421,
    "flatten_pvt_tiny": 2.037,
    "flatten_cswin_tiny": 4.324,
}
FAST = ("deit_tiny", "slab_deit_tiny", "slab_pvt_tiny")


def test_programs_of_one_device_count_for_all_of_them():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = PartitionSpec("data")
    product = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    x, w = np.zeros((8, 7), np.float32), np.zeros((7, 3), np.float32)
    assert multiply_adds(product, x, w) == 8 * 7 * 3


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in PUBLISHED],
)
def test_published_models(name):
    model = models.build(name, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    count = multiply_adds(lambda v, x: model.apply(v, x), variables, images)
    assert count / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)
