"""Groups of parameters against updates by hand, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from normjax import optim
from normjax.core.errors import UserError
from tests.optim import by_hand
from tests.optim.build_test import config

RNG = np.random.default_rng(0)
STEPS, TOTAL, LR = 2, 10, 0.1


def draw(*shape):
    return RNG.normal(size=shape)


PARAMS = {
    "stem": {"kernel": draw(3, 4), "bias": draw(4)},
    "blocks_0": {"norm": {"scale": draw(4)}, "fc": {"kernel": draw(4, 4)}},
    "blocks_1": {"norm": {"scale": draw(4)}, "fc": {"kernel": draw(4, 4)}},
    "head": {"kernel": draw(4, 2), "bias": draw(2)},
}
GRADIENTS = [jax.tree.map(lambda x: draw(*x.shape), PARAMS) for _ in range(STEPS)]


def flat(tree):
    return {
        "/".join(key.key for key in path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def trained(optimizer, params=PARAMS, gradients=GRADIENTS):
    """Parameters and state after the steps."""
    params = jax.tree.map(jnp.asarray, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def built(groups, **changes):
    changes = {"warmup_fraction": 0.0, "final_lr_fraction": 1.0, **changes}
    return optim.build(config(groups=groups, **changes), TOTAL)


def gradients_of(name):
    return [flat(gradient)[name] for gradient in GRADIENTS]


BY_HAND = {f.__name__: f for f in (*by_hand.ALIKE, *by_hand.OF_MATRICES)}
TOGETHER = {"clipped_adagrad_norm"}
"""Those of all parameters together, in methods_test.py."""


def test_every_optimizer_is_tested_by_hand():
    assert {entry.name for entry in optim.OPTIMIZERS} == set(BY_HAND) | TOGETHER


@pytest.mark.parametrize("name", BY_HAND)
def test_two_steps_of_groups_by_hand(x64, name):
    """The first rule that finds a parameter counts; the rest is as without rules."""
    groups = (
        {"pattern": "^head/bias", "learning_rate": 3.0, "weight_decay": 0.25},
        {"pattern": "^(head|stem)", "learning_rate": 0.5},
        {"pattern": "scale$", "weight_decay": 0.125},
    )
    said = {  # factor of the rate, weight decay
        "head/bias": (3.0, 0.25),
        "head/kernel": (0.5, 0.5),
        "stem/kernel": (0.5, 0.5),
        "stem/bias": (0.5, 0.0),
        "blocks_0/norm/scale": (1.0, 0.125),
        "blocks_1/norm/scale": (1.0, 0.125),
        "blocks_0/fc/kernel": (1.0, 0.5),
        "blocks_1/fc/kernel": (1.0, 0.5),
    }
    arguments = by_hand.ARGUMENTS.get(name, {})
    new, state = trained(built(groups, name=name, **arguments))
    new, old = flat(new), flat(PARAMS)
    assert new.keys() == said.keys()
    for path, (factor, decay) in said.items():
        rate, gradients = LR * factor, gradients_of(path)
        matrix = old[path].ndim > 1 and not path.startswith("head")
        told = {"matrix": matrix} if BY_HAND[name] in by_hand.OF_MATRICES else {}
        expected = BY_HAND[name](old[path], gradients, rate, decay, **told)
        np.testing.assert_allclose(new[path], expected, rtol=1e-6, err_msg=path)
    assert int(optim.updates_made(state, jnp.array(-1))) == STEPS


def test_the_norm_of_all_gradients_is_clipped_and_that_of_a_group(x64):
    """All that is trained first, in every group; then the gradients of one alone."""
    clip = {"name": "clip_by_global_norm", "max_norm": 0.125}
    groups = (
        {"pattern": "^stem", "trainable": False},
        {"pattern": "^head", "learning_rate": 2.0, "transformation": clip},
    )
    plain = {"name": "sgd", "beta1": 0.0, "weight_decay": 0.0}
    new, _ = trained(built(groups, clip_norm=1.0, **plain))
    new, expected = flat(new), flat(PARAMS)
    for gradient in map(flat, GRADIENTS):
        taken = {k: g for k, g in gradient.items() if not k.startswith("stem")}
        size = np.sqrt(sum((g**2).sum() for g in taken.values()))
        taken = {k: g / size for k, g in taken.items()}
        head = {k: g for k, g in taken.items() if k.startswith("head")}
        size = np.sqrt(sum((g**2).sum() for g in head.values()))
        assert size > 0.125
        taken |= {k: 2.0 * 0.125 * g / size for k, g in head.items()}
        expected |= {k: expected[k] - LR * g for k, g in taken.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(new[name], value, rtol=1e-6, err_msg=name)


def test_what_is_not_trained_stays_and_has_no_state(x64):
    groups = (
        {"pattern": "fc/kernel", "trainable": False},
        {"pattern": "^head/bias", "trainable": True},
    )
    new, state = trained(built(groups, trainable="kernel|scale", clip_norm=1.0))
    moved = {name for name, x in flat(new).items() if (x != flat(PARAMS)[name]).any()}
    assert moved == {
        "stem/kernel",
        "head/kernel",
        "head/bias",
        "blocks_0/norm/scale",
        "blocks_1/norm/scale",
    }
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    sizes = sum(flat(PARAMS)[name].size for name in moved)
    assert sum(x.size for x in moments) == 2 * sizes


def test_a_projection_of_a_group_comes_behind_its_optimizer():
    groups = ({"pattern": "^head", "transformation": "normalize_and_project"},)
    new, old = flat(trained(built(groups))[0]), flat(PARAMS)

    def norms(name):
        return np.linalg.norm(new[name]), np.linalg.norm(old[name])

    np.testing.assert_allclose(*norms("head/kernel"), rtol=1e-6)
    assert not np.allclose(new["head/kernel"], old["head/kernel"], rtol=1e-2)
    assert not np.allclose(*norms("stem/kernel"), rtol=1e-2)


def test_layer_decay_is_the_closed_form(x64):
    """That of BEiT and MAE: depth blocks, the stem below and the head above them."""
    decay, depth = 0.75, 2
    rules = optim.layer_decay(decay, depth)
    factors = {
        "stem": decay ** (depth + 1),
        "blocks_0": decay**depth,
        "blocks_1": decay ** (depth - 1),
        "head": 1.0,
    }
    new, old = flat(trained(built(rules))[0]), flat(PARAMS)
    for name, value in new.items():
        rate = LR * factors[name.partition("/")[0]]
        decayed = 0.5 if name.endswith("kernel") else 0.0
        expected = by_hand.adamw(old[name], gradients_of(name), rate, decayed)
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
    for wrong in ((0.0, 2), (1.5, 2), (0.5, 0)):
        with pytest.raises(UserError, match=r"^layer_decay: (decay|depth) must"):
            optim.layer_decay(*wrong)


@pytest.mark.parametrize("name", ["vit", "lm_tiny"])
def test_layer_decay_finds_all_of_our_chains_of_blocks(name):
    from normjax import models

    sizes = {"dim": 8, "depth": 3, "num_heads": 2}
    if name == "vit":
        model = models.build({"name": "vit", **sizes, "pool": "cls", "num_classes": 2})
        x = jnp.zeros((1, 32, 32, 3))
    else:
        model = models.build({"name": name, **sizes, "vocab_size": 5})
        x = jnp.zeros((1, 4), jnp.int32)
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: model.init(key, x, train=False))["params"]
    groups = optim.groups.groups_of(optim.layer_decay(0.5, 3))
    found = optim.groups.labels(groups, params, ())
    optim.groups.check_found(groups, found)
    factors = [*(group.learning_rate for group in groups), 1.0]
    for path, label in jax.tree_util.tree_leaves_with_path(found):
        first = path[0].key
        layer = 0 if first in ("stem", "embed", "pos_embed", "cls_token") else 4
        layer = int(first[7:]) + 1 if first.startswith("blocks_") else layer
        number = 4 if label == "rest" else int(label)
        assert factors[number] == 0.5 ** (4 - layer), path


def swin_layer(path, depths):
    """The layer of a parameter as Swin's release numbers it (get_swin_layer): the
    patch embedding 0, blocks from 1, a downsampling with its stage, the rest last."""
    first, *_ = path.split("/")
    kind, *numbers = first.split("_")
    if kind == "stem":
        return 0
    if kind == "blocks":
        stage, block = map(int, numbers)
        return sum(depths[:stage]) + block + 1
    if kind == "merge":  # into the stage of this number: at the end of that before it
        return sum(depths[: int(numbers[0])])
    return sum(depths) + 1


@pytest.mark.parametrize("depths", [(1, 2, 1), (2, 1)])
def test_layer_decay_of_stages_is_that_of_swin(depths):
    from normjax import models

    sizes = {"depths": depths, "dims": tuple(8 * 2**i for i in range(len(depths)))}
    mixer = {"name": "window", "window_size": 2}
    model = models.build(
        {"name": "swin_tiny", **sizes, "num_heads": (1,) * len(depths)},
        mixer=mixer,
        num_classes=2,
    )
    x = jnp.zeros((1, 32, 32, 3))
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: model.init(key, x, train=False))["params"]
    groups = optim.groups.groups_of(optim.layer_decay(0.75, depths))
    found = optim.groups.labels(groups, params, ())
    optim.groups.check_found(groups, found)
    last, seen = sum(depths) + 1, set()
    for path, label in flat(found).items():
        layer = swin_layer(path, depths)
        factor = 1.0 if label == "rest" else groups[int(label)].learning_rate
        np.testing.assert_allclose(factor, 0.75 ** (last - layer), err_msg=path)
        seen.add(layer)
    assert seen == set(range(last + 1))


def test_rules_of_scanned_layers():
    params = {"blocks": {"fc": {"kernel": jnp.ones((3, 2, 2))}}, "head": jnp.ones(2)}
    fields = config(warmup_fraction=0.0, weight_decay=0.0, name="sgd", beta1=0.0)

    def moved(*groups):
        whole = ConfigDict({**fields, "groups": groups})
        optimizer = optim.build(whole, 10, ("blocks",))
        state = optimizer.init(params)
        return optimizer.update(params, state, params)[0]["blocks"]["fc"]["kernel"]

    for pattern in ("^blocks/", r"^blocks_\d/fc", "fc"):
        rule = {"pattern": pattern, "learning_rate": 0.5}
        np.testing.assert_allclose(moved(rule), -0.05)
    with pytest.raises(UserError, match=r"tells apart layers of 'blocks/fc/kernel'"):
        moved(*optim.layer_decay(0.5, 3, stem="head"))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (({"pattern": "hed"},), "[0]: pattern 'hed' finds no parameter"),
        (
            ({"pattern": "head"}, {"pattern": "head/bias"}),
            "[1]: pattern 'head/bias' finds no parameter that no rule before it finds",
        ),
        (({"pattern": "("},), "[0]: pattern '(': "),
        (({"learning_rate": 1.0},), "[0] needs a pattern, got {'learning_rate'"),
        (("head",), "[0] needs a pattern, got 'head'"),
        ({"pattern": "head"}, " takes a sequence of rules, got a ConfigDict"),
        (({"pattern": "head", "lr": 1.0},), "'lr'"),
        (
            ({"pattern": "head", "learning_rat": 1.0},),
            "[0]: 'learning_rat'; did you mean 'learning_rate'",
        ),
        (
            ({"pattern": "head", "learning_rate": "1"},),
            "[0]: learning_rate takes a number",
        ),
        (
            ({"pattern": "head", "learning_rate": -1.0},),
            "[0]: learning_rate must be at least 0, got -1.0",
        ),
        (
            ({"pattern": "head", "weight_decay": float("nan")},),
            "[0]: weight_decay takes a number or None, got nan",
        ),
        (
            ({"pattern": "head", "trainable": False, "weight_decay": 0.1},),
            "[0] is not trainable: weight_decay has no effect there",
        ),
        (({"pattern": "", "trainable": False},), "matches no parameter"),
        (
            ({"pattern": "head", "transformation": "adaptive_clp"},),
            "unknown transformation 'adaptive_clp'; did you mean 'adaptive_clip'",
        ),
        (
            (
                {
                    "pattern": "head",
                    "transformation": {"name": "adaptive_clip", "clp": 1.0},
                },
            ),
            "argument of transformation 'adaptive_clip': 'clp'; did you mean 'clip'",
        ),
        (
            (
                {
                    "pattern": "head",
                    "transformation": {"name": "adaptive_clip", "clip": "x"},
                },
            ),
            "transformation 'adaptive_clip': clip takes a number, got 'x'",
        ),
    ],
)
def test_errors(groups, message):
    with pytest.raises(UserError) as caught:
        built(groups).init(PARAMS)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if message.startswith("["):
        assert str(caught.value).count("config.optim.groups[") == 1
