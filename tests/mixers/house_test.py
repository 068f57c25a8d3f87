"""Where mixers stand, what they inherit, and the cores that some take."""

import dataclasses
import inspect
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import mixers
from normjax.core.errors import UserError
from normjax.mixers import CORES, MIXERS, RELATIVE_BIASES
from normjax.mixers.base import Mixer

FAMILIES = {"gated_rela": "rela"}
"""Keys whose file is neither called like them nor like their beginning."""
PLACES = ["window", "cross_shaped_window", "spatial_reduction", "whole_map"]
PRESETS = {
    entry.name: core
    for entry in MIXERS
    if isinstance(core := getattr(entry.make, "core", None), str)
    and "core" not in {f.name for f in dataclasses.fields(entry.make)}
}
"""Keys with a core of their own: their core."""


def file_of(entry):
    return Path(inspect.getfile(entry.make)).stem


@pytest.mark.parametrize("registry", [MIXERS, CORES], ids=lambda r: r.kind)
def test_files_are_called_like_the_keys_in_them(registry):
    files = {entry.name: file_of(entry) for entry in registry}
    for key, file in files.items():
        family = FAMILIES.get(key, file)
        assert file == family, f"{key} stands in {file}.py"
        assert key == file or key in FAMILIES or key.startswith(f"{file}_")
        # Where a file has the name of the key, the key is in no other.
        assert file == key or key not in set(files.values())
    assert set(FAMILIES) <= {entry.name for entry in MIXERS}


def test_at_most_one_own_class_beneath_a_mixer():
    """But those that fix the core of another one: they have nothing else."""
    for entry in MIXERS:
        own = [c for c in entry.make.__mro__ if issubclass(c, nn.Module)]
        above = own[1 : own.index(nn.Module)]
        if entry.name in PRESETS:
            assert above[1:] == [Mixer]
            assert above[0] in [MIXERS[place].make for place in PLACES]
            methods = [n for n, v in vars(entry.make).items() if inspect.isfunction(v)]
            made = [n for n in methods if not n.startswith("__")]
            assert not made and entry.make.__call__ is above[0].__call__
        else:
            assert above in ([], [Mixer])


@pytest.mark.parametrize(("key", "core"), PRESETS.items())
def test_presets_have_the_arguments_of_their_core(key, core):
    shared = {"num_heads", "dtype", "param_dtype"}
    preset, plain = MIXERS[key].make, MIXERS[key].make.__mro__[1]
    own = {f.name: f.default for f in dataclasses.fields(preset)}
    base = {f.name: f.default for f in dataclasses.fields(plain)}
    core = {f.name: f.default for f in dataclasses.fields(CORES[core].make)}
    hidden = {*shared, "parent", "name"}
    extra = {k: v for k, v in core.items() if k not in hidden}
    del base["core"]
    assert own == {**base, **extra}


def drawn(mixer, x):
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(mixer.init, jax.random.key(0), x)
    return jax.tree.map(lambda t: jnp.float32(rng.normal(size=t.shape)), shapes)


SMALL = {
    "window": {"window_size": 2, "shift": 1},
    "cross_shaped_window": {"split_size": 2},
}
X = jnp.asarray(np.random.default_rng(4).normal(size=(2, 4, 4, 8)), jnp.float32)


@pytest.mark.parametrize("place", PLACES)
def test_a_key_with_a_core_is_its_place_with_that_core(place):
    """To the bit, parameters and results; arguments of the core are passed on."""
    arguments = {"num_heads": 2, **SMALL.get(place, {})}
    key = "sla" if place == "whole_map" else f"{place}_sla"
    core = {"name": "sla", "kernel_size": 3, "epsilon": 0.1}
    given = mixers.build(place, core=core, **arguments)()
    preset = mixers.build(key, kernel_size=3, epsilon=0.1, **arguments)()
    assert type(preset).__mro__[1] is type(given)
    variables = drawn(given, X)
    same = jax.eval_shape(preset.init, jax.random.key(0), X)
    assert jax.tree.structure(same) == jax.tree.structure(variables)
    expected, actual, other = (
        jax.jit(m.apply)(variables, X)
        for m in (given, preset, preset.clone(epsilon=1e-6))
    )
    np.testing.assert_array_equal(actual, expected)
    assert np.abs(np.asarray(other) - expected).max() > 1e-3
    makes = preset.clone(kernel_size=1)
    shape = jax.eval_shape(makes.init, jax.random.key(0), X)
    kernels = [t.shape for t in jax.tree.leaves(shape) if t.shape[:2] == (1, 1)]
    assert kernels


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("core", [entry.name for entry in CORES])
def test_every_place_takes_every_core(place, core):
    mixer = mixers.build(place, core=core, num_heads=2, **SMALL.get(place, {}))()
    y, _ = jax.eval_shape(mixer.init_with_output, jax.random.key(0), X)
    assert y.shape == X.shape
    direct = MIXERS[place].make(
        core={"name": core}, num_heads=2, **SMALL.get(place, {})
    )
    assert jax.eval_shape(direct.init, jax.random.key(0), X)


