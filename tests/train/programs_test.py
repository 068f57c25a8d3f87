"""The compiled functions of an experiment: their options, and what they refuse."""

import re
from unittest import mock

import jax
import pytest

from normjax.core.errors import UserError
from normjax.train import programs
from normjax.train.experiment import build_experiment
from tests.train.tiny import tiny_config


@pytest.mark.parametrize("trace", [programs.trace_train_step, programs.trace_eval_step])
def test_options_of_the_platform_reach_the_compiler(trace):
    options = {"xla_no_such_option": "1"}
    with mock.patch.object(programs, "compiler_options", return_value=options) as asked:
        lowered = trace(build_experiment(tiny_config())).lower()
    asked.assert_called_once_with("cpu")
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        lowered.compile()


def test_arrays_too_large_for_the_compiler_are_refused():
    """It would abort the process. Four devices share the rows."""
    rows = 4 * (2**31 // 64 + 1)
    experiment = build_experiment(tiny_config(batch_size=rows))
    message = f"image ({rows}, 8, 8, 1) has 2,147,483,712 elements on a device"
    for trace in (programs.trace_train_step, programs.trace_eval_step):
        with pytest.raises(UserError, match=re.escape(message)):
            trace(experiment)
    with mock.patch.object(programs, "_platform", return_value="tpu"):
        programs.trace_eval_step(experiment)  # elsewhere it is a matter of memory
