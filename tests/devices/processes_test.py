"""How processes find each other, and how they agree to stop."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.devices import votes as voting
from normjax.devices.mesh import device_mesh
from normjax.devices.processes import arguments_of
from normjax.devices.votes import STOP, Votes, abstract_votes, with_votes

EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "host0:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
GIVEN = {
    "coordinator_address": "host0:1234",
    "num_processes": 4,
    "process_id": 3,
    "cluster_detection_method": "deactivate",
}


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [
        ({}, None),
        (EXPLICIT, GIVEN),
        ({**EXPLICIT, **SLURM}, GIVEN),
        (
            {**EXPLICIT, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
            None,
        ),
        (SLURM, {}),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "host0:1234"}, {}),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        # In a batch script, outside of srun.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        (MPI, {}),
    ],
)
def test_who_takes_part(environ, arguments):
    assert arguments_of(environ) == arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"JAX_PROCESS_ID": ""},
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES without JAX_PROCESS_ID",
        ),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES takes a whole number: 'two'"),
        (
            {"JAX_PROCESS_ID": "4"},
            "JAX_PROCESS_ID=4 must be less than JAX_NUM_PROCESSES=4",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "host0"},
            "JAX_COORDINATOR_ADDRESS takes host:port: 'host0'",
        ),
    ],
)
def test_variables_that_are_refused(changes, message):
    with pytest.raises(UserError) as caught:
        arguments_of({**EXPLICIT, **changes})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def interrupt(received):
    return types.SimpleNamespace(received=received)


def step(state, batch):
    return state + 1, {"loss": jnp.sum(batch["x"])}


def test_a_process_alone_does_not_vote():
    mesh = device_mesh(jax.devices()[:4])
    votes, batch = Votes(mesh), {"x": jnp.ones(4)}
    assert votes.cast(batch, interrupt(True)) is batch
    assert votes.stop(interrupt(True)) and not votes.stop(interrupt(False))
    assert with_votes(step, mesh) is step and abstract_votes(mesh) == {}


@pytest.mark.parametrize("signaled", [None, 0, 3])
def test_one_vote_stops_all(monkeypatch, signaled):
    """The votes of all devices' processes, as they meet in the step."""
    monkeypatch.setattr(voting, "several_processes", lambda mesh: True)
    mesh = device_mesh(jax.devices()[:4])
    votes, voted = Votes(mesh), jax.jit(with_votes(step, mesh))
    batch = votes.cast({"x": jnp.ones(4)}, interrupt(False))
    (expected,) = abstract_votes(mesh).values()
    assert (batch[STOP].shape, batch[STOP].dtype) == (expected.shape, expected.dtype)
    flags = np.asarray([i == signaled for i in range(4)], np.int32)
    batch[STOP] = jax.device_put(flags, batch[STOP].sharding)
    state, metrics = voted(0, batch)
    assert state == 1
    # The process's own signal alone is no agreement yet.
    assert not votes.stop(interrupt(True))
    left = votes.read({name: float(value) for name, value in metrics.items()})
    assert left == {"loss": 4.0}
    assert votes.stop(interrupt(False)) == (signaled is not None)
    assert votes.cast({}, interrupt(True))[STOP].sum() == 4
