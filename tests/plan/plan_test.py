"""Plans of small runs on the CPU, the memory of their arguments counted by hand."""

import dataclasses

import jax
import pytest

from normjax.cli.main import run
from normjax.core.errors import UserError
from normjax.devices.chips import Chip
from normjax.plan import plan as plan_module
from normjax.plan.__main__ import plan_command
from normjax.plan.advice import as_flags, candidates, find_fit
from normjax.plan.plan import Memory, Plan, Step, make_plan, without_data
from normjax.plan.plan import out_of_memory as read_error
from normjax.plan.roofline import Roofline
from normjax.plan.tables import misfit, show, show_sweep
from normjax.plan.traffic import Traffic
from tests.train.tiny import tiny_config

MATRICES = 16 * 16 * 3 + 16 * 48  # proj, fc1, fc2; qkv
CONVOLUTIONS = 3 * 3 * 8 * (1 + 16)
WHOLE = 16 * 10 + 4 * 4 * 16  # the head's rule is tensor on 10; positions
VECTORS = 16 * 3 + 48 + 16 * 6 + 10 + 8 + 16 + 8 * 2
PARAMETERS = MATRICES + CONVOLUTIONS + WHOLE + VECTORS
MOMENTS, COUNTERS = 2, 2  # of AdamW, of its two stages
ROWS = 4 * (8 * 8 + 4)  # of 16 on 4 devices: an image of bytes and its label


def tiny(**changes):
    return without_data(tiny_config("norm=layer_norm,mixer=softmax", **changes))


@pytest.fixture(scope="module")
def replicated():
    return make_plan(tiny(), "cpu:4", jax.devices()[:4])


def test_memory_of_the_arguments(replicated):
    memory = replicated.steps["train"].memory
    assert memory.parameters == 4 * PARAMETERS
    assert memory.optimizer == 4 * (MOMENTS * PARAMETERS + COUNTERS)
    assert memory.statistics == 4 + 2 * 4  # the step and the random key
    assert memory.batch == ROWS and memory.average == 0
    assert memory.total == sum(memory) > memory.parameters
    assert memory.temporaries > ROWS


def test_what_data_parallel_steps_send_and_compute(replicated):
    """All gradients once and the two metrics; 3 passes of multiply-adds at least."""
    step = replicated.steps["train"]
    scalars = 2 * 4
    assert step.traffic.collectives == {"all-reduce": 4 * PARAMETERS + scalars}
    tokens = 16 * 16
    forward = tokens * (MATRICES + 2 * 16 * 16) + 16 * 16 * 10
    forward += 16 * (8 * 8 * 3 * 3 * 8 + 4 * 4 * 3 * 3 * 8 * 16)
    assert 2.5 * forward < step.flops / 2 < 3 * forward
    assert step.model_flops == step.flops
    assert step.bound is None and step.excess == 0 and replicated.mfu is None
    assert misfit(replicated) == ""


def test_sharded_parameters_and_recomputed_blocks(replicated):
    config = tiny(mesh__data=1, mesh__fsdp=4)
    with config.unlocked(), config.ignore_type():
        config.model.remat = "projections"
    step = make_plan(config, "cpu:4", jax.devices()[:4]).steps["train"]
    plain = replicated.steps["train"]
    assert step.memory.parameters < 0.35 * plain.memory.parameters
    assert step.memory.optimizer < 0.35 * plain.memory.optimizer
    assert step.traffic.collectives["all-gather"] > 4 * MATRICES
    assert step.flops > step.model_flops == plain.flops


@pytest.mark.parametrize(
    ("text", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (48.50G) exceeds available HBM (15.75G).",
            48.5 * 2**30 + 1000,
            15.75 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
            "memory space hbm. Used 512.5M of 15.75G hbm. Exceeded by 1.2G.",
            512.5 * 2**20,
            15.75 * 2**30,
        ),
    ],
)
def test_what_the_compiler_says_when_memory_is_short(text, needed, available):
    assert read_error(RuntimeError(text), 1000) == (needed, available)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="INTERNAL"):
        read_error(RuntimeError("INTERNAL: used 1G of 2G"), 0)


def planned(memory, available, mesh, batch_size=64):
    step = Step(memory, available, 1.0, 1.0, Traffic(), None)
    chip = Chip("toy", "toy", available, 1.0, 1.0, 1.0)
    return Plan("toy", "toy", chip, mesh, batch_size, "rows", 1, {"train": step})


def test_candidates_fit_what_is_short():
    """Of 1,000 bytes 600 are state, of 4 devices each could hold a quarter."""
    memory = Memory(200, 400, 0, 0, 0, temporaries=1000)
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    plan = planned(memory, 1000, mesh)
    config = tiny(batch_size=64)
    remat = {"model.remat": True}
    fsdp = {"mesh.data": 1, "mesh.fsdp": 4}
    found = list(candidates(config, plan))
    # 1.1 * 1000 bytes into the 400 that are free: 3, and 4 divides 16 rows.
    micro = {"microbatches": 4}
    assert found == [remat, micro, {**remat, **fsdp, "microbatches": 2}]
    assert as_flags(found[0]) == "--config.model.remat=true"
    fits = planned(memory._replace(temporaries=0), 1000, mesh)
    assert list(candidates(config, fits)) == [fsdp]
    mild = planned(memory._replace(temporaries=700), 1000, mesh)
    assert list(candidates(config, mild))[1] == fsdp


