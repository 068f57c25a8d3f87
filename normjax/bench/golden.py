"""The reference arrays of the repository on the device of this process."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from xml.etree import ElementTree

import jax

from normjax.bench.sizes import SMALL, device_name
from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.records import report

TEST = Path("tests") / "golden_test.py"
RUNS = (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))
PROCESSES = 5


def golden_command(argv: Sequence[str]) -> int:
    """`golden`: run tests/golden_test.py here, in float32 and bfloat16.

    Those of whole models stay with the slow tests. In float32 twice: with exact
    products, where every array must agree, and with the device's own, which shows what
    TF32 or bfloat16 passes do to them. 1 if any array disagrees in the first run.
    """
    if not TEST.exists():
        raise UserError(f"{TEST} is not here: run it in a copy of the repository")
    runs, rows, wrong = RUNS[:1] if SMALL in argv else RUNS, [], {}
    with futures.ThreadPoolExecutor() as pool:  # all wait for the compiler
        found = pool.map(lambda run: arrays(run[0], run[1], SMALL in argv), runs)
        for run, (passed, failed) in zip(runs, found, strict=True):
            rows.append((*run, passed, len(failed)))
            wrong[run] = failed
    columns = ("type", "products", "agree", "disagree")
    report.table(f"{device_name()}: reference arrays", columns, rows)
    for (dtype, precision), failed in wrong.items():
        for name, message in failed:
            console.print(f"{dtype}, {precision}: {name}: {message}")
    return 1 if wrong[RUNS[0]] else 0


def arrays(dtype: str, precision: str, small: bool) -> tuple[int, list]:
    """How many agree, and (name, first line of the message) of those that do not."""
    environment = os.environ | {"JAX_PLATFORMS": platforms()}
    if precision != "default":
        environment["JAX_DEFAULT_MATMUL_PRECISION"] = precision
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.xml"
        command = [sys.executable, "-m", "pytest", str(TEST), f"--dtypes={dtype}"]
        command += ["-q", f"--junitxml={log}", "-p", "no:cacheprovider"]
        command += ["-W", "default", "-m", "not slow"]
        command += ["-k", "rmsnorm or sla_deit"] if small else []
        if importlib.util.find_spec("xdist") and not small:
            command += ["-n", str(PROCESSES)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: some disagree; 5: there are none
            raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout}")
        return read(log)


def platforms() -> str:
    """The value of JAX_PLATFORMS for the device of this process."""
    backend = jax.default_backend()
    return "cuda,cpu" if backend == "gpu" else backend


def read(log: Path) -> tuple[int, list]:
    """The result of `arrays`, from the file that pytest writes."""
    passed, failed = 0, []
    for case in ElementTree.parse(log).iter("testcase"):
        bad = [node for node in case if node.tag in ("failure", "error")]
        passed += not bad and case.find("skipped") is None
        for node in bad:
            lines = (node.get("message") or "").splitlines() or [""]
            failed.append((case.get("name"), lines[0][:200]))
    return passed, failed
