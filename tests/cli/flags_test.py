"""--help of every command, and flags that would have no effect."""

import pytest

from normjax.bench.__main__ import bench_command
from normjax.cli.main import eval_command, run, train_command
from normjax.config.__main__ import config_command
from normjax.convert.__main__ import convert_command
from normjax.export.__main__ import export_command
from normjax.generate.__main__ import generate_command
from normjax.plan.__main__ import plan_command
from normjax.prune.__main__ import prune_command
from normjax.study.__main__ import study_command

COMMANDS = {
    train_command: ("--config", "--workdir", "--config.FIELD=VALUE", "Exit codes"),
    eval_command: ("--workdir", "--[no]fold", "--corruption", "(default: 5)"),
    export_command: ("--platforms", "--[no]fold", "FILE"),
    generate_command: ("--temperature", "(default: 256)", "--prompt_file"),
    plan_command: ("--topology", "--sweep", "--config.FIELD=VALUE"),
    prune_command: ("--sparsity", "NEW_DIR"),
    study_command: ("--only", "NAME", "--budget"),
    convert_command: ("--[no]to_torch", "--model", "CHECKPOINT"),
    config_command: ("docs/config.md",),
    bench_command: ("norms [NAME ...]", "loop --config"),
}


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_help(command, flag, capsys):
    assert run(command, ["program", flag]) == 0
    out, err = capsys.readouterr()
    assert not err
    for text in COMMANDS[command]:
        assert text in out


@pytest.mark.parametrize("name", ["norms", "loop", "fold"])
def test_help_of_a_benchmark(name, capsys):
    assert run(bench_command, ["bench", name, "--help"]) == 0
    assert name in capsys.readouterr().out


RUN = "--workdir=runs/none"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (eval_command, [RUN, "--corruption=nonsense"], "corruption 'nonsense'"),
        (eval_command, [RUN, "--corruption="], "corruption ''"),
        (eval_command, [RUN, "--severity=3"], "--severity has no effect without"),
        (eval_command, [RUN, "--stream=iid"], "--stream has no effect without --adapt"),
        (
            eval_command,
            [RUN, "--corruption=jpeg", "--stream=correlated"],
            "--stream has no effect without --adapt",
        ),
        (eval_command, [RUN, "--images=5"], "--images has no effect without"),
        (eval_command, [RUN, "--adapt=tent", "--fold"], "--fold has no effect with"),
        (eval_command, [RUN, "--corruption=jpeg", "--fold"], "--fold has no effect"),
        (eval_command, [RUN, "--config.optim.lr=1"], "holds no run"),
        (
            generate_command,
            [RUN, "--temperature=0", "--top_k=3"],
            "--top_k has no effect with --temperature=0",
        ),
        (
            plan_command,
            ["--config=digits", "--topology=cpu:1", "--vocab_size=3"],
            "--vocab_size has no effect in a run of image_classification",
        ),
        (
            convert_command,
            ["--to_torch", "--model=deit_tiny", "a", "b"],
            "--model has no effect with --to_torch",
        ),
        (
            convert_command,
            ["--to_torch", "--averaged", "a", "b"],
            "--averaged has no effect with --to_torch",
        ),
        (
            convert_command,
            ["--to_torch", "--config.seed=1", "a", "b"],
            "--config.seed has no effect here",
        ),
        (
            convert_command,
            ["--model=deit_tiny", "--layout=timm", "a", "b"],
            "--layout has no effect without --to_torch",
        ),
        (study_command, [RUN, "--config.seed=1", "f"], "'config.seed'"),
        (study_command, [RUN], "missing NAME: give NAME, see --help"),
        (export_command, [RUN, "a", "b"], "unexpected argument 'b'"),
        (prune_command, [RUN, "--config=digits", "b"], "--sparsity is required"),
    ],
)
def test_refusals(command, arguments, message, capsys):
    assert run(command, ["program", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_values_may_stand_behind_their_flags(capsys):
    assert run(export_command, ["export", "model.bin", "--workdir", "runs/none"]) == 2
    assert "runs/none holds no run" in capsys.readouterr().err
