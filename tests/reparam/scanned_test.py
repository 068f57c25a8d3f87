"""Scanned layers are reparameterized one by one, as those of the unrolled model."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models, reparam
from normjax.reparam import REPARAMS

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)))
KINDS = {entry.name: {} for entry in REPARAMS}
KINDS["sigma_reparam"] = {"gamma_init": "spectral"}
# Units of variance 1 in every layer make the signal grow.
KINDS["weight_standardization"] = {"pattern": "fc1"}
KINDS["stable_rank_normalization"] = {"rank_ratio": 0.3}
FEW = ("sigma_reparam", "stable_rank_normalization", "scale_and_shift")
RANDOM = {"scale_and_shift": "ssf_scale", "dora": "lora_a"}
RANDOM |= dict.fromkeys(("lora", "mask_lora", "lora_prune"), "lora_a")
"""An array that starts at random."""
KEY = jax.random.key(1)
STATE = ["batch_stats", "spectral_stats"]


def build(scan, name=None, pattern="", norm="repbn", **kwargs):
    model = models.build(
        "decoder",
        vocab_size=11,
        dim=8,
        depth=2,
        num_heads=2,
        mlp_hidden=12,
        norm=norm,
        scan_layers=scan,
    )
    rule = {"pattern": pattern, "name": name, **kwargs} if name else ()
    return reparam.reparameterize(model, rule)


def apart(variables):
    """Those of the unrolled model, whatever the collection."""
    return build(True).unrolled(variables)[1]


def drawn(variables):
    """Values that differ from layer to layer; variances stay positive."""
    rng = np.random.default_rng(1)

    def moved(path, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        noise = 0.2 * rng.normal(size=x.shape)
        return np.asarray(x) + (
            abs(noise) if path[-1].key in ("var", "scale") else noise
        )

    return jax.tree_util.tree_map_with_path(moved, variables)


def wide(dtype):
    return jnp.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype


def parts(variables):
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


@functools.cache
def case(name):
    """(model, unrolled model, variables of the first) in float64."""
    scanned, plain = (build(scan, name, **KINDS[name]) for scan in (True, False))
    host = jax.eval_shape(build(True).init, jax.random.key(0), TOKENS)
    with jax.enable_x64(True):
        host = drawn(jax.tree.map(lambda x: np.zeros(x.shape, wide(x.dtype)), host))
        attach = jax.jit(lambda host: reparam.attach(scanned.rules, host, KEY))
        return scanned, plain, drawn(attach(dict(host)))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if "lora" in n else []) for n in KINDS],
)
def test_weights_gradients_and_state_are_those_of_the_unrolled_model(name, x64):
    scanned, plain, variables = case(name)
    state = {k: v for k, v in variables.items() if k != "params"}
    given = {False: (variables["params"], state), True: parts(apart(variables))}

    def run(rules, params, rest):
        def loss(params):
            made = reparam.effective(rules, {**rest, "params": params}, train=True)
            return sum(jnp.sum(jnp.sin(w)) for w in jax.tree.leaves(made.params)), made

        (_, made), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return {"params": made.params, "spectral_stats": made.state, "grads": gradient}

    run = jax.jit(run, static_argnums=0)
    actual = apart(run(scanned.rules, *given[False]))
    expected = run(plain.rules, *given[True])
    assert bool(expected["spectral_stats"]) == bool(REPARAMS[name].make.held)
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n == "scale_and_shift" else pytest.mark.slow)
        for n in KINDS
    ],
)
def test_logits_state_and_fold_are_those_of_the_unrolled_model(name, x64):
    scanned, plain, variables = case(name)

    model_f, folded = fusion.fold(scanned, variables)
    model_m, merged = fusion.merge(scanned, variables)
    assert set(folded) == {"params"} and set(merged) == {"params", "batch_stats"}

    @jax.jit
    def run(variables, folded, merged):
        return (
            scanned.apply(variables, TOKENS, True, mutable=STATE),
            plain.apply(apart(variables), TOKENS, True, mutable=STATE),
            scanned.apply(variables, TOKENS),
            model_f.apply(folded, TOKENS),
            model_m.apply(merged, TOKENS),
        )

    (new, state), (old, expected), *evaluated = run(variables, folded, merged)
    np.testing.assert_allclose(new, old, rtol=1e-9, atol=1e-9)
    chex.assert_trees_all_close(apart(state), dict(expected), rtol=1e-9, atol=1e-9)
    for logits in evaluated[1:]:
        np.testing.assert_allclose(logits, evaluated[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        # One with parameters, one with state, the one that is random.
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in KINDS
    ],
)
def test_own_parameters_start_as_those_of_the_unrolled_model(name, x64):
    """But for those that are random, which differ from layer to layer."""
    scanned, plain, variables = case(name)
    kept = {
        k: v
        for k, v in fusion.merge(scanned, variables)[1].items()
        if name not in RANDOM
    } or case("weight_standardization")[2]
    made = apart(reparam.attach(scanned.rules, kept, KEY))
    expected = reparam.attach(plain.rules, apart(kept), KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(made, expected)
    if name in RANDOM:
        first, second = (
            made["params"][f"blocks_{i}"]["mlp"]["fc1"][RANDOM[name]] for i in (0, 1)
        )
        assert not np.allclose(first, second)
    else:
        chex.assert_trees_all_close(made, expected, rtol=1e-9, atol=1e-9)


def test_norms_of_scanned_layers_are_scaled_and_shifted(x64):
    """Their vectors have a first axis of layers; what has no bias gets one."""
    given = {"name": "scale_and_shift", "pattern": "norm|qkv", "norm": "rms_norm"}
    model = build(True, **given)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    block = shapes["blocks"]
    assert block["norm1"]["ssf_scale"].shape == block["norm1"]["scale"].shape == (2, 8)
    assert block["mixer"]["qkv"]["ssf_shift"].shape == (2, 24)
    assert shapes["norm"]["ssf_scale"].shape == (8,)


def test_a_module_of_that_name_which_scans_nothing_is_one_layer():
    """Only the model says what is scanned."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    rules = reparam.rules_of({"pattern": "", "name": "weight_normalization"})
    variables = {"params": {"blocks": {"kernel": kernel}}}
    made = reparam.attach(rules, variables, jax.random.key(0))
    assert made["params"]["blocks"]["gain"].shape == (4,)
