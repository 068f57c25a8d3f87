"""Reference arrays: what the published implementations compute, we compute.

    pytest tests/golden_test.py                  the selection in tests/golden
    pytest tests/golden_test.py --golden=DIR     every .npz below DIR
    pytest tests/golden_test.py --dtypes=bfloat16    in other types than 64 and 32 bits

A file is dispatched by the variant or family and the arguments in its meta, so other
seeds, shapes and arguments of the same kinds run unchanged, whatever its name is.
What nothing runs fails with one line.
"""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.golden_adapters import runner_of
from tests.golden_adapters.compare import LAYERS

KEPT = Path(__file__).parent / "golden"

ALIKE = {
    *("retention_op", "linear_attn_op", "rala", "focused_cswin", "gated_rela"),
    *("griffin_local_mqa", "pattention", "poolformer_pool", "swin_window"),
}
"""Kept variants whose functions others run as well, or that have oracles of their own
in the fast tests: slow."""


def meta_of(path):
    """The description in a file, or None where there is none."""
    try:
        with np.load(path) as archive:
            return json.loads(str(archive["meta"]))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        return None


def found(meta):
    """(runner, None), or (None, why there is none)."""
    if not isinstance(meta, dict):
        return None, "no reference arrays: the file has no meta"
    try:
        return runner_of(meta), None
    except LookupError as error:
        return None, str(error)


def marks_of(meta, runner, dtype, asked):
    """Fast: layers, in types that were asked for or in float64, there one of a kind."""
    if runner is None:
        return ()
    alike = meta.get("variant") in ALIKE or dtype != "float64"
    slow = meta.get("family") or (alike and not asked)
    return pytest.mark.slow if slow else ()


def pytest_generate_tests(metafunc):
    folder = Path(metafunc.config.getoption("--golden") or KEPT)
    files = sorted(folder.rglob("*.npz"))
    if not files:
        raise pytest.UsageError(f"no reference arrays (.npz) below {folder}")
    asked = metafunc.config.getoption("--dtypes")
    dtypes = (asked or "float64,float32").split(",")
    rows = []
    for path in files:
        meta = meta_of(path)
        runner, _ = found(meta)
        for tolerance in runner.tolerances if runner else LAYERS:
            if tolerance.dtype in dtypes:
                marks = marks_of(meta, runner, tolerance.dtype, asked)
                name = f"{path.stem}-{tolerance.dtype}"
                rows.append(pytest.param(path, tolerance, id=name, marks=marks))
    metafunc.parametrize("path,tolerance", rows)


def test_reference_arrays(path, tolerance):
    meta = meta_of(path)
    runner, reason = found(meta)
    if runner is None:
        pytest.fail(f"{path.name}: {reason}", pytrace=False)
    with np.load(path) as archive:
        data = {name: archive[name] for name in archive.files if name != "meta"}
    with jax.enable_x64(tolerance.dtype == "float64"):
        runner.run(data, meta, tolerance)
