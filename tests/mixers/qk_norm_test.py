"""Norms of queries and keys, in every mixer that has some."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.arguments import field_names
from normjax.mixers import MIXERS
from tests.mixers.case import Case
from tests.mixers.rows import ROWS

FIRST_ROWS = list({row.name: row for row in reversed(ROWS)}.values())[::-1]
WITH = [row for row in FIRST_ROWS if "qk_norm" in field_names(MIXERS[row.name].make)]
WITHOUT = {
    *(
        "identity",
        "pooling",
        "rg_lru",
        "pararnn",
        "monarch",
        "raft",
        "mix_shift",
        "ulsam",
    ),
    *("efficient_modulation", "group_mamba"),
}
"""These have no queries and keys,"""
WITHOUT |= {"aggregated", "aggregated_mixture_of_head"}  # these a length of their own,
WITHOUT |= {"factorization", "self_guided_hybrid"}  # these several kinds of them
PARTS = {  # layers that make queries and keys: the share of their outputs, by name
    "qkv": 2 / 3,
    "qkvo": 1 / 2,
    "qkvu": 1 / 2,
    "qk": 1,
    "q": 1,
    "kv": 1 / 2,
    "kv1": 1 / 2,
    "kv2": 1 / 2,
}


NORMED = {"rela", "global_cosine"}
"""Whose own norm undoes any factor of all scores."""


class Twice(nn.Module):
    """Called as a norm is; doubles what it gets."""

    dtype: str | None = None
    param_dtype: str | None = None

    def __call__(self, x, *, mask=None, train=False):
        assert train
        assert x.ndim >= 4  # heads are apart
        assert mask is None or (mask.shape[-2:] == (1, 1) and mask.ndim == x.ndim)
        return 2 * x


def doubled(params):
    """The parameters of a mixer with queries and keys twice as large."""
    params = jax.tree.map(np.array, params)
    if "task_shift" in params.get("q", {}):  # a convolution of the weights, and a shift
        for name in ("q", "k"):
            for part in ("kernel", "task_shift"):
                params[name][part] *= 2
        return params
    if "value" in params.get("q", {}):  # token-parameter attention
        for name in ("q", "k"):
            params[name]["value"]["kernel"] *= 2
        return params
    # Queries that no layer makes of x alone: the keys have the factor of both.
    factor = 4 if "queries" in params else 2
    for name in params.keys() & PARTS.keys():
        for leaf in params[name].values():
            share = PARTS[name]
            if "local_norm" in params:  # values alone are as wide as the stream
                share = 1 - len(leaf) / leaf.shape[-1]
            leaf[..., : round(share * leaf.shape[-1])] *= factor
    return params


def test_all_but_those_without_queries_take_one():
    named = {row.name for row in WITH}
    assert {entry.name for entry in MIXERS} - named == WITHOUT


@pytest.mark.parametrize("row", WITH, ids=str)
def test_it_acts_on_queries_and_keys_only(row):
    case = Case(row)
    normed, mask = case.build(qk_norm=Twice), case.masks()[-1]
    with jax.enable_x64(True):
        x = jnp.asarray(case.x)

        def run(params):
            return normed.apply({"params": params}, x, mask=mask, train=True)

        def plain(params):
            return case.mixer.apply({"params": params}, x, mask=mask, train=True)

        @jax.jit
        def all_three(params, twice):
            return run(params), plain(twice), plain(params)

        actual, expected, other = all_three(case.params, doubled(case.params))
    if row.name not in NORMED:
        assert not np.allclose(other, expected, rtol=1e-3)
    valid = slice(None) if mask is None else mask
    np.testing.assert_allclose(actual[valid], expected[valid], rtol=1e-9, atol=1e-9)
