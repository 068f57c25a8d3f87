"""A model in fewer bits, layer by layer."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models, quantize
from normjax.cli.main import run
from normjax.core.errors import UserError
from normjax.quantize.__main__ import quantize_command
from normjax.train.loop import train
from tests.train.tiny import tiny_config

RNG = np.random.default_rng(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(6, name="one")(x))
        return nn.Dense(3, use_bias=False, name="two")(x)


def test_inputs_and_kernels_are_quantized_and_nothing_else():
    x = jnp.asarray(RNG.normal(size=(20, 5)), jnp.float32)
    variables = Net().init(jax.random.key(0), x)
    made = quantize.quantized(Net(), variables, x, 3, train=False)
    p = variables["params"]

    def kernel(name):
        return np.asarray(
            quantize.calibrate_uniform(p[name]["kernel"], 3, -1)(p[name]["kernel"])
        )

    plain = np.maximum(
        np.asarray(x) @ p["one"]["kernel"] + p["one"]["bias"].reshape(1, -1), 0
    )
    read = [quantize.calibrate_uniform(x, 8)]  # what reads the images has 8 bits
    read.append(quantize.calibrate_uniform(jnp.asarray(plain), 3))
    h = np.asarray(read[0](x)) @ kernel("one") + np.asarray(p["one"]["bias"])
    expected = np.asarray(read[1](jnp.asarray(np.maximum(h, 0)))) @ kernel("two")
    np.testing.assert_allclose(made.model.apply(made.variables, x), expected, atol=1e-5)
    assert all(
        len(np.unique(made.variables["params"]["two"]["kernel"][:, k])) <= 8
        for k in range(3)
    )
    bits = {name: int(v["bits"]) for name, v in made.variables["quantizers"].items()}
    assert bits == {"one": 8, "two": 3}


def test_several_bits_of_one_calibration_are_those_of_each():
    x = jnp.asarray(RNG.normal(size=(20, 5)), jnp.float32)
    variables = Net().init(jax.random.key(0), x)
    calibration = quantize.Calibration(Net(), variables, x, train=False)
    apply = calibration.at(3).model.apply
    program = jax.jit(chex.assert_max_traces(lambda v, x: apply(v, x), n=1))
    for bits in (9, 3):
        made = quantize.quantized(Net(), variables, x, bits, train=False)
        expected = made.model.apply(made.variables, x)
        y = program(calibration.at(bits).variables, x)
        np.testing.assert_allclose(y, expected, atol=1e-6)


def test_nothing_to_quantize():
    x = jnp.ones((2, 3))
    with pytest.raises(UserError, match="no linear layers"):
        quantize.quantized(
            nn.LayerNorm(), nn.LayerNorm().init(jax.random.key(0), x), x, 4
        )


def test_rescaled_norms_of_many_bits_change_nothing():
    """Readers without bias get one."""
    model = models.build(
        "vit",
        norm="layer_norm",
        mixer={"name": "softmax", "qkv_bias": False},
        dim=8,
        depth=1,
        num_heads=2,
        mlp_ratio=1.0,
        num_classes=3,
        stem={"name": "patch", "patch_size": 4},
    )
    x = jnp.asarray(RNG.normal(size=(4, 8, 8, 1)), jnp.float32)
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
    made = quantize.quantized(model, variables, x, 15)
    assert made.rescaled == ("blocks_0/norm1", "blocks_0/norm2", "norm")
    bias = made.variables["params"]["blocks_0"]["mixer"]["qkv"]["bias"]
    assert abs(bias).max() > 0
    y = jax.jit(made.model.apply)(made.variables, x)
    np.testing.assert_allclose(y, logits, atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is required"),
        (["--workdir=x", "--bits=8,1"], "--bits=1 must lie in 2..16"),
        (["--workdir=x", "--bits="], "--bits names none"),
        (["--workdir=/nowhere/x"], "/nowhere/x"),
    ],
)
def test_wrong_lines(arguments, message, capsys):
    assert run(quantize_command, ["quantize", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_of_a_run(tmp_path, capfd):
    train(tiny_config("norm=layer_norm"), tmp_path)
    capfd.readouterr()
    assert run(quantize_command, ["quantize", f"--workdir={tmp_path}", "--bits=8"]) == 0
    said = capfd.readouterr().out
    for row in ("floating point", "8 bits", "8 bits, norms rescaled"):
        assert f"unfolded, {row} " in said
    assert "folded, floating" in said and "│ folded" not in said
