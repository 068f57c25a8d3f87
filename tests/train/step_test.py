"""One update against formulas in NumPy."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs.common import base_config
from normjax import models, optim
from normjax.core.collections import OVERWRITE
from normjax.tasks import Classification
from normjax.tasks.classification import normalize_pixels
from normjax.train.step import Recipe, make_gradients, make_train_step
from tests.train.tiny import Linear, toy_batch, toy_state

RATE = 0.1


def parts(**changes):
    """Objective and recipe."""
    own = {k: changes.pop(k) for k in Classification._fields if k in changes}
    objective = Classification(num_classes=4, mean=(0.5,), std=(0.25,), **own)
    return objective, Recipe(**changes)


def run(model, steps=1, optimizer=None, state=None, shape=(2, 2, 1), **changes):
    """State and metrics after `steps` updates, each on its own batch."""
    optimizer = optimizer or optax.sgd(RATE)
    ema = changes.get("ema_decay", 0) > 0
    state = state or toy_state(model, optimizer, shape, ema)
    schedule = optax.constant_schedule(RATE)
    objective, recipe = parts(**changes)
    step = jax.jit(make_train_step(model, objective, optimizer, schedule, recipe))
    for i in range(steps):
        state, metrics = step(state, toy_batch(shape=shape, seed=i))
    return state, metrics


def small_vit(norm, **changes):
    return models.build(
        "vit",
        num_classes=4,
        dim=8,
        depth=1,
        num_heads=2,
        mlp_ratio=1.0,
        norm=norm,
        stem={"name": "patch", "patch_size": 2},
        **changes,
    )


def by_hand(params, batch, smoothing=0.0):
    """Loss, accuracy and gradients of the linear classifier, in float64."""
    pixels = batch["image"].reshape(len(batch["label"]), -1) / 255
    x = (pixels - 0.5) / 0.25
    kernel, bias = (
        np.asarray(params["head"][k], np.float64) for k in ("kernel", "bias")
    )
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    targets = np.eye(4)[batch["label"]] * (1 - smoothing) + smoothing / 4
    slope = (p - targets) / len(x)
    loss = -(targets * np.log(p)).sum(-1).mean()
    accuracy = (p.argmax(-1) == batch["label"]).mean()
    return loss, accuracy, {"kernel": x.T @ slope, "bias": slope.sum(0)}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_linear_classifier(smoothing, microbatches):
    model, optimizer = Linear(), optax.sgd(RATE)
    before = toy_state(model, optimizer)
    after, metrics = run(
        model, state=before, label_smoothing=smoothing, microbatches=microbatches
    )
    loss, accuracy, grads = by_hand(before.params, toy_batch(), smoothing)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    expected = {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "lr": RATE}
    expected["bad_gradient"] = -1
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        assert metrics[name].dtype == jnp.float32
    for name, grad in grads.items():
        moved = before.params["head"][name] - RATE * grad
        np.testing.assert_allclose(after.params["head"][name], moved, atol=1e-6)
    assert int(after.step) == 1


def test_normalize_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3) * 20
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (image / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalize_pixels(image, mean, std), expected, rtol=1e-5)


def test_mixup_of_two_examples():
    """With one partner each, a mixture of inputs has the mixture of targets."""

    class Read(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            self.sow("diagnostics", "first", jnp.mean(images[0]))
            self.sow("diagnostics", "second", jnp.mean(images[1]))
            return images.reshape(2, -1) * self.param("w", nn.initializers.ones, (1, 4))

    model, optimizer = Read(), optax.sgd(0.0)
    batch = {
        "image": np.stack([np.zeros((2, 2, 1)), np.full((2, 2, 1), 255)]),
        "label": np.array([0, 1], np.int32),
    }
    batch["image"] = batch["image"].astype(np.uint8)
    key = jax.random.key(0)
    variables = model.init(key, jnp.zeros((2, 2, 2, 1)))
    state = toy_state(Linear(), optimizer).replace(
        params=variables["params"], opt_state=optimizer.init(variables["params"])
    )
    objective = Classification(4, (0.0,), (1.0,), mixup_alpha=1.0)
    step = make_train_step(model, objective, optimizer, lambda _: 0.0, Recipe())
    _, metrics = step(state, batch)
    kept = 1 - float(metrics["first"])  # image 0 is black, its partner white
    assert 0 < kept < 1
    np.testing.assert_allclose(metrics["second"], kept, rtol=1e-5)
    # Equal logits within an image: the loss is log 4 whatever the soft targets are.
    np.testing.assert_allclose(metrics["loss"], np.log(4), rtol=1e-5)


def test_microbatches_of_a_transformer_without_batch_statistics():
    model = small_vit("layer_norm")
    whole, _ = run(model, steps=2)
    parts, _ = run(model, steps=2, microbatches=4)
    chex.assert_trees_all_close(whole.params, parts.params, atol=1e-5)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_counters_tick_once_an_update(microbatches):
    model = small_vit({"name": "prepbn", "decay_steps": 4, "warmup_steps": 1})
    state, metrics = run(model, steps=3, microbatches=microbatches)
    leaves = jax.tree_util.tree_leaves_with_path(state.model_state["batch_stats"])
    counters = [int(x) for path, x in leaves if path[-1].key == "step"]
    assert counters == [3] * 3
    np.testing.assert_allclose(metrics["lam"], 1 - (2 - 1) / 4, rtol=1e-6)


def test_batch_statistics_pass_through_the_microbatches():
    """Four parts move a running mean four times."""

    class Shift(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            x = images.reshape(images.shape[0], -1)
            x = nn.BatchNorm(not train, momentum=0.9, name="bn")(x)
            return nn.Dense(4)(x)

    state, _ = run(Shift(), microbatches=4)
    pixels = toy_batch()["image"].reshape(8, 4) / 255
    mean = np.zeros(4)
    for part in range(4):
        mean = 0.9 * mean + 0.1 * ((pixels[part::4] - 0.5) / 0.25).mean(0)
    running = state.model_state["batch_stats"]["bn"]["mean"]
    np.testing.assert_allclose(running, mean, atol=1e-6)


def test_average_of_the_parameters():
    decay = 0.6
    optimizer = optax.sgd(RATE)
    state = toy_state(Linear(), optimizer, ema=True)
    recipe = Recipe(ema_decay=decay)
    step = make_train_step(Linear(), parts()[0], optimizer, lambda _: RATE, recipe)
    step = jax.jit(step)
    average = np.asarray(state.params["head"]["kernel"], np.float64)
    for i in range(12):
        state, _ = step(state, toy_batch(seed=i))
        weight = min(decay, (1 + i) / (10 + i))
        kernel = np.asarray(state.params["head"]["kernel"], np.float64)
        average = weight * average + (1 - weight) * kernel
    np.testing.assert_allclose(state.ema["head"]["kernel"], average, rtol=1e-5)
    chex.assert_trees_all_equal(state.eval_variables()["params"], state.ema)


def test_averages_have_statistics_of_their_own():
    """As far behind as the averaged parameters; counters are those of the model.

    A decay of 0.95 lags 19 updates behind, of which running statistics make 9; the
    other 10 are those of a decay of 10 / 11.
    """
    model, optimizer = small_vit({"name": "prepbn", "decay_steps": 4}), optax.sgd(RATE)
    state = toy_state(model, optimizer, ema=True).replace(step=jnp.asarray(200))
    average = jax.tree.map(np.float64, state.model_state["batch_stats"])
    recipe = Recipe(ema_decay=0.95)
    step = make_train_step(model, parts()[0], optimizer, lambda _: RATE, recipe)
    step = jax.jit(step)
    for i in range(4):
        state, _ = step(state, toy_batch(seed=i))
        average = jax.tree.map(
            lambda a, new: (10 * a + np.float64(new)) / 11,
            average,
            state.model_state["batch_stats"],
        )
    used = state.eval_variables()["batch_stats"]
    chex.assert_trees_all_equal_dtypes(used, state.model_state["batch_stats"])
    ours, expected = used["norm"], average["norm"]
    for name in ("mean", "var"):
        moved = ours["batch_norm"][name], expected["batch_norm"][name]
        np.testing.assert_allclose(*moved, rtol=1e-5, atol=1e-7)
    assert int(ours["step"]) == 4
    with_others = state.with_eval_stats(jax.tree.map(jnp.zeros_like, used))
    assert not np.any(with_others.eval_variables()["batch_stats"]["norm"]["step"])
    chex.assert_trees_all_equal(with_others.model_state, state.model_state)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
@pytest.mark.parametrize("trainable", [".*", "kernel"])
def test_the_logged_rate_is_that_of_the_update(name, trainable):
    """Schedules count updates; a step that was skipped is none."""
    config = base_config().optim
    config.update(name=name, lr=0.1, warmup_fraction=0.5, trainable=trainable)
    config.update(beta1=0.0, weight_decay=0.0, clip_norm=0.0)
    optimizer, schedule = optim.build(config, 8), optim.learning_rate(config, 8)
    objective, recipe = parts(skip_nonfinite=True)
    model, state = Linear(), toy_state(Linear(), optimizer)
    honest = make_gradients(model, objective, recipe)

    def gradients(params, model_state, inputs, *rest):
        """Ones, spoiled at step 2 by pixels that are all white."""
        state, grads, metrics = honest(params, model_state, inputs, *rest)
        bad = jnp.min(inputs[0]) > 1.9  # 2, normalised
        ones = jax.tree.map(lambda g: jnp.where(bad, jnp.nan, 1.0 + 0 * g), grads)
        return state, ones, metrics

    made = make_train_step(model, objective, optimizer, schedule, recipe, gradients)
    step, applied, logged = jax.jit(made), [], []
    for i in range(5):
        batch = toy_batch(seed=i)
        if i == 2:
            batch["image"][:] = 255
        before = np.asarray(state.params["head"]["kernel"])
        state, metrics = step(state, batch)
        moved = before - np.asarray(state.params["head"]["kernel"])
        # Of gradients that are 1, Nesterov's, Adam's and Lion's steps are the rate.
        if i != 2:
            applied.append(moved[0, 0])
            logged.append(metrics["lr"])
    np.testing.assert_allclose(logged, 0.025 * np.arange(4), rtol=1e-6)
    np.testing.assert_allclose(applied, logged, rtol=1e-4, atol=1e-7)


@jax.custom_vjp
def remember(x, memory):
    return x * memory


def _remember_forward(x, memory):
    return x * memory, (x, memory)


def _remember_backward(residuals, g):
    x, memory = residuals
    return g * memory, memory + 1.0 + 0 * jnp.sum(x)  # the "gradient" is the next value


remember.defvjp(_remember_forward, _remember_backward)


class Remembering(nn.Module):
    """A linear classifier of x * memory; a backward pass adds one to memory."""

    @nn.compact
    def __call__(self, images, train=False):
        memory = self.variable(OVERWRITE, "memory", jnp.ones, ())
        return Linear()(remember(images, memory.value))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_overwrite_with_gradient(microbatches):
    optimizer = optax.chain(
        optax.clip_by_global_norm(1e3), optax.adamw(RATE, weight_decay=0.5)
    )
    model = Remembering()
    before = toy_state(model, optimizer)
    state, metrics = run(
        model, steps=1, optimizer=optimizer, state=before, microbatches=microbatches
    )
    assert float(state.model_state[OVERWRITE]["memory"]) == 1.0 + microbatches
    chex.assert_trees_all_equal_structs(before.opt_state, state.opt_state)
    moments = jax.tree.leaves(state.opt_state)
    assert not any(float(jnp.max(jnp.abs(m))) > 100 for m in moments)
    if microbatches == 1:
        _, _, grads = by_hand(before.params["Linear_0"], toy_batch())
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def optim_config(**changes):
    fields = {
        "name": "adamw",
        "lr": 0.01,
        "warmup_fraction": 0.0,
        "final_lr_fraction": 0.0,
        "weight_decay": 0.05,
        "beta1": 0.9,
        "beta2": 0.999,
        "clip_norm": 1.0,
        "trainable": ".*",
    }
    return ConfigDict({**fields, **changes})


def test_freezing_all_but_the_norms():
    optimizer = optim.build(optim_config(trainable="norm"), 10)
    model = small_vit("layer_norm")
    before = toy_state(model, optimizer)
    after, _ = run(model, steps=2, optimizer=optimizer, state=before)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(before.params),
        jax.tree.leaves(after.params),
        strict=True,
    )
    for (path, old), new in pairs:
        moved = not np.array_equal(old, new)
        assert moved == any("norm" in key.key for key in path), path


def test_dropout_differs_by_step_and_repeats_by_seed():
    model = small_vit("layer_norm", dropout_rate=0.5)
    optimizer = optax.sgd(0.0)
    state = toy_state(model, optimizer)
    step = make_train_step(model, parts()[0], optimizer, lambda _: 0.0, Recipe())
    step = jax.jit(step)
    batch = toy_batch()
    second, first = step(state, batch)
    assert float(first["loss"]) == float(step(state, batch)[1]["loss"])
    assert float(first["loss"]) != float(step(second, batch)[1]["loss"])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_terms_that_layers_sow_join_the_loss(weight):
    class Decayed(nn.Module):
        """The linear classifier; half its squared kernel is a term of the loss."""

        @nn.compact
        def __call__(self, images, train=False):
            logits = Linear(name="inner")(images)
            kernel = self.variables["params"]["inner"]["head"]["kernel"]
            self.sow("losses", "decay", 0.5 * jnp.sum(jnp.square(kernel)))
            return logits

    before = toy_state(Decayed(), optax.sgd(RATE))
    state, metrics = run(Decayed(), state=before, auxiliary_loss_weight=weight)
    plain, plain_metrics = run(
        Linear(), state=before.replace(params=before.params["inner"], model_state={})
    )
    start = before.params["inner"]["head"]["kernel"]
    term = 0.5 * np.sum(np.float64(start) ** 2)
    np.testing.assert_allclose(metrics["auxiliary_loss"], term, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["loss"], plain_metrics["loss"] + weight * term, rtol=1e-6
    )
    assert "losses" not in state.model_state
    chex.assert_trees_all_close(
        state.params["inner"]["head"]["kernel"],
        plain.params["head"]["kernel"] - RATE * weight * start,
        atol=1e-6,
    )


def test_what_scanned_layers_sow():
    """Scalars come as vectors over the layers; each layer counts as any other."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            level = self.param("level", nn.initializers.normal(), ())
            self.sow("diagnostics", "level", level)
            self.sow("losses", "level", level)
            return x, None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            rngs = {"params": True}
            layers = nn.scan(Layer, variable_axes={True: 0}, split_rngs=rngs, length=3)
            x, _ = layers(name="blocks")(images, None)
            x, _ = Layer(name="last")(x, None)
            return Linear(name="inner")(x)

    before = toy_state(Deep(), optax.sgd(RATE))
    _, metrics = run(Deep(), state=before)
    levels = [*before.params["blocks"]["level"], before.params["last"]["level"]]
    np.testing.assert_allclose(metrics["level"], np.mean(levels), rtol=1e-5)
    np.testing.assert_allclose(metrics["auxiliary_loss"], np.sum(levels), rtol=1e-5)


