"""Absurd command lines: one line on stderr and exit code 2, or a run that trains.

    python -m pytest -m "slow or not slow" tests/train/fuzz_test.py

The examples are the same every time.
"""

import dataclasses
import itertools
from unittest import mock

import hypothesis
import numpy as np
import pytest
from PIL import Image

from normjax.cli.main import eval_command, train_command
from normjax.export.__main__ import export_command
from normjax.generate.__main__ import generate_command
from normjax.plan.__main__ import plan_command
from normjax.train.experiment import build_experiment
from normjax.train.programs import trace_train_step
from tests.train import fuzz

SLOW = pytest.mark.slow
LONG = (SLOW, pytest.mark.long)


def examples(count):
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The small runs of every config, by file."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    for name in ("train/a/0", "train/b/0", "test/a/0", "test/b/0"):
        path = folder / "images" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    (folder / "words").write_bytes(b"To be, or not to be.\n" * 200)
    # Whatever an absurd path names is made in here.
    (folder / "configs").symlink_to(fuzz.ROOT / "configs")
    (folder / "Makefile").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = fuzz.bases(folder / "images", folder / "words")
        yield {base.file: base for base in found}


def stubbed(work):
    """`train_command` with `work(experiment)` in the place of training."""

    def train(config, workdir):
        work(build_experiment(config))
        return {}

    return mock.patch("normjax.train.loop.train", train)


def check(base, count, work):
    """Fuzz the overrides of a run."""

    @examples(count)
    @hypothesis.given(fuzz.overrides(base))
    def accepted_or_refused(argv):
        with stubbed(work):
            assert fuzz.outcome(train_command, *argv, "--workdir=x") in (0, 2)

    accepted_or_refused()


def test_overrides_up_to_the_experiment(bases):
    for base in bases.values():
        check(base, 3, bool)


def test_overrides_up_to_the_step(bases):
    check(bases["norm_free"], 6, trace_train_step)


@pytest.mark.parametrize(
    "count", [pytest.param(4, marks=SLOW), pytest.param(12, marks=LONG)]
)
def test_overrides_of_every_config_up_to_the_step(bases, count):
    for base in bases.values():
        check(base, count, trace_train_step)


@pytest.mark.parametrize("count", [150, pytest.param(600, marks=SLOW)])
def test_flags(bases, count):
    base = bases["digits"]

    @examples(count)
    @hypothesis.given(fuzz.flags(base))
    def accepted_or_refused(argv):
        with stubbed(bool):
            assert fuzz.outcome(train_command, *argv) in (0, 2)

    accepted_or_refused()


COMMANDS = {
    "eval": (eval_command, ("--split=é", "--adapt=x", "--severity=x", "--nofold")),
    "generate": (generate_command, ("--length=0", "--top_p=nan", "--prompt=\udcff")),
    "export": (export_command, ("--platforms=gpu", "a", "b", "--fold=2")),
    "plan": (plan_command, ("--topology=v9:1", "--sweep=,", "--mesh=x", "--mesh=é=1")),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("count", [30, pytest.param(60, marks=SLOW)])
def test_flags_of_other_commands(bases, name, count):
    command, words = COMMANDS[name]

    @examples(count)
    @hypothesis.given(fuzz.flags(bases["digits"], words))
    def refused(argv):
        with mock.patch("normjax.plan.plan.make_plan", side_effect=fuzz.Reached):
            code = 0 if "--help" in itertools.takewhile("--".__ne__, argv) else 2
            assert fuzz.outcome(command, *argv) == code

    refused()


@pytest.mark.parametrize(
    "most", [pytest.param(4, marks=SLOW), pytest.param(12, marks=LONG)]
)
def test_what_is_accepted_trains(bases, tmp_path, most):
    """For two steps, or until a loss that is not finite."""
    trained = 0
    base = dataclasses.replace(
        bases["digits"], argument=",norm=layer_norm,mixer=softmax"
    )
    short = ("total_steps=2", "batch_size=16", "microbatches=1", "eval_every=2")
    last = [f"--config.{field}" for field in short]

    for argv in fuzz.single_overrides(base):
        # Too long, too many checkpoints for a disk, or a file that training opens.
        if any(word in argv[-1] for word in ("000", "keep_", "init.path")):
            continue
        workdir = f"--workdir={tmp_path / str(trained)}"
        with stubbed(trace_train_step):
            if fuzz.outcome(train_command, *argv, *last, workdir):
                continue
        trained += 1
        assert fuzz.outcome(train_command, *argv, *last, workdir) in (0, 1), argv
        if trained == most:
            return
    raise AssertionError(f"only {trained} were accepted")