@pytest.mark.parametrize(
    ("key", "arguments", "message"),
    [
        ("window", {"core": "slaa"}, "unknown core 'slaa'; did you mean 'sla'?"),
        (
            "window",
            {"core": {"name": "sla", "kernel_sise": 3}},
            "unknown argument of core 'sla': 'kernel_sise'; did you mean 'kernel_size'",
        ),
        (
            "whole_map",
            {"core": {"name": "sla", "kernel_size": "3"}},
            "core 'sla': kernel_size takes an integer, got '3'",
        ),
        ("window_sla", {"core": "softmax"}, "argument of mixer 'window_sla': 'core'"),
        ("window", {"kernel_size": 3}, "argument of mixer 'window': 'kernel_size'"),
        ("window_sla", {"kernel_sise": 3}, "did you mean 'kernel_size'"),
        ("softmax", {"distance": "alibi"}, "'distance'; it is 'relative_bias' now"),
        ("softmax", {"relative_bias": "alibbi"}, "did you mean 'alibi'"),
    ],
)
def test_arguments_that_do_not_fit(key, arguments, message):
    with pytest.raises(UserError) as caught:
        mixers.build(key, num_heads=2, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_offsets_need_keys_at_the_places_of_the_queries():
    arguments = {"core": "relative_softmax", "num_heads": 2}
    mixer = mixers.build("spatial_reduction", sr_ratio=2, **arguments)()
    with pytest.raises(UserError, match="of the queries, 4x4, got 2x2"):
        jax.eval_shape(mixer.init, jax.random.key(0), X)


def test_odd_heads_do_not_turn():
    mixer = mixers.build("softmax", num_heads=2, rotary_base=100.0)()
    with pytest.raises(UserError, match="heads of 3 channels: rotation needs an even"):
        jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 3, 6)))


def test_a_core_of_ones_own():
    class Mean(nn.Module):
        num_heads: int

        def __call__(self, q, k, v, *, mask=None, regions=None):
            return jnp.broadcast_to(jnp.mean(v, (1, 2), keepdims=True), q.shape)

    mixer = mixers.build("window", core=Mean, num_heads=2, window_size=2)()
    variables = drawn(mixer, X)
    y = np.asarray(mixer.apply(variables, X)).reshape(2, 2, 2, 2, 2, 8)
    params = jax.tree.map(np.asarray, variables["params"])
    v = np.asarray(X) @ params["qkv"]["kernel"][:, 16:] + params["qkv"]["bias"][16:]
    mean = v.reshape(2, 2, 2, 2, 2, 8).mean((2, 4), keepdims=True)
    expected = mean @ params["proj"]["kernel"] + params["proj"]["bias"]
    np.testing.assert_allclose(y, np.broadcast_to(expected, y.shape), 1e-4, 1e-4)


def test_whole_maps_and_cut_ones_are_attended_to_alike():
    x = jax.random.normal(jax.random.key(2), (2, 6, 7, 8))
    mask = jnp.arange(42).reshape(1, 6, 7) % 5 > 0
    mixer = mixers.build("window", num_heads=2, window_size=4, shift=1, pad=True)()
    variables = drawn(mixer, x)
    for seen in (None, jnp.broadcast_to(mask, (2, 6, 7))):
        whole, cut = (
            mixer.apply(variables, x, mask=seen, train=train) for train in (False, True)
        )
        np.testing.assert_allclose(whole, cut, 1e-5, 1e-5)


def test_biases_by_distance_are_registered():
    kinds = {"alibi", "kerple_log", "kerple_power"}
    kinds |= {f"kerple_power_{what}" for what in ("gain", "both")}
    assert {entry.name for entry in RELATIVE_BIASES} == kinds
