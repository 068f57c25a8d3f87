"""Cycles of single layers and of a small model, by the schedule of libtpu."""

import jax
import pytest

from normjax.bench.tpu import model_calls, tpu_command
from normjax.core.errors import UserError
from normjax.plan.schedule import program_of


def test_wrong_names_are_refused_before_anything_is_compiled():
    with pytest.raises(UserError, match="tpu table"):
        tpu_command(["tpu"])
    with pytest.raises(UserError, match="layer_norm"):
        tpu_command(["tpu", "norms", "layernorm"])
    with pytest.raises(UserError, match="deit_tiny"):
        tpu_command(["tpu", "models", "deit_tini:prepbn"])


@pytest.mark.slow
def test_tables(capsys):
    tpu_command(["tpu", "norms", "rms_norm"])
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if "rms_norm" in line]
    cells = [float(cell.replace(",", "")) for cell in row.split("│")[2:-1]]
    forward, both, forward_ratio, both_ratio = cells
    assert 1 <= forward_ratio < both_ratio < 6 and forward < both
    tpu_command(["tpu", "optimizers", "adamw"])
    assert "adamw" in capsys.readouterr().out


@pytest.mark.slow
def test_calls_of_models_trace_and_a_training_step_has_every_gradient():
    kinds = {}
    for kind, function, arguments in model_calls("deit_tiny:prepbn", 2, 32):
        kinds[kind] = program_of(function, *arguments).flops
        if kind == "training step":
            grads, _ = jax.eval_shape(function, *arguments)
            assert jax.tree.structure(grads) == jax.tree.structure(arguments[0])
    assert kinds["folded"] == kinds["inference"] < kinds["training step"] / 2
