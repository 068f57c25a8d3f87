"""Reparameterized transformers and residual networks: use, state, merging, folding."""

import functools

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import fusion, models, norms, reparam
from normjax.core.collections import TRANSIENT
from normjax.core.errors import UserError
from normjax.reparam import REPARAMS
from tests.reparam import oracles

STATE = ("batch_stats", "spectral_stats")
SLOW = [pytest.param(host, marks=pytest.mark.slow) for host in ("vit", "resnet")]

VIT = {
    "name": "vit",
    "dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "norm": "batch_norm",
    "stem": {"name": "patch", "patch_size": 4},
}
RESNET = {
    "name": "resnet",
    "depths": (1, 1),
    "widths": (4, 6),
    "stem": {"name": "conv_unit", "stride": 1},
}
HOSTS = {"vit": VIT, "resnet": RESNET, "small": {**VIT, "depth": 1}}

# Everything once, what has a state and what gives a layer a bias among it.
RULES = {
    "vit": (
        {"pattern": "blocks_0/mlp", "name": "sigma_reparam"},
        {"pattern": "blocks_0/mixer/qkv", "name": "weight_normalization"},
        {"pattern": "proj", "name": "stable_rank_normalization", "rank_ratio": 0.3},
        {"pattern": "mlp/fc1", "name": "weight_standardization"},
        {"pattern": "mlp/fc2", "name": "scaled_weight_standardization"},
        {"pattern": "mixer", "name": "weight_compander"},
        {"pattern": "norm|head", "name": "scale_and_shift"},
    ),
    "resnet": (
        {"pattern": "stem.*conv", "name": "weight_standardization"},
        {"pattern": "0_0/unit_0", "name": "sigma_reparam"},
        {"pattern": "0_0/unit_1/conv", "name": "scaled_weight_standardization"},
        {"pattern": "1_0/unit_0/conv", "name": "stable_rank_normalization"},
        {"pattern": "1_0/unit_1/conv", "name": "weight_compander"},
        {"pattern": "head", "name": "weight_normalization"},
        {"pattern": "", "name": "scale_and_shift"},
    ),
    "small": (
        {"pattern": "mlp", "name": "sigma_reparam"},
        {"pattern": "qkv|norm1", "name": "scale_and_shift"},
    ),
}


def images(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 1)), dtype)


def plain(host, **changes):
    return models.build({**HOSTS[host], "num_classes": 3, **changes})


def build(host, rules=None, **changes):
    return reparam.reparameterize(plain(host, **changes), rules or RULES[host])


def random_variables(model, dtype=np.float32):
    """Weights and statistics that are nowhere 0 or 1; vectors of length 1."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(np.float32))
    rng = np.random.default_rng(0)

    def draw(path, x):
        fan_in = x.size / x.shape[-1] if x.shape else 1
        value = rng.normal(size=x.shape) / np.sqrt(fan_in)
        if path[-1].key in ("left", "right"):
            value = value / np.linalg.norm(value)
        if path[-1].key in ("var", "scale", "gain", "amplitude", "width", "gamma"):
            value = rng.uniform(0.5, 1.5, x.shape)
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(draw, kept(shapes))


def kept(variables):
    """Variables without what every call sows anew."""
    return {k: v for k, v in variables.items() if k not in TRANSIENT}


def logits(model, variables):
    x = images(jax.tree.leaves(variables["params"])[0].dtype)
    return np.asarray(jax.jit(model.apply)(variables, x))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x)


@functools.cache
def example(host, dtype="float32"):
    """A model with everything, random variables, its logits at evaluation."""
    model = build(host)
    with jax.enable_x64(dtype == "float64"):
        variables = random_variables(model, dtype)
        return model, variables, logits(model, variables)


def train_call(model, variables, params, x):
    given = {**variables, "params": params}
    key = {"dropout": jax.random.key(0)}
    return model.apply(given, x, train=True, mutable=list(STATE), rngs=key)


VALUES = {
    "SigmaReparam": (oracles.sigma_reparam, oracles.sigma_vectors),
    "StableRankNormalization": (
        oracles.stable_rank_normalization,
        oracles.stable_rank_vectors,
    ),
    "WeightNormalization": (oracles.weight_normalization, None),
    "WeightStandardization": (oracles.weight_standardization, None),
    "ScaledWeightStandardization": (oracles.scaled_weight_standardization, None),
    "WeightCompander": (oracles.weight_compander, None),
    "ScaleAndShift": (oracles.scale_and_shift, None),
}


def test_every_layer_computes_with_the_weights_of_the_equation():
    """Against the plain model that is given the oracle's weights."""
    model, variables, actual = example("vit", "float64")
    params = flax.traverse_util.flatten_dict(variables["params"])
    stats = flax.traverse_util.flatten_dict(variables["spectral_stats"])
    found = reparam.sites(model.rules, variables["params"])
    assert {type(site.reparam).__name__ for site in found} == set(VALUES)
    assert len(found) == 2 * 6 + 3
    for path, layer, method in found:
        value, move = VALUES[type(method).__name__]
        kwargs = {"rank_ratio": 0.3} if method.held == ("left", "right") else {}
        layer = {name: np.asarray(array) for name, array in layer.items()}
        own = {name: np.asarray(params.pop((*path, name))) for name in method.own}
        held = {name: np.asarray(stats[*path, name]) for name in method.held}
        vectors = move(layer, own, held, kwargs, False)[0] if move else {}
        for name, array in value(layer, own, vectors, kwargs).items():
            params[*path, name] = array
    tree = flax.traverse_util.unflatten_dict(params)
    with jax.enable_x64(True):
        given = {"params": tree, "batch_stats": variables["batch_stats"]}
        expected = logits(plain("vit"), jax.tree.map(jnp.asarray, given))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["small", *SLOW])
