"""What a checkpoint holds, and those of before there was all of it."""

from typing import Any

import chex
import flax
import jax
import pytest

from normjax.records.checkpoint import Checkpoints
from normjax.train.experiment import build_experiment
from normjax.train.start import saved_variables
from tests.train.tiny import tiny_config


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_checkpoint_older_than_averages_of_statistics(tmp_path, capsys, ema_decay):
    """It has no such field. The average begins with the statistics of the model."""
    experiment = build_experiment(tiny_config(ema_decay=ema_decay))
    state = experiment.create_state()
    fields = {k: v for k, v in vars(state).items() if k != "ema_stats"}
    members = {"__annotations__": dict.fromkeys(fields, object)}
    old: Any = type("Old", (flax.struct.PyTreeNode,), members)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(old(**fields))
    restored = checkpoints.restore_newest(experiment.abstract_state())
    checkpoints.close()
    chex.assert_trees_all_equal(restored, state)
    said = "is older than averages of batch statistics" in capsys.readouterr().out
    assert said == (ema_decay > 0)
    if ema_decay:  # donated buffers must not be shared
        pairs = restored.ema_stats, restored.model_state["batch_stats"]
        pointers = [
            {x.addressable_shards[0].data.unsafe_buffer_pointer() for x in leaves}
            for leaves in map(jax.tree.leaves, pairs)
        ]
        assert not set.intersection(*pointers)
    chex.assert_trees_all_equal(
        saved_variables(tmp_path), jax.device_get(state.eval_variables())
    )