def test_the_first_change_that_fits_is_named(monkeypatch, replicated):
    """Without a third of the state there is room for a quarter of it."""
    step = replicated.steps["train"]
    state = step.memory.parameters + step.memory.optimizer
    room = step.memory.total - state // 3
    chip = Chip("toy", "cpu", room, 1.0, 1.0, 1.0)
    short = dataclasses.replace(step, available=room)
    plan = dataclasses.replace(replicated, chip=chip, steps={"train": short})
    assert misfit(plan).startswith("the train step needs ")
    monkeypatch.setattr(plan_module, "chip_of", lambda kind: chip)
    flags = find_fit(tiny(), plan, jax.devices()[:4])
    assert flags == "--config.mesh.data=1 --config.mesh.fsdp=4"


def test_a_sweep_compares_with_its_first_row(capfd):
    """8 times the devices make the step 4 times as fast: half of what they could."""
    memory = Memory(1, 0, 0, 0, 0)

    def row(count, seconds):
        mesh = {"data": count, "fsdp": 1, "tensor": 1}
        plan = planned(memory, 10, mesh)
        bound = Roofline(0.0, seconds, 0.0)
        step = dataclasses.replace(plan.steps["train"], bound=bound)
        return dataclasses.replace(plan, steps={"train": step})

    show_sweep([("one", row(1, 4.0)), ("eight", row(8, 1.0)), ("odd", "64 on 3")])
    lines = [line.split("│")[1:-1] for line in capfd.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line] for line in lines if len(line) == 8]
    assert rows[0] == ["one", "1", "1 B", "4,000", "25 %", "16", "100 %", "memory"]
    assert rows[1] == ["eight", "8", "1 B", "1,000", "12 %", "64", "50 %", "memory"]
    assert rows[2][-1] == "64 on 3"


FLAGS = (
    "--config.model.dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
)


def command(*arguments):
    config = "--config=configs/digits.py:norm=batch_norm,mixer=softmax"
    return run(plan_command, ["plan", config, *FLAGS, *arguments])


def test_the_command(capfd):
    assert command("--topology=cpu:4", "--mesh=data=2,fsdp=2") == 0
    printed = capfd.readouterr().out
    assert "mesh data=2, fsdp=2, 128 rows" in printed and "Bubble" not in printed
    for word in ("train step", "eval step", "parameters", "all-reduce", "all-gather"):
        assert word in printed


def test_the_bubble_of_stages(capfd):
    """(4 - 1) / (4 + 4 - 1) = 43 %; what is done in it is no operation of the model."""
    config = tiny(mesh__stage=4, microbatches=4)
    config.model.update(depth=4, scan_layers=True)
    plan = make_plan(config, "cpu:4", jax.devices()[:4])
    assert plan.bubble == 3 / 7
    show(plan)
    printed = capfd.readouterr().out
    assert "Bubble: 43 % of a training step (4 stages, 4 microbatches)" in printed
    step = plan.steps["train"]
    assert 1.5 * step.model_flops < step.flops < 7 / 4 * step.model_flops


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:4x4"], "unknown --topology 'v9'"),
        ([], "give --topology=v5e:4x4 or --sweep"),
        (["--topology=cpu", "--sweep=cpu:2"], "give --topology=v5e:4x4 or --sweep"),
        (["--topology=cpu", "--remat"], "--remat has no effect without --schedule"),
        (["--topology=cpu:4", "--config.model.remat=dots"], "unknown remat 'dots'"),
        (["--topology=cpu:4", "--mesh=fsdp=3"], "does not divide"),
        (["--topology=cpu:4", "--mesh=row=2"], "unknown axis"),
        (["--topology=cpu:4", "--config.data.name=no_set"], "cannot describe it"),
        (["--topology=cpu", f"--config.batch_size={10**12}"], "image (1000000000000, "),
        (["--topology=cpu", "--config.model.dim=40000000"], "elements on a device"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capfd):
    assert command(*arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line


def test_tasks_need_no_data():
    from configs import imagenet_deit, lm_llama, transduction
    from normjax.train.experiment import TASKS

    config = without_data(imagenet_deit.get_config())
    task = TASKS[config.task].make(config)
    assert task.model_arguments() == {"num_classes": 1000}
    assert task.row()["image"].shape == (224, 224, 3)
    config = without_data(lm_llama.get_config())
    with pytest.raises(UserError, match="--vocab_size=32000"):
        TASKS[config.task].make(config)
    config = without_data(lm_llama.get_config(), vocab_size=32000)
    task = TASKS[config.task].make(config)
    assert task.model_arguments() == {"vocab_size": 32001}
    assert task.row()["tokens"].shape == (256,)
    embedded = without_data(transduction.get_config())  # which makes its own
    assert TASKS[embedded.task].make(embedded).row()


@pytest.mark.slow
def test_a_tpu_that_is_not_there(capfd):
    pytest.importorskip("libtpu")
    sizes = "--config.batch_size=32", "--sweep=v5e:2x2,v4:2x2x1"
    assert command(*sizes) == 0
    printed = capfd.readouterr().out
    for word in ("v5e:2x2", "v4:2x2x1", "100 %", "MFU at most"):
        assert word in printed


@pytest.mark.slow
def test_what_blocks_keep_side_by_side(capfd, tmp_path):
    pytest.importorskip("libtpu")
    size = "--config.batch_size=32", "--config.model.depth=1"
    chart = f"--plot={tmp_path / 'chart.png'}"
    assert command("--topology=v5e:2x2", "--schedule", "--remat", chart, *size) == 0
    printed = capfd.readouterr().out
    rows = [line.split("│") for line in printed.splitlines() if "remat=" in line]
    names = [row[1].split("=")[1].strip() for row in rows]
    assert names == ["false", "projections", "nothing"]
    assert float(rows[0][4]) == 1 < float(rows[-1][4])
