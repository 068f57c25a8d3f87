"""What the benches of folding and of ConvBN blocks compare."""

import chex
import jax
import numpy as np
import pytest

from normjax.bench import conv_bn, fold
from normjax.core.errors import UserError


def test_ratios_to_the_floor():
    seconds = {"unfolded": 0.006, "folded": 0.003, fold.FLOOR: 0.002}
    row = fold.row_of("a", 16, seconds)
    assert row == ("a", 16, 6, 3, 2, pytest.approx(3), pytest.approx(1.5))


def test_unknown_presets():
    with pytest.raises(UserError, match="unknown model 'resnet81'; did you mean"):
        fold.variants_of("resnet81:batch_norm")


@pytest.mark.slow
def test_variants_of_a_model():
    """Folded gives the same logits; the floor has no norm."""
    variants = fold.variants_of("resnet20:repbn", side=32)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits = {k: model.apply(v, images) for k, (model, v) in variants.items()}
    chex.assert_tree_all_finite(logits)
    np.testing.assert_allclose(logits["folded"], logits["unfolded"], rtol=1e-4)
    floor = jax.tree_util.tree_leaves_with_path(variants[fold.FLOOR][1])
    assert not [path for path, _ in floor if "norm" in jax.tree_util.keystr(path)]
    assert variants["folded"][1].keys() == {"params"}


@pytest.mark.slow
def test_modes_of_conv_bn_blocks():
    """eval, tune and deploy give one loss; eval and tune one gradient."""
    found = {
        mode: step(*arguments)
        for mode, (step, arguments) in conv_bn.modes_of("resnet20", 32, 2).items()
    }
    losses = {mode: float(value) for mode, ((value, _), _) in found.items()}
    for mode in ("tune", "deploy"):
        assert losses[mode] == pytest.approx(losses["eval"], rel=1e-4)
    assert losses["train"] != pytest.approx(losses["eval"], rel=1e-4)
    gradients = [found[mode][1] for mode in ("tune", "eval")]
    chex.assert_trees_all_close(*gradients, rtol=1e-2, atol=1e-4)
