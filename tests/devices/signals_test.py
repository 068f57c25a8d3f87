"""Ctrl-C, once and twice; another process, so that it can end."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
from normjax.cli.main import run
from normjax.devices.signals import Interrupt

def command(argv):
    if argv[0] == "outside":
        os.kill(os.getpid(), signal.SIGINT)
    with Interrupt() as interrupt:
        for name in argv:
            os.kill(os.getpid(), getattr(signal, name))
            assert interrupt.received
            time.sleep(0.2)
        if len(argv) > 1:
            time.sleep(60)  # which a second Ctrl-C does not wait for
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return 75

sys.exit(run(command, sys.argv[1:]))
"""
LINE = "stopping after this step, with a checkpoint"


@pytest.mark.parametrize(
    ("signals", "code", "lines"),
    [
        (["SIGINT"], 75, [f"{LINE}; Ctrl-C again ends at once, without one"]),
        (["SIGTERM"], 75, [f"SIGTERM: {LINE}"]),
        (
            ["SIGINT", "SIGINT"],
            130,
            [
                f"{LINE}; Ctrl-C again ends at once, without one",
                "ended without a checkpoint; those of before are whole",
            ],
        ),
        (["outside"], 130, ["ended by Ctrl-C"]),
    ],
    ids=str,
)
def test_what_is_said_and_how_it_ends(signals, code, lines):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *signals],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line]
    assert (done.returncode, said) == (code, lines)
