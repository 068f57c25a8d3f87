"""Layers in stages: values, gradients and state of one microbatch after the other."""

import contextlib
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from normjax import models, reparam
from normjax.core.collections import BATCH_STATS, LOSSES
from normjax.core.errors import UserError
from normjax.core.operations import multiply_adds
from normjax.core.scanned import layers_run_by, run_layers
from normjax.devices.mesh import device_mesh
from normjax.devices.pipeline import Pipeline, bubble, check_stages
from normjax.devices.placed import Placed
from normjax.devices.sharding import spec_of
from normjax.records.checkpoint import Checkpoints
from normjax.tasks import NextToken
from normjax.train.experiment import build_experiment
from normjax.train.programs import trace_train_step
from normjax.train.state import state_of
from normjax.train.step import Recipe, make_gradients
from tests.train.tiny import tiny_config

PARTS, ROWS = 2, 16
SIZES = {"vocab_size": 11, "dim": 8, "depth": 4, "num_heads": 2, "mlp_hidden": 12}
EXPERTS = {"name": "mixture_of_experts", "num_experts": 2, "capacity_factor": None}
RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "vocab": "tensor"}


def mesh_of(data, stage):
    return device_mesh(jax.devices()[: data * stage], data, stage=stage)


def batch_of(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(0, 11, (rows, 6)))
    mask = jnp.asarray(np.arange(6) < rng.integers(2, 7, (rows, 1)))
    targets = {"tokens": jnp.roll(tokens, -1, 1), "weights": mask.astype(jnp.float32)}
    return (tokens, {"mask": mask}), targets


def placed_on(mesh, model, params, parts=PARTS):
    def lie(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_of(name, x.shape, mesh, RULES))

    shardings = jax.tree_util.tree_map_with_path(lie, params)
    return Placed(model, mesh, shardings, parts), shardings


def gradients_on(mesh, model, state, parts=PARTS):
    """Of one call; on no mesh of one microbatch after the other."""
    inputs, targets = batch_of()
    recipe, params = Recipe(microbatches=1 if mesh else parts), state.params
    if mesh:
        model, shardings = placed_on(mesh, model, params, parts)
        params = jax.device_put(params, shardings)
    gradients = make_gradients(model, NextToken(), recipe)
    key, made = jax.random.key(1), jnp.zeros((), jnp.int32)
    return jax.jit(gradients)(params, state.model_state, inputs, targets, key, made)


def started(model):
    """A state whose layers differ from one another."""
    (tokens, _), _ = batch_of(1)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    rng = np.random.default_rng(1)
    noise = jax.tree.map(
        lambda x: x + 0.1 * rng.random(x.shape, np.float32), variables["params"]
    )
    return state_of(
        {**variables, "params": noise}, optax.sgd(0.1), jax.random.key(0), use_ema=False
    )


CASES = {
    "statistics": {"norm": {"name": "prepbn", "warmup_steps": 0, "decay_steps": 4}},
    "recomputed": {"remat": True},
    "experts": {"mlp": EXPERTS},
    "recurrent": {"mixer": "gated_linear"},
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "meshes"),
    [
        ("statistics", [(2, 2)]),
        ("recomputed", [(1, 4)]),
        ("experts", [(1, 2)]),
        pytest.param("statistics", [(1, 2), (1, 4)], marks=SLOW),
        pytest.param("recurrent", [(2, 2)], marks=SLOW),
    ],
)
def test_gradients_state_and_losses(name, meshes):
    model = models.build("decoder", scan_layers=True, **SIZES, **CASES[name])
    state = started(model)
    expected = gradients_on(None, model, state)
    for sizes in meshes:
        ours = gradients_on(mesh_of(*sizes), model, state)
        chex.assert_trees_all_close(*map(jax.device_get, (ours, expected)), atol=2e-6)
    if name == "statistics":
        moved, first = expected[0][BATCH_STATS], state.model_state[BATCH_STATS]
        for scope in ("blocks", "norm"):  # layers, and what stands behind them
            assert not np.allclose(
                *(jax.tree.leaves(t[scope])[0] for t in (moved, first))
            )
        steps = jax.tree.leaves(moved["blocks"]["norm1"]["step"])
        np.testing.assert_array_equal(steps, [[1, 1, 1, 1]])  # an update, two parts
    if name == "experts":
        assert "auxiliary_loss" in expected[2]


def test_reparameterized_layers():
    """Weights that are made from others before they are used."""
    plain = models.build("decoder", scan_layers=True, **SIZES)
    rules = ({"pattern": "mlp", "name": "weight_standardization"},)
    model = reparam.reparameterize(plain, rules)
    state = started(model)
    check_stages(mesh_of(2, 2), model)
    ours, expected = (gradients_on(m, model, state) for m in (mesh_of(2, 2), None))
    chex.assert_trees_all_close(*map(jax.device_get, (ours, expected)), atol=2e-6)


def test_rows_that_do_not_divide_are_computed_all_the_same():
    model = models.build("decoder", scan_layers=True, **SIZES)
    params = started(model).params
    (tokens, known), _ = batch_of(5)
    placed, _ = placed_on(mesh_of(2, 2), model, params)
    ours = jax.jit(placed.apply)({"params": params}, tokens, **known)
    expected = jax.jit(model.apply)({"params": params}, tokens, **known)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


