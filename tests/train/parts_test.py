"""What the parts of a model hold and compute: by hand, and their sums."""

import jax
import jax.numpy as jnp

from normjax import models
from normjax.core.operations import multiply_adds
from normjax.train.experiment import build_experiment
from normjax.train.parts import parts_of
from tests.train.tiny import tiny_config


def traced(model, x):
    """Parts, and parameters and multiply-adds of a call as a whole."""
    trace = jax.make_jaxpr(lambda: model.init(jax.random.key(0), x), return_shape=True)
    jaxpr, shapes = trace()
    parts = parts_of(shapes["params"], jaxpr.jaxpr)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    return parts, (total, multiply_adds(model.apply, shapes, x))


def sums(parts):
    return sum(p.parameters for p in parts), sum(p.multiply_adds for p in parts)


def test_a_transformer_by_hand():
    """16 tokens of width 16, two blocks, an mlp as wide as they."""
    config = tiny_config(
        "norm=layer_norm,mixer=softmax",
        model__depth=2,
        model__num_heads=2,
    )
    experiment = build_experiment(config)
    parts = {part.name: part[1:] for part in experiment.parts()}
    layer = 16 * 16
    assert parts["blocks mixer"] == (2, 2 * 4 * (layer + 16), 2 * (4 + 2) * 16 * layer)
    assert parts["blocks mlp"] == (2, 2 * 2 * (layer + 16), 2 * 2 * 16 * layer)
    assert parts["blocks norm"] == (4, 4 * 32, 0)
    assert parts["norm"] == (1, 32, 0)
    assert parts["head"] == (1, 170, 160)
    assert parts["pos_embed"] == (1, layer, 0)
    assert next(iter(parts)) == "stem"
    total = sum(x.size for x in jax.tree.leaves(experiment.abstract_state().params))
    assert sums(experiment.parts())[0] == total


def test_scanned_layers_count_as_often_as_they_run():
    tokens = jnp.zeros((1, 8), jnp.int32)
    fields = {"vocab_size": 32, "dim": 16, "depth": 3, "num_heads": 2}
    for scan in (False, True):
        model = models.build("decoder", **fields, scan_layers=scan)
        parts, total = traced(model, tokens)
        assert sums(parts) == total
        found = {part.name: part.multiply_adds for part in parts}
        if not scan:
            alone = found
    assert found == alone and alone["blocks mlp"] > 0


def test_many_parts_are_told_apart_as_far_as_a_screen_holds():
    fields = {"dims": (8, 8, 16, 16), "depths": (1, 2, 1, 1)}
    fields["num_heads"] = (1, 1, 1, 1)
    model = models.build("pyramid", **fields, mixer="softmax", num_classes=10)
    parts, total = traced(model, jnp.zeros((1, 32, 32, 3)))
    assert sums(parts) == total and len(parts) <= 15
    assert [p.number for p in parts if p.name.startswith("blocks_")] == [1, 2, 1, 1]
