"""ResNets and MobileNetV2 in the layouts of torchvision and timm."""

import re

import jax
import numpy as np
import pytest

from normjax import convert, models
from normjax.convert.names import abstract_variables
from normjax.core.errors import UserError

SHAPES = {
    ("resnet18", None): {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "bn1.num_batches_tracked": (),
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer4.1.bn2.bias": (512,),
        "fc.weight": (1000, 512),
    },
    ("resnet50", None): {
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.bn3.weight": (2048,),
    },
    ("mobilenet_v2", "mobilenet_torchvision"): {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.running_mean": (16,),
        "features.10.conv.0.0.weight": (384, 64, 1, 1),
        "features.10.conv.1.0.weight": (384, 1, 3, 3),
        "features.10.conv.3.bias": (64,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.bias": (1000,),
    },
    ("mobilenet_v2", "mobilenet_timm"): {
        "conv_stem.weight": (32, 3, 3, 3),
        "bn1.weight": (32,),
        "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        "blocks.0.0.bn2.running_var": (16,),
        "blocks.5.2.conv_pwl.weight": (160, 960, 1, 1),
        "blocks.6.0.bn3.bias": (320,),
        "conv_head.weight": (1280, 320, 1, 1),
        "bn2.running_mean": (1280,),
        "classifier.weight": (1000, 1280),
    },
}
KEYS = {"resnet18": 122, "resnet50": 320, "mobilenet_v2": 314}


def filled(model):
    """Variables of modest, different values."""
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model, (64, 64, 3))
    return jax.tree.map(
        lambda s: rng.uniform(0.1, 0.3, s.shape).astype(np.float32), shapes
    )


@pytest.mark.parametrize(("preset", "layout"), SHAPES)
def test_names_and_shapes_and_back(preset, layout):
    model = models.build(preset, num_classes=1000)
    variables = filled(model)
    state = convert.to_torch(model, variables, (64, 64), layout)
    assert len(state) == KEYS[preset]
    for name, shape in SHAPES[preset, layout].items():
        assert state[name].shape == shape, name
    prefixed = {f"backbone.{name}": array for name, array in state.items()}
    back = convert.from_torch(
        model, convert.unwrapped({"model": prefixed}), (64, 64, 3)
    )
    assert back.layout == (layout or "resnet")
    jax.tree.map(np.testing.assert_array_equal, back.variables, variables)
    assert convert.channels_of(state) == 3
    assert convert.arguments_of(state, {"name": "batch_norm"})["num_classes"] == 1000


def test_an_array_that_is_missing():
    model = models.build("resnet18", num_classes=10)
    state = convert.to_torch(model, filled(model), (64, 64))
    state = {k: v for k, v in state.items() if not re.match("layer3.1.bn", k)}
    with pytest.raises(UserError, match=r"the file lacks layer3.1.bn1.bias"):
        convert.from_torch(model, state, (64, 64, 3))
