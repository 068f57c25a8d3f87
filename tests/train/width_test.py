"""muP: what a wide model begins with, and its rates."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lm_bytes
from normjax.core.errors import UserError
from normjax.study.coordinates import coordinates
from normjax.train.experiment import build_experiment, build_model
from tests.train.tiny import tiny_config

BASE = 8


def wide(width, base=BASE, **changes):
    config = tiny_config("norm=layer_norm", optim__mup_base_width=base, **changes)
    config.model.update(dim=width, num_heads=width // BASE)
    return config


@pytest.fixture(scope="module")
def states():
    """Before the first step: of the base width, and four times as wide."""
    return {
        n: build_experiment(wide(n)).create_state().params for n in (BASE, 4 * BASE)
    }


@pytest.mark.slow
def test_what_a_wide_model_begins_with(states):
    deviation = {
        n: jax.tree.map(np.std, jax.tree.map(np.asarray, params))
        for n, params in states.items()
    }
    small, large = deviation[BASE], deviation[4 * BASE]
    hidden = ("mixer", "qkv"), ("mixer", "proj"), ("mlp", "fc1"), ("mlp", "fc2")
    for part, layer in hidden:
        a, b = (d["blocks_0"][part][layer]["kernel"] for d in (small, large))
        np.testing.assert_allclose(b / a, 0.5, rtol=0.1)
    np.testing.assert_allclose(
        large["head"]["kernel"] / small["head"]["kernel"], 0.25, rtol=0.2
    )
    a, b = (d["stem"]["conv_0"]["kernel"] for d in (small, large))
    np.testing.assert_allclose(b / a, 1, rtol=0.3)
    plain = build_experiment(wide(BASE, base=0)).create_state().params
    jax.tree.map(np.testing.assert_array_equal, states[BASE], plain)


@pytest.mark.parametrize(
    ("name", "hidden", "readout", "vector"),
    [
        ("adamw", 1 / 4, 1 / 4, 1),
        pytest.param("sgd", 1, 1 / 4, 4, marks=pytest.mark.slow),
    ],
)
def test_rates_and_decays(name, hidden, readout, vector):
    from normjax.train.width import width_of

    config = wide(4 * BASE, optim__name=name, optim__weight_decay=0.2)
    experiment = build_experiment(config)
    images = jnp.zeros((1, 8, 8, 1))
    groups = width_of(config, experiment.model, lambda: (images, {})).groups

    def rule(path):
        found = [g for g in groups if re.search(g["pattern"], path)]
        assert len(found) < 2
        return found[0] if found else {"learning_rate": 1}

    expected = {
        "blocks_0/mlp/fc1/kernel": hidden,
        "head/kernel": readout,
        "blocks_0/mlp/fc1/bias": vector,
        "blocks_0/norm1/scale": vector,
        "head/bias": 1,
    }
    for path, rate in expected.items():
        assert rule(path)["learning_rate"] == rate, path
    if name == "adamw":
        assert rule("blocks_0/mlp/fc1/kernel")["weight_decay"] == pytest.approx(0.8)


def tied(width, base=BASE, **changes):
    config = lm_bytes.get_config("norm=rms_norm")
    config.model.update(
        dim=width, depth=1, num_heads=width // BASE, mlp_hidden=2 * width, tied=True
    )
    config.batch_size = 4
    config.optim.update(mup_base_width=base, **changes)
    return config


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_tied_readout_is_a_factor_of_the_logits(name):
    """By hand: s' = s / 4 where s is a scale that learns as any, beside a factor 1/4.

    An update moves s by the rate times its direction; Adam's does not depend on the
    factor, SGD's gradient by s is 1/4 of that by s', and a vector's rate is 4.
    """
    from normjax.train.width import width_of

    config = tied(4 * BASE, name=name)
    model = build_model(config, vocab_size=257)
    tokens = jnp.zeros((1, 4), jnp.int32)
    found = width_of(config, model, lambda: (tokens, {}))
    ones = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), tokens)["params"])
    began = found.begin(ones)
    assert np.all(began["norm"]["scale"] == 0.25) and np.all(began["embed"] == 1)

    def rate(path):
        rules = [g for g in found.groups if re.search(g["pattern"], path)]
        return rules[0]["learning_rate"] if rules else 1

    by_hand = 1 / 4 if name == "adamw" else 4 * (1 / 4) * (1 / 4)
    assert rate("norm/scale") == by_hand
    assert (
        rate("embed") == rate("blocks_0/norm1/scale") == (1 if name == "adamw" else 4)
    )


@pytest.mark.slow
def test_coordinates_of_tied_decoders():
    """What four updates move does not grow with the width, and did without."""
    moved = {
        (width, base): coordinates(tied(width, base, lr=1e-2, warmup_fraction=0.0))
        for width in (16, 128)
        for base in (16, 0)
    }
    growth = {b: moved[128, b]["logits"] / moved[16, b]["logits"] for b in (16, 0)}
    assert 0.4 < growth[16] < 1.6 and growth[0] > 2.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__num_heads": 1}, "num_heads 1 of width 32 has no whole number there"),
        ({"optim__groups": ({"pattern": "x"},)}, "there are some already"),
        (
            {"reparam": ({"name": "weight_normalization", "pattern": "x"},)},
            "config.reparam",
        ),
    ],
)
def test_errors(changes, message):
    config = wide(4 * BASE)
    for name, value in changes.items():
        *sections, field = name.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[field] = value
    with pytest.raises(UserError, match=re.escape(message)):
        build_experiment(config)
