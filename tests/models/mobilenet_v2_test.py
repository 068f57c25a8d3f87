"""MobileNetV2: published sizes, a block by hand, folding."""

import jax
import numpy as np
import pytest

from normjax import activations, models, norms
from normjax.core.operations import multiply_adds
from normjax.models.mobilenet_v2 import InvertedResidual, scaled_width
from tests.models import convolutions
from tests.models.convolutions import abstract, count

TINY = {
    "num_classes": 3,
    "width_multiplier": 0.25,
    "stages": ((1, 8, 1, 1), (2, 16, 2, 2)),
    "last_width": 16,
}


def tiny(**changes):
    return models.build("mobilenet_v2", **{**TINY, **changes})


@pytest.mark.parametrize(
    ("multiplier", "parameters"), [(1.0, 3_504_872), (0.5, 1_968_680)]
)
def test_parameter_counts(multiplier, parameters):
    model = models.build("mobilenet_v2", num_classes=1000, width_multiplier=multiplier)
    assert count(abstract(model, 224)["params"]) == parameters


def test_multiply_adds_at_224():
    """The published 300 million, and the mean, which is written as a product."""
    model = models.build("mobilenet_v2", num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    expected = 300_774_272 + 7 * 7 * 1280
    assert multiply_adds(model.apply, abstract(model, 224), images) == expected


def test_widths_are_multiples_of_8_at_most_a_tenth_below():
    widths = [
        scaled_width(w, m) for w, m in ((32, 1.0), (24, 0.5), (16, 0.1), (24, 0.7))
    ]
    assert widths == [32, 16, 8, 16]


@pytest.mark.parametrize(
    ("hidden", "stride", "residual"), [(6, 1, True), (6, 2, False), (None, 1, False)]
)
def test_a_block_by_hand(hidden, stride, residual, x64):
    module = InvertedResidual(
        norm=norms.build("batch_norm"),
        activation=activations.build("relu6"),
        features=3,
        hidden=hidden,
        stride=stride,
        residual=residual,
    )
    variables, x, y = convolutions.block_case(module, channels=3)
    branch = x
    if hidden:
        branch = convolutions.unit(variables, "expand", branch).clip(0, 6)
    by_channel = convolutions.depthwise
    branch = convolutions.unit(variables, "depthwise", branch, stride, by_channel)
    branch = convolutions.unit(variables, "project", branch.clip(0, 6))
    expected = x + branch if residual else branch
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_folding_changes_no_logit_in_float64(x64):
    assert convolutions.folding_error(tiny(norm="repbn"), 8, np.float64) < 1e-9


def test_folding_changes_no_logit_in_float32():
    assert convolutions.folding_error(tiny(), 8, np.float32) < 1e-4