def test_initialisation(host):
    """Raw weights are those of the plain model; the first result is that of apply."""
    model, key = build(host), jax.random.key(3)
    first, variables = jax.jit(model.init_with_output)(key, images())
    alone = jax.jit(plain(host).init)(key, images())
    flat = flax.traverse_util.flatten_dict(variables["params"])
    raw = flax.traverse_util.flatten_dict(alone["params"])
    for path, value in raw.items():
        np.testing.assert_allclose(flat.pop(path), value, rtol=1e-5, atol=1e-7)
    owned = {path[-1] for path in flat}
    kinds = {rule["name"]: REPARAMS[rule["name"]].make for rule in RULES[host]}
    assert owned == {name for make in kinds.values() for name in make.own}
    held = flax.traverse_util.flatten_dict(variables["spectral_stats"])
    assert {p[-1] for p in held} == {n for make in kinds.values() for n in make.held}
    np.testing.assert_allclose(first, logits(model, variables), rtol=1e-4, atol=1e-5)
    attach = functools.partial(reparam.attach, model.rules)
    attached = jax.eval_shape(attach, kept(alone), key)
    chex.assert_trees_all_equal_shapes_and_dtypes(attached, kept(variables))


@pytest.mark.parametrize("host", ["vit", *SLOW[1:]])
def test_state_moves_in_training_only(host):
    model, variables, _ = example(host)
    state = {k: variables[k] for k in STATE}

    @jax.jit
    def both(variables):
        _, kept = model.apply(variables, images(), train=False, mutable=list(STATE))
        return kept, train_call(model, variables, variables["params"], images())[1]

    kept, new = both(variables)
    chex.assert_trees_all_equal(dict(kept), state)
    assert jax.tree.structure(dict(new)) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True)
    assert all((a != b).any() for a, b in pairs)


def test_training_needs_a_mutable_state():
    model = reparam.reparameterize(Linear(), {"pattern": "", "name": "sigma_reparam"})
    x = jnp.ones((1, 2))
    variables = model.init(jax.random.key(0), x)
    model.apply(variables, x, train=False)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        model.apply(variables, x, train=True)


def test_power_iteration_finds_the_spectral_norm():
    model = build("vit", {"pattern": "mlp", "name": "sigma_reparam"}, depth=1)
    variables, state = random_variables(model), {}
    for _ in range(200):
        state = reparam.effective(model.rules, variables, train=True).state
        variables = {**variables, "spectral_stats": state}
    for name in ("fc1", "fc2"):
        kernel = variables["params"]["blocks_0"]["mlp"][name]["kernel"]
        sigma = state["blocks_0"]["mlp"][name]["sigma"]
        np.testing.assert_allclose(sigma, np.linalg.norm(kernel, 2), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["small", *SLOW])
def test_rematerialised_blocks_give_the_same_step(host):
    """Value, every gradient and the state; the state is written once."""

    def step(model, variables, x):
        def loss(params):
            y, new = train_call(model, variables, params, x)
            return jnp.sum(jnp.square(y)), new

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    _, variables, _ = example(host)
    results = [
        jax.jit(functools.partial(step, build(host, remat=remat)))(variables, images())
        for remat in (False, True)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)
    (_, new), gradient = results[0]
    expected = reparam.effective(build(host).rules, variables, train=True).state
    chex.assert_trees_all_close(new["spectral_stats"], expected, rtol=1e-5, atol=1e-6)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        names = [k.key for k in path]
        # Behind a norm over the batch a constant is lost, and so is a common factor.
        if names[-1] not in ("bias", "ssf_shift", "gamma"):
            assert np.abs(g).max() > 0, names


