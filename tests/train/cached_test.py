"""Losses of the whole batch in parts: the gradient, keys, states and devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from normjax.core.collections import OVERWRITE
from normjax.core.errors import UserError
from normjax.devices.mesh import device_mesh
from normjax.devices.per_device import per_device
from normjax.tasks import PairContrast
from normjax.train.everywhere import everywhere
from normjax.train.step import Recipe, make_gradients

ROWS, PARTS, KEY = 16, 4, jax.random.key(3)


class Pairs(nn.Module):
    """Two linear towers; `mixed`: with dropout, batch statistics and a loss inside."""

    mixed: bool = False

    @nn.compact
    def __call__(self, images, train=False, *, tokens):
        found = {}
        for name, x in (("image", images), ("text", tokens)):
            if self.mixed:
                x = nn.Dropout(0.3)(x, deterministic=not train)
                x = nn.BatchNorm(not train, name=f"{name}_norm", momentum=0.9)(x)
                self.sow("losses", "size", jnp.mean(x[:, 0] ** 3))
            x = jnp.tanh(nn.Dense(4, name=name)(x))
            found[name] = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        log = self.param("log_temperature", nn.initializers.constant(-1.0), ())
        return {**found, "log_temperature": jnp.broadcast_to(log, len(images))}


def drawn(dtype):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(ROWS, 6)), dtype)
    return images, {"tokens": jnp.asarray(rng.normal(size=(ROWS, 5)), dtype)}


def loss_by_hand(params, inputs):
    """Without the model, the objective and `contrastive_loss`."""

    def points(name, x):
        z = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"][None])
        return z / jnp.sqrt((z**2).sum(1))[:, None]

    a, b = points("image", inputs[0]), points("text", inputs[1]["tokens"])
    p = jnp.exp((a @ b.T) / jnp.exp(params["log_temperature"]))
    both = jnp.diag(p) ** 2 / (p.sum(0) * p.sum(1))
    return -jnp.log(both).mean() / 2


def started(model, dtype):
    variables = model.init(jax.random.key(0), drawn(dtype)[0], **drawn(dtype)[1])
    variables = jax.tree.map(lambda x: x.astype(dtype), dict(variables))
    variables.pop("losses", None)
    return variables.pop("params"), variables


def assert_alike(found, expected, tolerance):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("program", ["jit", "pmap"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_on_devices_have_the_gradient_of_the_batch(devices, program, dtype, x64):
    mesh = device_mesh(jax.devices()[:devices], devices, 1, 1)
    params, state = started(Pairs(), dtype)
    inputs = jax.device_put(drawn(dtype), NamedSharding(mesh, P("data")))
    objective, recipe = PairContrast(), Recipe(microbatches=PARTS)
    run = make_gradients(Pairs(), objective, recipe)
    if program == "pmap":
        run = make_gradients(Pairs(), everywhere(objective), recipe, 1 / devices)
        run = per_device(run, mesh)
    _, grads, metrics = jax.jit(run)(params, state, inputs, {}, KEY, 0)
    loss, expected = jax.jit(jax.value_and_grad(loss_by_hand))(params, drawn(dtype))
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    assert_alike((metrics["loss"], grads), (loss, expected), tolerance)
    np.testing.assert_allclose(metrics["temperature"], np.exp(-1.0), 1e-6)


def test_dropout_and_statistics_are_those_of_the_parts_and_move_once(x64):
    """By hand: all parts in turn as one function, differentiated as a whole."""
    model = Pairs(mixed=True)
    params, state = started(model, "float64")
    images, known = drawn("float64")

    def by_hand(params):
        stats, points, inner = state, [], 0.0
        for i, key in enumerate(jax.random.split(KEY, PARTS)):
            out, new = model.apply(
                {"params": params, **stats},
                images[i::PARTS],
                train=True,
                tokens=known["tokens"][i::PARTS],
                mutable=["batch_stats", "losses"],
                rngs={"dropout": key},
            )
            sown = jax.tree.leaves(new.pop("losses"))
            points, stats, inner = [*points, out], new, inner + sum(sown) / PARTS
        a, b = (jnp.concatenate([p[n] for p in points]) for n in ("image", "text"))
        p = jnp.exp((a @ b.T) / jnp.exp(params["log_temperature"]))
        both = jnp.diag(p) ** 2 / (p.sum(0) * p.sum(1))
        return -jnp.log(both).mean() / 2 + 0.5 * inner, stats

    recipe = Recipe(microbatches=PARTS, auxiliary_loss_weight=0.5)
    run = make_gradients(model, PairContrast(), recipe)
    after, grads, metrics = jax.jit(run)(params, state, (images, known), {}, KEY, 0)
    (loss, stats), expected = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(params)
    assert_alike((metrics["loss"], grads), (loss, expected), 1e-12)
    assert_alike(after, stats, 1e-12)


def test_the_mean_of_parts_would_be_another_loss():
    params, state = started(Pairs(), "float32")
    one, four = (
        jax.jit(make_gradients(Pairs(), PairContrast(), Recipe(microbatches=m)))
        for m in (1, PARTS)
    )
    inputs = drawn("float32")
    whole, parts = (f(params, state, inputs, {}, KEY, 0)[2] for f in (one, four))
    assert_alike(parts, whole, 1e-6)
    apart = [
        loss_by_hand(params, jax.tree.map(lambda x, i=i: x[i::PARTS], inputs))
        for i in range(PARTS)
    ]
    assert np.mean(apart) < whole["loss"] - 0.5  # of four rows, not of sixteen


def test_what_two_passes_cannot_do_is_refused():
    recipe = Recipe(microbatches=2, perturb=lambda params, grads: params)
    with pytest.raises(UserError, match=r"sam_rho with config\.microbatches"):
        make_gradients(Pairs(), PairContrast(), recipe)
    params, state = started(Pairs(), "float32")
    run = make_gradients(Pairs(), PairContrast(), Recipe(microbatches=2))
    state = {**state, OVERWRITE: {"scale": jnp.ones(())}}
    with pytest.raises(UserError, match="scales that each part moves"):
        run(params, state, drawn("float32"), {}, KEY, 0)
