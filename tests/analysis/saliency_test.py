"""Saliency, dead neurons and singular defects against NumPy from the equations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import analysis
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)
A = np.maximum(RNG.normal(size=(2, 3, 4, 5)), 0)
G = RNG.normal(size=A.shape) * (RNG.random(A.shape) < 0.8)


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


def maps(weights):
    return np.maximum(np.einsum("bk,bhwk->bhw", weights, A), 0)


def test_maps_of_classes():
    np.testing.assert_allclose(analysis.grad_cam(A, G), maps(G.mean((1, 2))))
    total = A.sum((1, 2), keepdims=True)
    alpha = G**2 / (2 * G**2 + total * G**3 + 1e-6)
    weights = (alpha * np.maximum(G, 0)).sum((1, 2))
    np.testing.assert_allclose(analysis.grad_cam_plus_plus(A, G), maps(weights))
    many = G + RNG.normal(size=(3, *G.shape))
    first, second, third = ((many**n).mean(0) for n in (1, 2, 3))
    below = 2 * second + (A * third).sum((1, 2), keepdims=True) + 1e-8
    for over, chosen in ((second, False), (first, True)):
        weights = (over / below * np.maximum(first, 0)).sum((1, 2))
        found = analysis.smooth_grad_cam_plus_plus(A, many, first_order=chosen)
        np.testing.assert_allclose(found, maps(weights), rtol=1e-6)
    made = np.asarray(analysis.normalized_map(jnp.asarray(maps(G.mean((1, 2))) - 3)))
    assert made.min() == 0 and made[0].max() == pytest.approx(1)


def test_no_noise_is_grad_cam_plus_plus_of_one_place():
    one, g = A[:, :1, :1], np.abs(G[:, :1, :1])
    plain = analysis.grad_cam_plus_plus(one, g)
    np.testing.assert_allclose(
        analysis.smooth_grad_cam_plus_plus(one, g[None]), plain, rtol=1e-4
    )


def test_gradients_of_noisy_images():
    x, noise = RNG.normal(size=(3, 2)), RNG.normal(size=(6, 3, 2))
    each = 3 * (x + 0.2 * np.ptp(x) * noise) ** 2  # the slope of x^3
    made = analysis.smooth_grad(lambda x: jnp.sum(x**3), jnp.asarray(x), noise, 0.2)
    np.testing.assert_allclose(made.mean, each.mean(0))
    np.testing.assert_allclose(made.square, (each**2).mean(0))
    np.testing.assert_allclose(made.variance, each.var(0))
    total = np.abs(x).sum(-1)
    picture = analysis.saliency_picture(jnp.asarray(x)[:, None], 100.0)[:, 0]
    np.testing.assert_allclose(picture, (total - total.min()) / np.ptp(total))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3, name="head")(nn.tanh(nn.Dense(4, name="body")(x)))


def test_gradients_by_what_a_layer_gives():
    x, classes = jnp.asarray(RNG.normal(size=(2, 5))), jnp.array([2, 0])
    variables = Net().init(jax.random.key(0), x)
    p = jax.tree.map(np.asarray, variables["params"])
    call = (Net(), variables)
    a, g = analysis.activations_and_gradients(*call, "body", x, classes, train=False)
    expected = np.asarray(x) @ p["body"]["kernel"] + p["body"]["bias"]
    np.testing.assert_allclose(a, expected)
    slopes = p["head"]["kernel"][:, [2, 0]].T * (1 - np.tanh(expected) ** 2)
    np.testing.assert_allclose(g, slopes, rtol=1e-6)
    with pytest.raises(UserError, match="unknown layer 'bdy'; did you mean 'body'"):
        analysis.activations_and_gradients(*call, "bdy", x, classes)


def test_dead_neurons():
    a, b = (RNG.integers(0, 2, s) * 1.0 for s in ((4, 3), (4, 2, 2, 1)))
    rows = np.concatenate([a, b.reshape(4, -1)], 1)
    found = analysis.dead_neurons(jnp.asarray(a), jnp.asarray(b))
    assert float(found.dynamic) == pytest.approx((rows == 0).mean())
    assert float(found.static) == pytest.approx((rows == 0).all(0).mean())


def test_matrices_of_a_block():
    width, hidden = 3, 6
    value, proj = RNG.normal(size=(2, width, width))
    last, inner = RNG.normal(size=(hidden, width)), RNG.normal(size=(width, hidden))
    g, scale = RNG.normal(size=(2, width))
    centre = np.eye(width) - 1 / width
    found = analysis.attention_matrix(value, proj, g, scale)
    expected = np.eye(width) + np.diag(scale) @ proj.T @ value.T @ np.diag(g) @ centre
    np.testing.assert_allclose(found, expected, atol=1e-12)
    x = RNG.normal(size=(40, width))  # what is linear is fitted exactly
    found = analysis.mlp_matrix(x, x @ inner, last, g)
    expected = np.eye(width) + last.T @ inner.T @ np.diag(g) @ centre
    np.testing.assert_allclose(found, expected, atol=1e-12)
    blocks = RNG.normal(size=(2, width, width))
    made = analysis.defect_directions(list(jnp.asarray(blocks)))
    both = blocks[1] @ blocks[0]
    values, vectors = np.linalg.eigh(both @ both.T)
    assert abs(np.dot(made.direction[1], vectors[:, -1])) == pytest.approx(1)
    np.testing.assert_allclose(made.singular_values[1] ** 2, values[::-1], rtol=1e-6)
    _, vectors = np.linalg.eigh(blocks[1] @ blocks[1].T)
    assert abs(np.dot(made.alone[1], vectors[:, -1])) == pytest.approx(1)


@pytest.mark.parametrize("kernel", [3, 5])
def test_neighbours_of_defect_tokens(kernel):
    p, d = kernel // 2, RNG.normal(size=3)
    x = RNG.normal(size=(8, 7, 3))
    x[3, 3] = 5 * d
    level = -np.abs(x @ d) / np.linalg.norm(x, axis=-1) / np.linalg.norm(d)
    low = level < level.mean() - 1.0 * level.std(ddof=1)
    gauss = {1: [1, 2, 1], 2: [1, 4, 7, 4, 1]}[p]
    losses, inner = [], x[p : 8 - p, p : 7 - p]
    alpha = np.linalg.norm(inner, axis=-1).mean()
    for i in range(p, 8 - p):
        for j in range(p, 7 - p):
            if low[i, j]:
                window = np.s_[i - p : i + p + 1, j - p : j + p + 1]
                weight = np.exp(level[window] / 0.1) * np.outer(gauss, gauss)
                if p == 2:  # the integer kernel is no outer product
                    table = [[1, 4, 7], [4, 16, 26], [7, 26, 41]]
                    quarter = np.pad(table, ((0, 2), (0, 2)), "reflect")
                    weight = np.exp(level[window] / 0.1) * quarter
                target = (weight[..., None] * x[window]).sum((0, 1)) / weight.sum()
                losses.append(np.linalg.norm(x[i, j] - target) / alpha)
    made = analysis.neighbor_loss(jnp.asarray(x), d, threshold=1.0, kernel=kernel)
    assert int(made.mask.sum()) == len(losses) > 0
    assert float(made.loss) == pytest.approx(np.mean(losses), rel=1e-6)


def test_without_defects_the_loss_and_its_gradient_are_0():
    x = jnp.asarray(RNG.normal(size=(5, 5, 3)))
    loss = lambda x: analysis.neighbor_loss(x, jnp.ones(3), threshold=9.0).loss  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(x)
    assert value == 0 and (gradient == 0).all()
    with pytest.raises(UserError, match="kernel must be 3 or 5, got 4"):
        analysis.neighbor_loss(x, jnp.ones(3), kernel=4)
