"""The same training on any number of devices, along every axis, and per device."""

import functools
import os
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import models, norms
from normjax.core.collections import BATCH_STATS, OVERWRITE
from normjax.core.errors import UserError
from normjax.devices.mesh import device_mesh
from normjax.devices.per_device import per_device, with_axis_name
from normjax.norms import BatchNorm, PRepBN
from normjax.tasks import Classification
from normjax.train.experiment import build_experiment
from normjax.train.programs import lower_train_step
from normjax.train.step import Recipe, make_gradients
from tests.train.kill_test import ROOT
from tests.train.processes_test import QUICK, free_port
from tests.train.tiny import Linear, tiny_config, toy_batch, toy_state

LOSS, STATE = 1e-5, 1e-4  # largest differences after twenty steps

LAYOUTS = [
    "2/",
    "2/fsdp=2",
    "2/tensor=2",
    "2/pmap",
    "4/fsdp=2",
    "4/fsdp=2,tensor=2",
    "8/",
    "8/fsdp=8",
    "8/tensor=8",
    "8/fsdp=2,tensor=2",
    "8/pmap",
]
"""Of twenty steps on the devices of one process; `data` takes the rest."""

ON_TWO_PROCESSES = ["4/", "4/fsdp=4", "4/fsdp=2,tensor=2", "4/pmap"]

IN_STAGES = ["2/stage=2", "8/stage=4", "8/stage=2"]

MODELS = ["vit", "resnet", "decoder"]


def run_cases(folder, cases, devices, processes=1):
    """Run `many_devices` on `cases` in as many processes."""
    port, started = free_port(), []
    for index in range(processes):
        environment = {
            **os.environ,
            "NORMJAX_DATA_DIR": str(folder),
            "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, "-m", "tests.train.many_devices", folder, *cases]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **out))
    texts = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, texts


def result_of(folder, case):
    """(losses, state without its random key) that `many_devices` wrote."""
    with np.load(folder / f"{case.replace('/', '_')}.npz") as file:
        arrays = dict(file)
    return arrays.pop("losses"), arrays


def assert_same(folder, case, reference):
    (losses, state), (expected, state_expected) = (
        result_of(folder, name) for name in (case, reference)
    )
    assert set(state) == set(state_expected)
    apart = max(np.abs(state[k] - v).max() for k, v in state_expected.items())
    print(f"{case}: losses {np.abs(losses - expected).max():.1e}, state {apart:.1e}")
    np.testing.assert_allclose(losses, expected, rtol=0, atol=LOSS, err_msg=case)
    for name, value in state_expected.items():
        where = f"{case}: {name}"
        np.testing.assert_allclose(state[name], value, atol=STATE, err_msg=where)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where cases find their text and leave their results; one device's are there."""
    path = tmp_path_factory.mktemp("cases")
    lines = (f"{i}. To be, or not to be, that is the question.\n" for i in range(100))
    (path / "text.txt").write_text("".join(lines))
    run_cases(path, [f"{model}/1/" for model in MODELS], devices=1)
    return path


@pytest.mark.slow
def test_twenty_steps_learn(folder):
    """So that equal results are results of training, batch statistics among them."""
    for model in MODELS:
        losses, state = result_of(folder, f"{model}/1/")
        assert losses[-3:].mean() < losses[:3].mean()
        moved = [v for name, v in state.items() if "batch_stats" in name]
        assert moved and any(np.abs(v - np.round(v)).max() > 1e-3 for v in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["vit", *(pytest.param(model, marks=pytest.mark.long) for model in MODELS[1:])],
)
def test_twenty_steps_on_every_mesh(folder, model):
    cases = [f"{model}/{layout}" for layout in LAYOUTS]
    run_cases(folder, cases, devices=8)
    for case in cases:
        assert_same(folder, case, f"{model}/1/")


@pytest.mark.slow
def test_twenty_steps_on_two_processes(folder, tmp_path):
    cases = [f"{model}/{layout}" for model in MODELS for layout in ON_TWO_PROCESSES]
    run_cases(folder, cases, devices=2, processes=2)
    for case in cases:
        assert_same(folder, case, f"{case.partition('/')[0]}/1/")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["deep_decoder", pytest.param("deep_vit", marks=pytest.mark.long)]
)
def test_twenty_steps_in_stages(folder, model):
    run_cases(folder, [f"{model}/1/"], devices=1)
    cases = [f"{model}/{layout}" for layout in IN_STAGES]
    run_cases(folder, cases, devices=8)
    for case in cases:
        assert_same(folder, case, f"{model}/1/")


@pytest.mark.slow
@pytest.mark.long
def test_twenty_steps_in_stages_of_two_processes(folder):
    run_cases(folder, ["deep_decoder/1/"], devices=1)
    cases = [f"deep_decoder/4/{layout}" for layout in ("stage=4", "stage=2")]
    run_cases(folder, cases, devices=2, processes=2)
    for case in cases:
        assert_same(folder, case, "deep_decoder/1/")


def steps_of(config, devices, count=3):
    """(losses, state) after `count` steps."""
    experiment = build_experiment(config, jax.devices()[:devices])
    step, state = lower_train_step(experiment).compile(), experiment.create_state()
    losses, batches = [], experiment.train_batches()
    for _ in range(count):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses, jax.device_get(state)


