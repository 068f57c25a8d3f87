"""Programs of one phase each against the one that switches between them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.operations import inner_jaxprs
from normjax.core.phases import counters_in, known_counters
from normjax.train.experiment import build_experiment
from normjax.train.phases import TrainStep, by_phase, trace_phase
from normjax.train.programs import jit_train_step, trace_train_step
from tests.train.tiny import progressive_config

STEPS = 8


def switches(jaxpr):
    """Conditions between three, at any depth."""
    own = [e for e in jaxpr.eqns if len(e.params.get("branches", ())) == 3]
    inner = (j for e in jaxpr.eqns for j in inner_jaxprs(e.params))
    return len(own) + sum(map(switches, inner))


def phased_config(**changes):
    """LayerNorm in updates 0 and 1, both norms in 2 to 4, RepBN from 5."""
    config = progressive_config(total_steps=STEPS, **changes)
    config.model.norm.update(warmup_fraction=0.25, decay_fraction=0.375)
    return config


def trained(experiment, step, batches):
    """The state and the metrics by update."""
    state, seen = experiment.create_state(), []
    for batch in batches:
        state, metrics = step(state, batch)
        seen.append(jax.device_get(metrics))
    return jax.device_get(state), seen


@pytest.fixture(scope="module")
def runs(compiled_once, data_dir):
    """(experiment, batches, step, its state and metrics, those of the switch)."""
    experiment = build_experiment(phased_config())
    source = experiment.train_batches()
    batches = [next(source) for _ in range(STEPS)]
    source.close()
    step = TrainStep(experiment, trace_phase(experiment))
    step.begin(experiment.create_state(), STEPS)
    ours = trained(experiment, step, batches)
    switched = trained(experiment, jit_train_step(experiment), batches)
    yield experiment, batches, step, ours, switched
    step.close()


@pytest.mark.slow
def test_states_and_metrics_are_those_of_the_switch(runs):
    *_, (state, metrics), (expected, switched) = runs
    chex.assert_trees_all_close(state, expected, atol=1e-5)
    chex.assert_trees_all_close(metrics, switched, rtol=1e-4, atol=1e-5)
    lam = [m["lam"] for m in metrics]
    np.testing.assert_allclose(lam, [1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0], atol=1e-6)


@pytest.mark.slow
def test_programs_and_their_spans(runs):
    programs = runs[2]._programs
    spans = [set(program.spans.values()) for program in programs]
    assert spans == [{(0, 2)}, {(2, 5)}, {(5, np.inf)}]
    warmup, decay, end = (program.flops for program in programs)
    assert warmup < decay > end


@pytest.mark.slow
def test_an_earlier_state_takes_its_program_again(runs):
    experiment, batches, step, (_, metrics), _ = runs
    state, seen = experiment.create_state(), []
    step.begin(state, STEPS)
    for batch in batches:
        state, values = step(state, batch)
        seen.append(jax.device_get(values))
    assert len(step._programs) == 3
    chex.assert_trees_all_equal(seen, metrics)


@pytest.mark.slow
def test_counters_that_stand_still_keep_their_program(runs):
    """As after updates that were left out: nothing counts on one tick a step."""
    experiment, batches, step, *_ = runs
    state = experiment.create_state()
    step.begin(state, STEPS)
    for _ in range(4):
        kept = jax.tree.map(np.asarray, state)
        state, values = step(state, batches[0])
        assert step._program is step._programs[0]
        assert values["lam"] == 1.0
        state = jax.tree.map(jax.device_put, kept, experiment.shardings)
    (count,) = {int(x) for x in counters_in(kept.model_state).values()}
    assert count == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"microbatches": 2},
        {"parallelism": "pmap"},
        {"model.remat": True},
    ],
    ids=lambda changes: next(reversed(changes)),
)
def test_no_phase_switches(changes, data_dir):
    config = phased_config()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    experiment = build_experiment(config)
    traced = by_phase(experiment, lambda: trace_train_step(experiment).jaxpr.jaxpr)
    assert list(traced) == [0, 2, 5]
    assert not any(map(switches, traced.values()))
    assert switches(trace_train_step(experiment).jaxpr.jaxpr)


def test_scanned_layers_do_not_switch():
    norm = {"name": "prepbn", "decay_steps": 5}
    sizes = {"vocab_size": 7, "dim": 8, "depth": 2, "num_heads": 2}
    model = models.build("lm_tiny", **sizes, norm=norm, scan_layers=True)
    tokens = jnp.zeros((2, 4), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    counters = {path: np.full(2, 5) for path in counters_in(variables)}
    with known_counters(counters) as spans:
        known = jax.make_jaxpr(apply)(variables, tokens)
    assert set(spans.values()) == {(5, np.inf)} and not switches(known.jaxpr)
    assert switches(jax.make_jaxpr(apply)(variables, tokens).jaxpr)
