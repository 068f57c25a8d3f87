"""What is computed inside the layers, against NumPy on outputs and gradients."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import models
from normjax.analysis.layers import (
    LayerLog,
    make_diagnose,
    plot_layers,
    read_layers,
)
from normjax.tasks import NextToken
from normjax.train.experiment import build_experiment
from normjax.train.loop import train
from normjax.train.programs import jit_diagnose
from tests.train.tiny import Linear, tiny_config, toy_state

ROWS, LENGTH, VOCABULARY = 3, 6, 11


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    ones = np.ones((ROWS, LENGTH), np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ones}


def state_of(model, batch):
    variables = jax.jit(model.init)(jax.random.key(0), batch["tokens"])
    state = toy_state(Linear(), optax.sgd(0.0))
    stats = jax.tree.map(lambda x: x + 0.3, variables.get("batch_stats", {}))
    rest = {"batch_stats": stats} if stats else {}
    return state.replace(params=variables["params"], model_state=rest)


@pytest.fixture(scope="module")
def looked():
    """A model with BatchNorm, its state, a batch, what looks inside, what it finds."""
    model = models.build(
        "decoder",
        vocab_size=VOCABULARY,
        dim=8,
        depth=2,
        num_heads=2,
        norm="batch_norm",
        rotary_base=None,
    )
    batch = batch_of()
    state = state_of(model, batch)
    diagnose = jax.jit(make_diagnose(model, NextToken()))
    return model, state, batch, diagnose, diagnose(state, batch)


def test_scanned_layers_are_seen_one_by_one(looked):
    model, _, batch, diagnose, _ = looked
    scanned = model.clone(scan_layers=True)
    state = state_of(scanned, batch)
    found = jax.jit(make_diagnose(scanned, NextToken()))(state, batch)
    params, stats = (
        scanned.unrolled({"all": tree})[1]["all"]
        for tree in (state.params, state.model_state["batch_stats"])
    )
    apart = state.replace(params=params, model_state={"batch_stats": stats})
    expected = diagnose(apart, batch)
    assert len(expected["attention_entropy"]) == 2
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_run_sees_them_one_by_one_too():
    config = tiny_config("norm=layer_norm,mixer=softmax", model__depth=2)
    config.model.scan_layers = True
    e = build_experiment(config)
    state, batch = e.abstract_state(), e.abstract_batch()
    found = jax.eval_shape(jit_diagnose(e), state, batch)
    mixers = {"blocks_0/mixer", "blocks_1/mixer"}
    assert set(found["attention_entropy"]) == mixers


@pytest.fixture(scope="module")
def returned(looked):
    """Everything that the model's modules return."""
    model, state, batch, _, _ = looked
    inside = jax.jit(lambda p: run(model, state, batch, p)[1])(state.params)
    return inside["intermediates"]


def run(model, state, batch, params):
    """Logits and everything that modules return."""
    return model.apply(
        {"params": params, **state.model_state},
        batch["tokens"],
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )


def test_variances(looked, returned):
    found = looked[-1]
    assert set(found["activation_variance"]) == {"blocks_0", "blocks_1"}
    for name, value in found["activation_variance"].items():
        y = np.asarray(returned[name]["__call__"][0], np.float64)
        np.testing.assert_allclose(value, y.var(-1).mean(), rtol=1e-4)


def test_gradient_norms(looked):
    model, state, batch, _, found = looked

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, _ = run(model, state, batch, params)
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, batch["targets"][..., None], -1)
        return -jnp.mean(own)

    grads = gradient(state.params)
    assert set(found["gradient_norm"]) == set(grads)
    for name, value in found["gradient_norm"].items():
        flat = [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(grads[name])]
        expected = np.linalg.norm(np.concatenate(flat))
        np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_fluctuation(looked):
    _, state, batch, _, found = looked
    names = {f"blocks_{i}/norm{j}" for i in (0, 1) for j in (1, 2)} | {"norm"}
    assert set(found["statistics_fluctuation"]) == names
    x = np.asarray(state.params["embed"], np.float64)[batch["tokens"]]
    running = state.model_state["batch_stats"]["blocks_0"]["norm1"]
    gap = np.abs(x.mean((0, 1)) - np.asarray(running["mean"]))
    expected = (gap / np.sqrt(np.asarray(running["var"]))).mean()
    value = found["statistics_fluctuation"]["blocks_0/norm1"]
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_entropy(looked, returned):
    _, state, _, _, found = looked
    assert set(found["attention_entropy"]) == {"blocks_0/mixer", "blocks_1/mixer"}
    x = np.asarray(returned["blocks_0"]["norm1"]["__call__"][0], np.float64)
    kernel = np.asarray(state.params["blocks_0"]["mixer"]["qkv"]["kernel"], np.float64)
    heads = (x @ kernel).reshape(ROWS, LENGTH, 3, 2, 4)
    scores = np.einsum("bnhk,bmhk->bhnm", heads[:, :, 0], heads[:, :, 1]) / 2
    entropies = []
    for example, head, i in np.ndindex(ROWS, 2, LENGTH):
        weights = np.exp(scores[example, head, i, : i + 1])
        p = weights / weights.sum()
        entropies.append(-(p * np.log(p)).sum())
    value = found["attention_entropy"]["blocks_0/mixer"]
    np.testing.assert_allclose(value, np.mean(entropies), rtol=1e-5)
    heads = np.mean(np.reshape(entropies, (ROWS, 2, LENGTH)), (0, 2))
    values = [found["head_entropy"][f"blocks_0/mixer/{i}"] for i in (0, 1)]
    np.testing.assert_allclose(values, heads, rtol=1e-5)
    assert len(found["head_entropy"]) == 4
    assert set(map(int, found["entropy_not_finite"].values())) == {0}


def test_log_goes_on_where_a_run_resumes(tmp_path):
    log = LayerLog(tmp_path, 0)
    for step in (2, 4):
        log.write(step, {"gradient_norm": {"a": jnp.float32(step)}, "nothing": {}})
    assert [r["step"] for r in read_layers(tmp_path)] == [2, 4]
    log.close()
    log = LayerLog(tmp_path, 3)
    log.write(4, {"gradient_norm": {"a": jnp.float32(7)}})
    log.close()
    wanted = [{"step": s, "gradient_norm": {"a": v}} for s, v in ((2, 2.0), (4, 7.0))]
    assert read_layers(tmp_path) == wanted


def test_nothing_to_draw(tmp_path):
    assert plot_layers(tmp_path) is None


@pytest.mark.slow
def test_a_run_looks_into_its_layers(tmp_path):
    train(tiny_config("norm=repbn", diagnostics_every=3), tmp_path)
    records = read_layers(tmp_path)
    assert [r["step"] for r in records] == [3, 6]
    values = [v for r in records for k in set(r) - {"step"} for v in r[k].values()]
    assert values and all(math.isfinite(v) for v in values)
    assert (tmp_path / "layers.png").stat().st_size > 10_000
