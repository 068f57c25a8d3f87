"""Counters stand still, everything else moves."""

import chex
import jax.numpy as jnp

from normjax.core.collections import hold_counters


def tree(counter, value):
    norm = {"step": jnp.int32(counter), "batch_norm": {"mean": jnp.full(2, value)}}
    return {"batch_stats": {"blocks_0": {"norm1": norm}}, "other": {"x": value}}


def test_hold_counters():
    held = hold_counters(tree(3, 1.0), tree(4, 2.0))
    chex.assert_trees_all_equal(held, tree(3, 2.0))


def test_without_counters_nothing_changes():
    chex.assert_trees_all_equal(
        hold_counters({"a": {"x": 1.0}}, {"a": {"x": 2.0}}), {"a": {"x": 2.0}}
    )
    assert hold_counters({}, {}) == {}
