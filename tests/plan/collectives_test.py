"""What programs send between devices: read from their text, no more than it must be."""

import jax
import pytest

from normjax.core.collections import BATCH_STATS, COUNTER
from normjax.plan.collectives import collective_bytes
from normjax.train.experiment import build_experiment
from normjax.train.programs import lower_train_step
from tests.train.many_devices import config_of

TEXT = """
%all-reduce-scatter.5 (i.5: f32[64,32]) -> f32[16,32] {
  %i.5 = f32[64,32]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.11 = f32[64,32]{1,0} all-reduce(%i.5), channel_id=12, to_apply=%add
  ROOT %slice.23 = f32[16,32]{1,0} dynamic-slice(%all-reduce.11, %m.7, %c.48)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0), metadata={op_name="all-reduce of nothing"}
  %ar = f32[3,5]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
  %again = f32[3,5]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
  %two = (f32[8]{0}, /*index=1*/bf16[2,8]{1,0}) all-reduce(%p, %ar), to_apply=%add
  %scalar = pred[] all-reduce(%p), to_apply=%or
  %start = bf16[64]{0} all-reduce-start(%p), to_apply=%add
  %done = bf16[64]{0} all-reduce-done(%start)
  %ags = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%p), dimensions={0}
  %agd = f32[8,3]{1,0} all-gather-done(%ags)
  %many = ((f32[2]{0}, s8[4]{0}), (f32[8]{0}, s8[16]{0})) all-gather-start(%p, %ar)
  %rs = f32[16]{0:T(128)} reduce-scatter(%p), dimensions={0}, to_apply=%add
  %cps = (f32[7]{0}, f32[7]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%p)
  %a2a = (s4[10]{0}, f8e4m3fn[6]{0}) all-to-all(%p, %ar), replica_groups={}
  %fusion = f32[999]{0} fusion(%ar, %rs), kind=kLoop
}
"""


def test_the_text_of_a_program():
    assert collective_bytes(TEXT) == {
        "all-reduce": 60 + (32 + 32) + 1 + 128,
        "all-gather": 96 + (32 + 16),
        "reduce-scatter": 64 + 4 * 16 * 32,
        "collective-permute": 28,
        "all-to-all": 5 + 6,
    }
    assert collective_bytes("ENTRY %main () -> f32[] {\n}") == {}


# Vectors of statistics that a norm reduces over the devices. BatchNorm: sums of x and
# x**2, and on CPU of (x - mean)**2 in a branch that runs where the mean is large.
# PowerNorm: that of x**2, and what its backward pass adds to nu.
STATISTICS = {"resnet": 3, "decoder": 2}
# Besides loss and accuracy, the mean of the weights of a text's tokens.
SCALARS = {"resnet": 2, "decoder": 3}


@pytest.mark.parametrize("model", STATISTICS)
def test_data_parallel_steps_reduce_gradients_once(model, tmp_path):
    (tmp_path / "text.txt").write_text(
        "To be, or not to be, that is the question.\n" * 9
    )
    config, devices = config_of(f"{model}/4/", tmp_path)
    experiment = build_experiment(config, jax.devices()[:devices])
    found = collective_bytes(lower_train_step(experiment).compile().as_text())
    state = experiment.abstract_state()
    gradients = sum(x.size for x in jax.tree.leaves(state.params))
    channels = {
        path[:-1]: x.size
        for path, x in jax.tree_util.tree_leaves_with_path(
            state.model_state[BATCH_STATS]
        )
        if path[-1].key != COUNTER
    }
    statistics = STATISTICS[model] * sum(channels.values())
    assert found == {"all-reduce": 4 * (gradients + statistics + SCALARS[model])}