@pytest.mark.slow
def test_a_few_steps_of_training():
    model, variables, _ = example("vit")
    optimizer, labels = optax.adam(0.02), jnp.arange(4) % 3

    @jax.jit
    def step(params, state, opt_state):
        def loss(params):
            y, new = train_call(model, state, params, images())
            return optax.softmax_cross_entropy_with_integer_labels(
                y, labels
            ).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), new, opt_state, value

    params, state = variables["params"], {k: variables[k] for k in STATE}
    opt_state, losses = optimizer.init(params), []
    for _ in range(30):
        params, state, opt_state, value = step(params, state, opt_state)
        losses.append(float(value))
    assert losses[-1] < 0.1 * losses[0]


def test_only_what_the_optimizer_trains_moves():
    """SSF with everything else frozen, from a trained model."""
    host = plain("vit", norm="layer_norm", depth=1)
    trained = random_variables(host)
    model = reparam.reparameterize(host, {"pattern": "", "name": "scale_and_shift"})
    variables = reparam.attach(model.rules, trained, jax.random.key(1))
    own = [p for p, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
    assert sum("ssf_" in p[-1].key for p in own) == 2 * (1 + (2 + 4) + 2)

    def loss(params):
        return jnp.sum(
            jnp.square(model.apply({"params": params}, images(), train=True))
        )

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        # Softmax does not see a constant that is added to the keys.
        assert (np.abs(g).max() > 0) or "bias" in path[-1].key


@pytest.mark.slow
@pytest.mark.parametrize("host", ["vit", "resnet"])
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-6)])
def test_merged_models_compute_the_same(host, dtype, limit):
    model, variables, before = example(host, dtype)
    with jax.enable_x64(dtype == "float64"):
        merged_model, merged = fusion.merge(model, variables)
        after = logits(merged_model, merged)
    assert np.abs(after - before).max() <= limit * before.std()
    assert set(merged) == {"params", "batch_stats"}
    again, same = fusion.merge(merged_model, merged)
    assert again is merged_model and same["params"] is merged["params"]
    shapes = jax.eval_shape(plain(host).init, jax.random.key(0), images())
    created = flax.traverse_util.flatten_dict(merged["params"], sep="/")
    for path in flax.traverse_util.flatten_dict(shapes["params"], sep="/"):
        del created[path]
    if host == "vit":
        assert merged_model is model.host and not created
    else:
        assert merged_model.biased == {"blocks_1_0/shortcut/conv"}
        assert set(created) == {"blocks_1_0/shortcut/conv/bias"}


@pytest.mark.parametrize("host", ["vit", "resnet"])
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-4)])
def test_reparameterized_models_fold(host, dtype, limit):
    model, variables, before = example(host, dtype)
    with jax.enable_x64(dtype == "float64"):
        folded_model, folded = fusion.fold(model, variables)
        after = logits(folded_model, folded)
        again, same = fusion.fold(folded_model, folded)
    assert np.abs(after - before).max() <= limit * before.std()
    assert set(folded) == {"params"}
    assert again is folded_model
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, same, folded))


def test_the_report_names_reparameterized_layers_and_norms():
    plan = fusion.plan(*example("vit")[:2])
    rows = [(entry.path, entry.norm, entry.into) for entry in plan]
    assert ("blocks_0/mlp/fc1", "SigmaReparam", ("blocks_0/mlp/fc1",)) in rows
    assert ("blocks_0/norm1", "ScaleAndShift", ("blocks_0/norm1",)) in rows
    assert ("blocks_0/norm1", "BatchNorm", ("blocks_0/mixer/qkv",)) in rows
    assert len(rows) == (2 * 6 + 3) + 5 and not any(entry.reason for entry in plan)


def test_layer_norms_stay_and_layers_merge():
    model = build("vit", norm="layer_norm")
    merged_model, merged = fusion.fold(model, random_variables(model))
    assert merged_model is model.host and set(merged) == {"params"}


