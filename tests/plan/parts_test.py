"""Parts of a network by the paths that Flax and JAX give to its instructions."""

import pytest

from normjax.plan.parts import PARTS, part_of, scopes_of

BLOCK = "jit(step)/transpose(jvp(ViT))/blocks_3/blocks_3._run"
PATHS = {
    f"{BLOCK}/norm1/reduce_sum": "norms",
    f"{BLOCK}/mixer/q_norm/mul": "norms",
    f"{BLOCK}/mixer/qkv/cond/branch_0_fun/dot_general": "projections",
    f"{BLOCK}/mixer/cond/branch_1_fun/vmap()/exp": "mixer cores",
    f"{BLOCK}/mixer/bhnk,bhkv->bhnv/dot_general": "mixer cores",
    f"{BLOCK}/mixer/RelativeSoftmax_0/vmap()/exp": "mixer cores",
    f"{BLOCK}/mixer/RelativeSoftmax_0/q_norm/mul": "norms",
    f"{BLOCK}/mixer/window_attention/pallas_call": "mixer cores",
    f"{BLOCK}/mixer/cond/branch_0_fun/conv_general_dilated": "mixer convolutions",
    f"{BLOCK}/mlp/fc1/dot_general": "MLP",
    f"{BLOCK}/add": "residuals and moves",
    "jit(step)/jvp(ViT)/stem/proj/conv_general_dilated": "stem",
    "jit(step)/jvp(ViT)/ViT._embed/concatenate": "stem",
    "jit(step)/jvp(ViT)/norm/mul": "norms",
    "jit(step)/jvp(ViT)/head/dot_general": "head and loss",
    "jit(step)/optimizer/jit(norm)/mul": "optimizer",
    "args[0]['params']['norm']['scale']": "residuals and moves",
    "": "residuals and moves",
}


@pytest.mark.parametrize("path", PATHS)
def test_part_of(path):
    assert part_of(path) == PATHS[path] and PATHS[path] in PARTS


def test_scopes_are_without_what_transformations_add():
    path = f"{BLOCK}/mixer/while/body/bhnk,bhkv->bhnv/dot_general"
    assert scopes_of(path) == ["blocks_3", "mixer", "dot_general"]
