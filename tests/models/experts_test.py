"""Mixture of experts against loops over tokens; who is left out; over devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from normjax import activations, models
from normjax.core.errors import UserError
from normjax.devices.mesh import device_mesh
from normjax.devices.sharding import spec_of

SHAPE, EXPERTS, HIDDEN = (2, 7, 6), 4, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=SHAPE)
MASK = np.arange(7) < np.array([[7], [4]])
PARAMS = {
    "router": {"kernel": RNG.normal(size=(6, EXPERTS))},
    "experts": {
        name: {
            "kernel": RNG.normal(size=(EXPERTS, *shape)),
            "expert_bias": RNG.normal(size=(EXPERTS, shape[1])),
        }
        for name, shape in (("fc1", (6, HIDDEN)), ("fc2", (HIDDEN, 6)))
    },
}


def built(**arguments):
    tanh = activations.build("tanh")
    return models.MixtureOfExperts(HIDDEN, tanh, EXPERTS, **arguments)


def expert(e, x, twice):
    fc1, fc2 = (PARAMS["experts"][n] for n in ("fc1", "fc2"))
    y = np.tanh(x @ fc1["kernel"][e] + fc1["expert_bias"][e])
    y = y @ fc2["kernel"][e] + fc2["expert_bias"][e]
    return np.tanh(y) if twice else y


def oracle(mask=None, top_k=2, room=math.inf, order="token", twice=False):
    """(y, balance), one token and choice after the other."""
    tokens = X.reshape(-1, 6)
    valid = np.ones(len(tokens), bool) if mask is None else mask.reshape(-1)
    p = np.exp(tokens @ PARAMS["router"]["kernel"])
    p /= p.sum(1, keepdims=True)
    pairs = [
        (t, c, int(np.argsort(-p[t])[c]))
        for t in range(len(tokens))
        for c in range(top_k)
        if valid[t]
    ]
    pairs = sorted(pairs, key=lambda pair: pair[1]) if order == "choice" else pairs
    y, taken = np.zeros(tokens.shape), [0] * EXPERTS
    for t, _, e in pairs:
        if taken[e] < room:
            y[t] += p[t, e] * expert(e, tokens[t], twice)
        taken[e] += 1
    balance = EXPERTS * np.dot(np.array(taken) / len(pairs), p[valid].mean(0))
    return y.reshape(SHAPE), balance


CASES = [
    {"capacity_factor": None},
    {"capacity_factor": 0.8, "output_activation": True},
    {"capacity_factor": 1.2, "spare": 1, "order": "choice"},
    {"capacity_factor": 0.9, "top_k": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_balance(case, x64):
    """With padding and without; the room is of all positions."""
    mixture, kwargs = built(**case), dict(case)
    factor, top_k = kwargs.pop("capacity_factor"), kwargs.get("top_k", 2)
    room = math.inf if factor is None else math.floor(14 * factor * top_k / EXPERTS)
    kwargs["room"] = room - kwargs.pop("spare", 0)
    kwargs["twice"] = kwargs.pop("output_activation", False)

    @jax.jit
    def run(x, mask):
        call = functools.partial(mixture.apply, {"params": PARAMS}, train=True)
        return [call(x, mask=m, mutable=["losses"]) for m in (None, mask)]

    for mask, (y, new) in zip((None, MASK), run(X, MASK), strict=True):
        expected, balance = oracle(mask, **kwargs)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(new["losses"]["balance"][0], balance, rtol=1e-12)
    if factor is not None:
        assert not np.allclose(y, oracle(MASK, **{**kwargs, "room": math.inf})[0])


def test_experts_lie_on_devices_of_their_own(x64):
    """The list is that of all devices: the same values and gradients."""
    mesh = device_mesh(jax.devices()[:4], 2, 1, 2)
    rules = {"expert": "tensor", "embed": "fsdp", "mlp": "tensor"}
    path = "blocks_0/mlp/experts/fc1/kernel"
    shape = PARAMS["experts"]["fc1"]["kernel"].shape
    assert spec_of(path, shape, mesh, rules) == P("tensor", None, None)
    mixture = built(capacity_factor=0.8)

    def loss(params, x):
        return jnp.sum(jnp.sin(mixture.apply({"params": params}, x)))

    def placed(path, leaf):
        name = "blocks_0/mlp/" + jax.tree_util.keystr(path, simple=True, separator="/")
        spec = spec_of(name, leaf.shape, mesh, rules)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    x = jax.device_put(X, NamedSharding(mesh, P(("data", "fsdp"))))
    split = step(jax.tree_util.tree_map_with_path(placed, PARAMS), x)
    whole = step(PARAMS, X)
    for a, b in zip(*map(jax.tree.leaves, (split, whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_noise_moves_the_choices_in_training_only():
    mixture = built(noise=3.0, capacity_factor=None)
    variables = {"params": jax.tree.map(jnp.float32, PARAMS)}

    @jax.jit
    def three(x):
        call = functools.partial(mixture.apply, variables, x)
        keys = {"dropout": jax.random.key(0)}
        return call(), call(rngs=keys), call(train=True, rngs=keys)

    plain, same, noisy = three(jnp.float32(X))
    np.testing.assert_array_equal(plain, same)
    assert not np.allclose(noisy, plain)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"top_k": 5}, "top_k=5 of 4 experts"), ({"order": "expert"}, "order of the")],
)
def test_wrong_arguments(wrong, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(built(**wrong).init, jax.random.key(0), X)


def test_only_experts_with_room_for_all_stand_in_a_decoder():
    size = {"vocab_size": 7, "dim": 8, "depth": 1, "num_heads": 2}
    with pytest.raises(UserError, match="does not accept causal"):
        models.build("decoder", mlp="mixture_of_experts", **size)
    experts = {"name": "mixture_of_experts", "capacity_factor": None}
    model = models.build("decoder", mlp=experts, activation="gelu", **size)
    tokens = jnp.array([[1, 2, 3]])

    def run(key):
        variables = model.init(key, tokens)
        return model.apply(variables, tokens, train=True, mutable=["losses"])

    _, new = jax.eval_shape(run, jax.random.key(0))
    assert set(new["losses"]["blocks_0"]["mlp"]) == {"balance"}


def test_widenet_shares_all_but_norms():
    """One mixture, whose balance every layer adds; zeros before the image."""
    stem = {"name": "patch", "patch_size": 2}
    size = {"dim": 8, "depth": 3, "num_heads": 2, "mlp_ratio": 1.0, "stem": stem}
    model = models.build("widenet_base", num_classes=3, **size)
    images = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)

    def run(key, images):
        variables = model.init(key, images)
        keys, asked = {"dropout": key}, ["losses"]
        known = {"train": True, "mutable": asked, "rngs": keys}
        return variables, model.apply(variables, images, **known)

    variables, (logits, new) = jax.eval_shape(run, jax.random.key(0), images)
    assert set(variables["params"]["blocks_1"]) == {"norm1", "norm2"}
    assert variables["params"]["pos_embed"].shape[-2:] == (5, 8)
    assert logits.shape == (2, 3) and len(new["losses"]["mlp"]["balance"]) == 3
