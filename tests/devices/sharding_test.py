"""Which part of the state a device holds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from normjax import models, reparam
from normjax.core.errors import UserError
from normjax.devices.mesh import device_mesh
from normjax.devices.placed import Placed
from normjax.devices.sharding import rules_of, spec_of, state_shardings
from normjax.models import PRESETS
from normjax.train.experiment import build_experiment
from normjax.train.state import create_state
from tests.train.tiny import tiny_config

RULES = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor", "vocab": "tensor"}


@functools.cache
def mesh_of(data=-1, fsdp=2, tensor=2):
    return device_mesh(jax.devices()[:4], data, fsdp, tensor)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("blocks_0/mixer/qkv/kernel", (8, 24), P("fsdp", "tensor")),
        ("blocks_0/mixer/proj/kernel", (8, 8), P("tensor", "fsdp")),
        ("blocks_0/mlp/fc1/kernel", (8, 32), P("fsdp", "tensor")),
        ("blocks_0/mlp/fc2/kernel", (32, 8), P("tensor", "fsdp")),
        ("blocks_0/mixer/k/key/kernel", (8, 6), P("fsdp", "tensor")),
        ("embed", (256, 8), P("tensor", "fsdp")),
        ("head/kernel", (8, 10), P("fsdp", "tensor")),
        # A dim that does not divide stays whole.
        ("head/kernel", (8, 11), P("fsdp", None)),
        ("embed", (257, 8), P(None, "fsdp")),
        (
            "blocks_0_1/unit_0/conv/kernel",
            (3, 3, 4, 8),
            P(None, None, "fsdp", "tensor"),
        ),
        ("stem/proj/kernel", (4, 4, 3, 8), P(None, None, None, "fsdp")),
        ("stem/unit/conv/kernel", (3, 3, 4, 8), P(None, None, None, "fsdp")),
        ("merge_1/reduction/kernel", (16, 8), P("fsdp", "tensor")),
        # Layers that are scanned stay together.
        ("blocks/mixer/qkv/kernel", (4, 8, 24), P(None, "fsdp", "tensor")),
        ("blocks/norm1/scale", (4, 8), P()),
        ("blocks/other", (16, 4, 6), P(None, None, "fsdp")),
        # What no pattern names: the largest dim that divides.
        ("pos_embed", (1, 4, 6, 8), P(None, None, None, "fsdp")),
        ("blocks_0/mixer/relative_position_bias", (13, 13, 4), P(None, None, "fsdp")),
        ("blocks_0/mixer/relative_position_bias", (13, 13, 3), P(None, None, None)),
        ("blocks_0/norm1/scale", (8,), P()),
        ("blocks_0/mixer/gamma", (), P()),
    ],
)
def test_parameters(path, shape, spec):
    assert spec_of(path, shape, mesh_of(), RULES) == spec


def test_scanned_layers_over_stages():
    mesh = device_mesh(jax.devices()[:4], stage=2)
    specs = (
        ("blocks/mixer/qkv/kernel", (4, 8, 24), P("stage", None, None)),
        ("blocks/norm1/scale", (4, 8), P("stage")),
        ("blocks/mlp/gamma", (4,), P("stage")),
        ("blocks_0/norm1/scale", (8,), P()),
    )
    for path, shape, spec in specs:
        assert spec_of(path, shape, mesh, RULES) == spec


def test_axes_of_one_device_do_not_appear():
    shape, path = (8, 24), "blocks_0/mixer/qkv/kernel"
    assert spec_of(path, shape, mesh_of(fsdp=1, tensor=1), RULES) == P(None, None)
    assert spec_of(path, shape, mesh_of(tensor=1), RULES) == P("fsdp", None)


def test_rules_of_the_config():
    shape, path, mesh = (8, 24), "blocks_0/mixer/qkv/kernel", mesh_of()
    rules = rules_of(tiny_config(sharding__heads=""))
    assert spec_of(path, shape, mesh, rules) == P("fsdp", None)
    rules = rules_of(tiny_config(sharding__heads="fsdp"))
    # One axis splits one dim.
    assert spec_of(path, shape, mesh, rules) == P("fsdp", None)
    assert spec_of(path, (7, 24), mesh, rules) == P(None, "fsdp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "tensor"}, "logical axis of config.sharding: 'head'; did you mean"),
        ({"mlp": "tensr"}, "mesh axis in config.sharding.mlp: 'tensr'; did you mean"),
    ],
)
def test_rules_that_are_refused(changes, message):
    config = tiny_config()
    config.sharding.update(changes)
    with pytest.raises(UserError) as caught:
        rules_of(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def state_of(optimizer):
    model = models.build(
        "vit", num_classes=10, dim=16, depth=1, num_heads=2, norm="batch_norm"
    )
    inputs = (jnp.zeros((1, 16, 16, 3)), {})
    create = functools.partial(create_state, model, optimizer, 0, inputs, use_ema=True)
    return jax.eval_shape(create)


TRAINED = {
    "adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "lion": optax.lion(1e-3),
    "sgd": optax.sgd(1e-3, momentum=0.9),
    "some": optax.partition(
        {"train": optax.adam(1e-3), "freeze": optax.set_to_zero()},
        lambda params: {k: "train" if "blocks" in k else "freeze" for k in params},
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_moments_and_average_lie_as_their_parameter(name):
    state = state_of(TRAINED[name])
    shardings = state_shardings(state, mesh_of(), RULES)
    chex.assert_trees_all_equal_structs(shardings, state)
    assert shardings.ema == shardings.params
    specs = {s.spec for s in jax.tree.leaves(shardings.model_state)}
    assert specs == {P()}
    # The moments, whatever is around them: every subtree that looks like the weights.
    weights = shardings.params["blocks_0"]["mixer"]
    found = [
        tree
        for tree in subtrees(shardings.opt_state)
        if isinstance(tree, dict) and set(tree) == set(weights)
    ]
    assert found and all(tree == weights for tree in found)
    assert weights["qkv"]["kernel"].spec == P("fsdp", "tensor")


def subtrees(tree):
    yield tree
    children = tree.values() if isinstance(tree, dict) else tree
    if isinstance(tree, dict | tuple | list):
        for child in children:
            yield from subtrees(child)
    elif hasattr(tree, "inner_state"):
        yield from subtrees(tree.inner_state)


def test_factored_moments_are_whole():
    """Of another shape than their parameter."""
    state = state_of(optax.adafactor(1e-3, min_dim_size_to_factor=4))
    shardings = state_shardings(state, mesh_of(), RULES)
    pairs = zip(
        jax.tree.leaves(state.opt_state),
        jax.tree.leaves(shardings.opt_state),
        strict=True,
    )
    for leaf, sharding in pairs:
        assert leaf.ndim > 1 or sharding.spec == P()


def bytes_on_first(state):
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


def test_the_first_state_on_a_mesh():
    """The same as on one device, and a device holds its part of it."""
    config = tiny_config("norm=layer_norm,mixer=softmax", ema_decay=0.9)
    config.model.dim = 64
    alone = build_experiment(config, jax.devices()[:1]).create_state()
    config.mesh.fsdp = 4
    state = build_experiment(config).create_state()
    chex.assert_trees_all_close(*map(jax.device_get, (state, alone)), atol=1e-7)
    assert bytes_on_first(state) < 0.3 * bytes_on_first(alone)


@pytest.mark.parametrize("name", ["deit_tiny", "swin_tiny", "resnet50"])
def test_hardly_anything_of_a_model_stays_whole(name):
    assert name in PRESETS
    model, images = models.build(name, num_classes=1000), jnp.zeros((1, 224, 224, 3))
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    mesh = mesh_of(fsdp=4, tensor=1)
    sizes = [
        (x.size, spec_of(path_of(path), x.shape, mesh, RULES))
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    whole = sum(size for size, spec in sizes if "fsdp" not in spec)
    assert whole < 0.02 * sum(size for size, _ in sizes)


def path_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


MADE = ({"pattern": "mlp", "name": "weight_standardization"},)
"""Rules of a model that makes effective weights of its raw ones."""


@pytest.mark.parametrize("kind", ["plain", "scanned", "reparameterized"])
def test_gathered_where_they_are_used(kind):
    """Gradients, and that they lie as their parameters."""
    mesh, sizes = mesh_of(data=1), {"dim": 8, "depth": 2, "num_heads": 2}
    model = models.build(
        "decoder",
        vocab_size=16,
        tied=True,
        mlp_hidden=8,
        scan_layers=kind == "scanned",
        **sizes,
    )
    if kind == "reparameterized":
        model = reparam.reparameterize(model, MADE)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (4, 6)))
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    shardings = jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(
            mesh, spec_of(path_of(path), x.shape, mesh, RULES)
        ),
        params,
    )

    def loss(apply, params):
        return jnp.mean(jnp.square(apply({"params": params}, tokens)))

    alone = functools.partial(loss, model.apply)
    placed = functools.partial(loss, Placed(model, mesh, shardings).apply)
    ours = jax.jit(jax.grad(placed), out_shardings=shardings)(
        jax.device_put(params, shardings)
    )
    chex.assert_trees_all_close(ours, jax.jit(jax.grad(alone))(params), atol=1e-6)