@pytest.mark.slow
def test_three_steps_on_a_mesh_and_per_device():
    config = functools.partial(tiny_config, "norm=repbn", microbatches=2)
    losses, state = steps_of(config(), 1)
    for changes in ({"mesh__fsdp": 2, "mesh__tensor": 2}, {"parallelism": "pmap"}):
        ours = steps_of(config(**changes), 4)
        np.testing.assert_allclose(ours[0], losses, atol=LOSS)
        chex.assert_trees_all_close(ours[1], state, atol=STATE)


class Normed(nn.Module):
    """Logits of normalised pixels."""

    norm: functools.partial

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(images.shape[0], -1)
        return Linear(name="linear")(self.norm(name="norm")(x, train=train))


SPECS = {
    "batch_norm": {"name": "batch_norm"},
    "power_norm": {"name": "power_norm", "warmup_steps": 0},
    "unified_norm": {"name": "unified_norm", "warmup_steps": 0},
    "ghost_batch_norm": {"name": "ghost_batch_norm", "group_size": 3},
}


def gradients_of(spec, devices, sync, share):
    """A function and its arguments: gradients of `Normed` on a batch of eight."""
    objective = Classification(num_classes=4, mean=(0.5,), std=(0.25,))
    model = Normed(norms.build(spec))
    state = toy_state(model, optax.sgd(0.1))
    (inputs, targets) = objective.examples(toy_batch(), jax.random.key(0))
    named = with_axis_name(model, "data") if sync else model
    gradients = make_gradients(named, objective, Recipe(), share)
    last = jax.random.key(1), state.step
    return gradients, (state.params, state.model_state, inputs, targets, *last)


@pytest.mark.parametrize("name", SPECS)
def test_synced_statistics_are_those_of_the_whole_batch(name):
    """What the backward pass writes as well: its slopes are those of the whole loss."""
    whole, arguments = gradients_of(SPECS[name], 1, False, 1.0)
    local, _ = gradients_of(SPECS[name], 4, True, 1 / 4)
    mesh = device_mesh(jax.devices()[:4])
    ours = jax.jit(per_device(local, mesh))(*arguments)
    chex.assert_trees_all_close(ours, whole(*arguments), atol=1e-6)
    if name == "power_norm":
        assert float(jnp.abs(ours[0][OVERWRITE]["norm"]["nu"]).max()) > 1e-4


def test_synced_is_what_pmap_gives():
    """The function on each device is the same; only who maps it differs."""
    local, arguments = gradients_of(SPECS["batch_norm"], 4, True, 1 / 4)
    ours = jax.jit(per_device(local, device_mesh(jax.devices()[:4])))(*arguments)
    params, model_state, inputs, targets, *last = arguments

    @functools.partial(jax.pmap, axis_name="data", in_axes=(None, None, 0, 0))
    def mapped(params, model_state, inputs, targets):
        model_state, grads, metrics = local(params, model_state, inputs, targets, *last)
        return model_state, jax.lax.psum(grads, "data"), jax.lax.pmean(metrics, "data")

    rows = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), (inputs, targets))
    theirs = jax.tree.map(lambda x: x[0], mapped(params, model_state, *rows))
    chex.assert_trees_all_close(ours, theirs, atol=1e-7)


def test_statistics_per_device_are_averaged():
    """As four machines that know nothing of each other, and then meet."""
    local, arguments = gradients_of(SPECS["batch_norm"], 4, False, 1 / 4)
    ours = jax.jit(per_device(local, device_mesh(jax.devices()[:4])))(*arguments)
    params, model_state, (images, known), targets, *last = arguments
    parts = [
        local(
            params,
            model_state,
            (images[i : i + 2], known),
            targets[i : i + 2],
            *last,
        )
        for i in range(0, 8, 2)
    ]
    mean = jax.tree.map(lambda *x: sum(x) / 4, *parts)
    total = jax.tree.map(lambda *x: sum(x), *(grads for _, grads, _ in parts))
    chex.assert_trees_all_close(ours, (mean[0], total, mean[2]), atol=1e-6)
    whole, _ = gradients_of(SPECS["batch_norm"], 1, False, 1.0)
    together = whole(*arguments)[0][BATCH_STATS]["norm"]
    apart = ours[0][BATCH_STATS]["norm"]
    np.testing.assert_allclose(apart["mean"], together["mean"], atol=1e-6)
    assert (apart["var"] < together["var"] - 1e-4).all()


def test_every_norm_of_a_model_gets_the_axis():
    arguments = {"num_classes": 4, "dim": 8, "depth": 1, "num_heads": 2}
    prepbn = {"name": "prepbn", "decay_steps": 4}
    mixer = {"name": "softmax", "qk_norm": "batch_norm"}
    model = models.build("vit", norm=prepbn, mixer=mixer, **arguments)
    named = with_axis_name(model, "data")
    assert named.norm.func is PRepBN and named.norm.keywords["axis_name"] == "data"
    qk_norm = named.mixer.keywords["qk_norm"]
    assert qk_norm.func is BatchNorm and qk_norm.keywords["axis_name"] == "data"
    assert "axis_name" not in model.norm.keywords
    plain = models.build("vit", norm="layer_norm", mixer="softmax", **arguments)
    assert "axis_name" not in with_axis_name(plain, "data").norm.keywords


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallelism": "pmep"}, "config.parallelism 'pmep'; did you mean 'pmap'"),
        (
            {"parallelism": "pmap", "mesh__fsdp": 2},
            "='pmap' needs config.mesh fsdp=1, tensor=1, stage=1, got fsdp=2, tensor=1",
        ),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError) as caught:
        build_experiment(tiny_config(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