class Noise(nn.Module):
    """y = x + noise, and the noise to look at."""

    @nn.compact
    def __call__(self, x, scale):
        noise = jax.random.normal(self.make_rng("dropout"), x.shape)
        self.sow(LOSSES, "path", jnp.float32(len(self.path)))
        return x + scale * noise


class Noisy(nn.Module):
    depth: int = 4

    @nn.compact
    def __call__(self, x, scale):
        return run_layers(Noise(name="blocks"), self.depth, x, scale)


def test_random_numbers_differ_by_layer_and_microbatch():
    """Of layer 3 - i alone: scale counts rows, so that each layer's noise is seen."""
    x, scale = jnp.zeros((8, 3)), jnp.ones((8, 3))

    def run(mesh, depth):
        with layers_run_by(Pipeline(mesh, 2)):
            return jax.jit(functools.partial(Noisy(depth).apply, mutable=[LOSSES]))(
                {}, x, scale, rngs={"dropout": jax.random.key(0)}
            )

    four, sown = run(mesh_of(1, 2), 4)
    two, _ = run(mesh_of(1, 2), 2)
    np.testing.assert_array_equal(sown[LOSSES]["blocks"]["path"][0], [1, 1, 1, 1])
    for noise in (two, four - two):  # of the first two layers and of the last two
        rows = {tuple(row) for row in np.asarray(noise).round(4)}
        assert len(rows) == 8
    again, _ = run(mesh_of(2, 2), 4)
    np.testing.assert_allclose(again, four, atol=1e-6)


def test_operations_are_those_of_all_stages():
    """M + S - 1 ticks of S stages with L / S layers each."""
    model = models.build("decoder", scan_layers=True, **SIZES)
    params = started(model).params
    (tokens, known), _ = batch_of()

    def of(mesh):
        placed, _ = placed_on(mesh, model, params, 4)
        return multiply_adds(
            lambda p: placed.apply({"params": p}, tokens, **known), params
        )

    head = ROWS * 6 * 8 * 11
    ours, alone = (of(mesh_of(*sizes)) - head for sizes in ((2, 2), (4, 1)))
    assert ours * 4 == alone * 5


@pytest.mark.parametrize(
    ("stages", "parts", "share"), [(1, 4, 0.0), (4, 1, 0.75), (2, 1, 0.5), (4, 9, 0.25)]
)
def test_bubble(stages, parts, share):
    assert bubble(stages, parts) == share


SCANNED = {"model__depth": 4, "model__scan_layers": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {**SCANNED, "model__depth": 3},
            "stage=2 does not divide config.model.depth=3",
        ),
        ({"model__depth": 4}, "ViT: set config.model.scan_layers=True"),
        ({**SCANNED, "mesh__tensor": 2}, "fsdp=1, tensor=1, got fsdp=1, tensor=2"),
        ({**SCANNED, "parallelism": "pmap"}, "pmap' needs config.mesh fsdp=1"),
        ({**SCANNED, "batch_size": 6}, "batch_size 6 does not divide by 4 devices"),
        (
            {**SCANNED, "microbatches": 3},
            "batch_size 16 does not divide by 3 microbatches on 4 devices",
        ),
        (
            {**SCANNED, "microbatches": 2, "optim__sam_rho": 0.1},
            "config.optim.sam_rho needs all of one",
        ),
        (
            {**SCANNED, "microbatches": 2, "deferred_batch_stats": True},
            "config.deferred_batch_stats needs all",
        ),
        ({**SCANNED, "sharding__mlp": "stage"}, "mesh axis in config.sharding.mlp"),
    ],
)
def test_refused(changes, message):
    config = tiny_config("norm=layer_norm", mesh__stage=2, **changes)
    with pytest.raises(UserError) as caught:
        trace_train_step(build_experiment(config))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_checkpoints_know_no_stages(tmp_path):
    """Written in stages, read on one device, and the other way round."""
    config = tiny_config("norm=layer_norm", mesh__stage=4, ema_decay=0.9, **SCANNED)
    staged = build_experiment(config)
    config.mesh.stage = 1
    alone = build_experiment(config, jax.devices()[:1])
    for i, (one, other) in enumerate(((staged, alone), (alone, staged))):
        state = one.create_state()
        with contextlib.closing(Checkpoints(tmp_path / str(i))) as checkpoints:
            checkpoints.save(state)
        with contextlib.closing(Checkpoints(tmp_path / str(i))) as checkpoints:
            restored = checkpoints.restore(0, other.abstract_state())
        chex.assert_trees_all_equal(*map(jax.device_get, (restored, state)))
    kernel = restored.ema["blocks"]["mlp"]["fc1"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(1, 16, 16)}


def test_norms_whose_gradient_is_their_state_are_refused():
    config = tiny_config("norm=power_norm", mesh__stage=2, **SCANNED)
    with pytest.raises(UserError, match="what the backward pass writes"):
        trace_train_step(build_experiment(config))


def test_models_of_other_layers_are_refused():
    swin = models.build("swin_tiny", num_classes=10)
    with pytest.raises(UserError, match="Pyramid: it has none"):
        check_stages(mesh_of(2, 2), swin)