class Normed(nn.Module):
    """A batch norm before a linear layer."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        x = self.norm(x.reshape(len(x), -1), train=train)
        return nn.Dense(4)(x)


@pytest.mark.parametrize("unbiased", [False, True])
def test_deferred_statistics_are_those_of_the_whole_batch(unbiased):
    """As of one pass over it; the parts are normalised each by itself."""
    from normjax.norms import BatchNorm

    def norm():
        return BatchNorm(momentum=0.5, unbiased_running_var=unbiased)

    kind = {"steps": 2, "optimizer": optax.set_to_zero()}
    whole, _ = run(Normed(norm()), **kind)
    parted = {**kind, "microbatches": 4, "deferred_batch_stats": True}
    parts, _ = run(Normed(norm()), **parted)
    chex.assert_trees_all_close(parts.model_state, whole.model_state, rtol=1e-5)
    threaded, _ = run(Normed(norm()), **{**kind, "microbatches": 4})
    stats = [s.model_state["batch_stats"]["norm"]["var"] for s in (threaded, whole)]
    assert not np.allclose(*stats, rtol=1e-2)


def test_statistics_that_leave_no_moments_are_refused():
    from normjax.core.errors import UserError

    parted = {"microbatches": 2, "deferred_batch_stats": True}
    with pytest.raises(UserError, match="deferred_batch_stats: blocks_0/norm1"):
        run(small_vit("power_norm"), shape=(4, 4, 1), **parted)