@pytest.mark.parametrize("norm", ["rms_norm", "batch_norm", "evonorm_b0", "none"])
def test_scale_and_shift_behind_norms_is_that_of_the_output(norm):
    """A norm with `scale` alone gets a bias; what has other parameters is left out."""

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return norms.build(norm)(name="norm")(x, train=train)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    rule = {"pattern": "norm", "name": "scale_and_shift"}
    model = reparam.reparameterize(Normed(), rule)
    if norm in ("evonorm_b0", "none"):
        with pytest.raises(UserError, match="'norm' of ScaleAndShift finds no layer"):
            model.init(jax.random.key(0), x)
        return
    shapes = kept(jax.eval_shape(model.init, jax.random.key(0), x))
    own = jax.tree.map(lambda s: jnp.linspace(0.5, 2, 4).reshape(s.shape), shapes)
    params = own["params"]["norm"]
    inner = {k: v for k, v in params.items() if not k.startswith("ssf_")}
    y = Normed().apply({**own, "params": {"norm": inner}}, x)
    expected = reparam.scale_and_shift(y, params["ssf_scale"], params["ssf_shift"])
    for run, variables in ((model, own), fusion.merge(model, own)):
        actual = run.apply(variables, x)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_shared_layers_iterate_once_a_call():
    rules = {"pattern": "mlp", "name": "sigma_reparam"}
    model = build("vit", rules, share_layers=True)
    variables = random_variables(model)
    assert set(variables["spectral_stats"]) == {"mlp"}
    run = jax.jit(train_call, static_argnums=0)
    _, new = run(model, variables, variables["params"], images())
    expected = reparam.effective(model.rules, variables, train=True).state
    chex.assert_trees_all_close(new["spectral_stats"], expected, rtol=1e-5)
    plain_model, merged = fusion.merge(model, variables)
    np.testing.assert_allclose(
        logits(plain_model, merged), logits(model, variables), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_bfloat16_computation_keeps_parameters_and_state_in_float32():
    wide, variables, _ = example("vit")
    model = build("vit", dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    run = jax.jit(train_call, static_argnums=0)
    y, new = run(model, variables, variables["params"], images())
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    expected, _ = run(wide, variables, variables["params"], images())
    assert np.abs(y - expected).max() < 0.1 * expected.std()


def test_a_folded_model_can_be_reparameterized():
    host = plain("vit", mixer={"name": "softmax", "qkv_bias": False})
    folded_model, folded = fusion.fold(host, random_variables(host))
    rule = {"pattern": "qkv|head", "name": "scale_and_shift"}
    model = reparam.reparameterize(folded_model, rule)
    variables = reparam.attach(model.rules, folded, jax.random.key(0))
    merged_model, merged = fusion.merge(model, variables)
    np.testing.assert_allclose(
        logits(merged_model, merged), logits(model, variables), rtol=1e-5, atol=1e-6
    )


def test_no_rules_no_change():
    model = plain("vit")
    for spec in (None, {}, (), [{}]):
        assert reparam.reparameterize(model, spec) is model


def test_the_first_rule_that_takes_a_layer_counts():
    rules = reparam.rules_of(
        [
            {"pattern": "fc1", "name": "weight_normalization"},
            {"pattern": "blocks_0", "name": "weight_standardization"},
            {"pattern": "norm1", "name": "scale_and_shift"},
        ]
    )
    sites = reparam.sites(rules, random_variables(plain("vit", depth=1))["params"])
    assert {"/".join(s.path): type(s.reparam).__name__ for s in sites} == {
        "blocks_0/mlp/fc1": "WeightNormalization",
        "blocks_0/mlp/fc2": "WeightStandardization",
        "blocks_0/mixer/qkv": "WeightStandardization",
        "blocks_0/mixer/proj": "WeightStandardization",
        "blocks_0/norm1": "ScaleAndShift",
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "sigma_reparam"}, "a reparameterization needs a 'pattern'"),
        ({"pattern": "mlp"}, "a reparameterization needs a 'name'"),
        ({"pattern": "(", "name": "sigma_reparam"}, "pattern '(' of a reparam"),
        ({"pattern": "m", "name": "sigma_reparm"}, "did you mean 'sigma_reparam'"),
        ({"pattern": "mpl", "name": "sigma_reparam"}, "'mpl' of SigmaReparam finds no"),
        (
            [
                {"pattern": "mlp", "name": n}
                for n in ("sigma_reparam", "weight_compander")
            ],
            "'mlp' of WeightCompander finds no layer that is left to it",
        ),
    ],
)
def test_errors(spec, message):
    with pytest.raises(UserError) as caught:
        model = build("vit", spec)
        model.apply(random_variables(plain("vit")), images())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_variables_of_a_plain_model_are_refused():
    model = build("vit", {"pattern": "mlp", "name": "sigma_reparam"})
    alone = random_variables(plain("vit"))
    with pytest.raises(UserError, match=r"blocks_0/mlp/fc1 hold no 'gamma'.*attach"):
        model.apply(alone, images())
    attached = reparam.attach(model.rules, alone, jax.random.key(0))
    del attached["spectral_stats"]
    with pytest.raises(UserError, match=r"spectral_stats of .* hold no 'right'"):
        model.apply(attached, images())


def test_a_forgotten_train_flag_raises():
    class Silent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x)

    rule = {"pattern": "", "name": "sigma_reparam"}
    model = reparam.reparameterize(Silent(), rule)
    with pytest.raises(UserError, match="train=True or train=False"):
        model.init(jax.random.key(0), jnp.zeros((1, 2)))
    stateless = {"pattern": "", "name": "weight_normalization"}
    reparam.reparameterize(Silent(), stateless).init(
        jax.random.key(0), jnp.zeros((1, 2))
    )
