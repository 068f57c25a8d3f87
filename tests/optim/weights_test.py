"""Adaptive clipping and the projection of Normalize-and-Project, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {
    "stem": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
    "mixer": {
        "dwc_kernel": draw(3, 3, 4),
        "dwc_bias": draw(4),
        "pos_embed": draw(2, 4),
    },
    "norm": {"scale": draw(4), "bias": draw(4)},
    "rms": {"scale": draw(4)},
    "zero": {"kernel": np.zeros((4, 4), np.float32)},
    "head": {"kernel": draw(4, 3), "bias": draw(3)},
}
UPDATES = jax.tree.map(lambda x: draw(*x.shape), PARAMS)


def moved(transformation, updates=UPDATES, params=PARAMS):
    """Parameters after one update that follows on other ones."""
    state = transformation.init(params)
    later = jax.tree.map(lambda p: p + np.float32(0.25) * np.sign(p), params)
    changes, _ = jax.jit(transformation.update)(updates, state, later)
    plain = jax.tree.map(np.add, later, updates)
    return plain, jax.tree.map(np.asarray, optax.apply_updates(later, changes))


def joint(*arrays):
    return np.sqrt(sum(np.sum(np.float64(a) ** 2) for a in arrays))


def projected(plain, initial):
    """`plain` arrays scaled to the joint norm of `initial` ones."""
    return [p * joint(*initial) / joint(*plain) for p in plain]


def equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_matrices_and_affine_parameters_go_back_to_their_norm():
    plain, new = moved(optim.normalize_and_project())
    for layer, names in (
        ("stem", ["kernel"]),
        ("head", ["kernel"]),
        ("mixer", ["dwc_kernel"]),
        ("norm", ["scale", "bias"]),
        ("rms", ["scale"]),
    ):
        expected = projected(
            *([tree[layer][n] for n in names] for tree in (plain, PARAMS))
        )
        for name, value in zip(names, expected, strict=True):
            equal(new[layer][name], value)
    for layer, name in (
        ("stem", "bias"),
        ("mixer", "dwc_bias"),
        ("mixer", "pos_embed"),
    ):
        equal(new[layer][name], plain[layer][name])
    equal(new["zero"]["kernel"], plain["zero"]["kernel"])


def test_biases_with_their_kernels():
    plain, new = moved(optim.normalize_and_project(with_bias=True))
    for layer, prefix in (("stem", ""), ("mixer", "dwc_"), ("head", "")):
        names = [f"{prefix}kernel", f"{prefix}bias"]
        expected = projected(
            *([tree[layer][n] for n in names] for tree in (plain, PARAMS))
        )
        for name, value in zip(names, expected, strict=True):
            equal(new[layer][name], value)


def test_affine_parameters_drawn_back_or_left_alone():
    plain, new = moved(optim.normalize_and_project(affine="regularize", strength=0.1))
    kept = moved(optim.normalize_and_project(affine="keep"))[1]
    for layer, name in (("norm", "scale"), ("norm", "bias"), ("rms", "scale")):
        before, initial = plain[layer][name], PARAMS[layer][name]
        equal(new[layer][name], before + 0.1 * (initial - before))
        equal(kept[layer][name], before)
    equal(joint(new["stem"]["kernel"]), joint(PARAMS["stem"]["kernel"]))


def test_only_what_the_pattern_finds():
    plain, new = moved(optim.normalize_and_project(pattern="^(stem|norm)"))
    for layer in ("head", "mixer", "rms"):
        jax.tree.map(equal, new[layer], plain[layer])
    equal(joint(new["stem"]["kernel"]), joint(PARAMS["stem"]["kernel"]))


def test_norms_stay_over_many_steps_behind_an_optimizer():
    optimizer = optax.chain(optax.adamw(0.1), optim.normalize_and_project())
    parts = {"train": optimizer, "freeze": optax.set_to_zero()}
    labels = {layer: "freeze" if layer == "stem" else "train" for layer in PARAMS}
    frozen = optax.partition(parts, labels)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(jnp.cos, params)
        updates, state = frozen.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, frozen.init(PARAMS)
    for _ in range(5):
        params, state = step(params, state)
    equal(joint(params["head"]["kernel"]), joint(PARAMS["head"]["kernel"]))
    equal(joint(*params["norm"].values()), joint(*PARAMS["norm"].values()))
    assert np.abs(params["head"]["kernel"] - PARAMS["head"]["kernel"]).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, params["stem"], PARAMS["stem"])


def clipped_unit(g, w, clip, epsilon):
    most, size = clip * max(joint(w), epsilon), joint(g)
    return g * most / max(size, 1e-6) if size >= most else g


def test_adaptive_clipping_unit_by_unit():
    """Gradients that lie on both sides of the threshold, and weights at 0."""
    params = {**PARAMS, "heads": {"kernel": draw(4, 3, 2)}}
    grads = jax.tree.map(lambda x: draw(*x.shape) * draw(x.shape[-1]), params)
    for multihead in (False, True):
        transformation = optim.adaptive_clip(0.7, epsilon=0.2, multihead=multihead)
        state = transformation.init(params)
        new, _ = jax.jit(transformation.update)(grads, state, params)
        flat = dict(jax.tree_util.tree_leaves_with_path(params))
        some = set()
        for path, g in jax.tree_util.tree_leaves_with_path(grads):
            names, w = [k.key for k in path], flat[path]
            expected = np.array(g)
            if names == ["head", "kernel"]:
                pass
            elif g.ndim == 1:
                expected = clipped_unit(g, w, 0.7, 0.2)
            elif g.ndim == 3 and multihead:
                for i in np.ndindex(g.shape[1:]):
                    unit = (slice(None), *i)
                    expected[unit] = clipped_unit(g[unit], w[unit], 0.7, 0.2)
            else:
                for i in range(g.shape[-1]):
                    expected[..., i] = clipped_unit(g[..., i], w[..., i], 0.7, 0.2)
            equal(new[names[0]][names[1]], expected)
            some |= set((np.abs(expected) < np.abs(g)).ravel().tolist())
        assert some == {True, False}


@pytest.mark.parametrize("shape", [(), (1, 5), (1, 1, 1)])
def test_what_is_a_vector_but_for_dims_of_one_is_one_unit(shape):
    w, g = draw(*shape), 10 * draw(*shape)
    transformation = optim.adaptive_clip(0.1)
    new, _ = transformation.update(
        {"w": jnp.asarray(g)}, transformation.init({}), {"w": w}
    )
    equal(new["w"], clipped_unit(g, w, 0.1, 1e-3))


def test_errors():
    message = "unknown treatment of scale and offset 'keeps'; did you mean 'keep'"
    with pytest.raises(UserError, match=message):
        optim.normalize_and_project(affine="keeps")
    for transformation in (optim.normalize_and_project(), optim.adaptive_clip()):
        with pytest.raises(ValueError, match="params"):
            transformation.update(UPDATES, transformation.init(PARAMS))
