"""Reference arrays: what the published implementations compute, we compute.

    pytest tests/golden_test.py                  the selection in tests/golden
    pytest tests/golden_test.py --golden=DIR     every .npz below DIR
    pytest tests/golden_test.py --dtypes=bfloat16    in other types than 64 and 32 bits

A file is dispatched by the variant, case and arguments in its meta, so other seeds,
shapes and arguments of the same variants run unchanged. An unknown variant fails.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.golden_adapters import runner_of
from tests.golden_adapters.compare import Tolerance

KEPT = Path(__file__).parent / "golden"

# Norms: relative errors of 1e-6 and 1e-4 are asked for. Mixers: forward, gradient.
# Models: absolute errors of the logits, unfolded and folded. bfloat16 has 8 bits, and
# parameters and inputs are rounded as well.
COARSE = Tolerance("bfloat16", 5e-2, 1e-1)
TOLERANCES = {
    "norm": [Tolerance("float64", 1e-6, 1e-6), Tolerance("float32", 1e-4, 1e-4)],
    "model": [Tolerance("float64", 1e-9, 1e-9), Tolerance("float32", 3e-5, 3e-5)],
    "attn": [Tolerance("float64", 1e-9, 1e-8), Tolerance("float32", 1e-5, 1e-4)],
}
MARKS = {"model": pytest.mark.slow}


def kind_of(path):
    return path.stem.split("_")[0]


def pytest_generate_tests(metafunc):
    folder = Path(metafunc.config.getoption("--golden") or KEPT)
    files = sorted(folder.rglob("*.npz"))
    if not files:
        raise pytest.UsageError(f"no reference arrays (.npz) below {folder}")
    dtypes = metafunc.config.getoption("--dtypes").split(",")
    cases = [
        (f, t)
        for f in files
        for t in (*TOLERANCES[kind_of(f)], COARSE)
        if t.dtype in dtypes
    ]
    rows = [
        pytest.param(f, t, id=f"{f.stem}-{t.dtype}", marks=MARKS.get(kind_of(f), ()))
        for f, t in cases
    ]
    metafunc.parametrize("path,tolerance", rows)


def test_reference_arrays(path, tolerance):
    with np.load(path) as archive:
        data = dict(archive)
    meta = json.loads(str(data.pop("meta")))
    variant, case = meta.get("variant") or meta["model"], meta.get("case")
    run = runner_of(variant)
    assert run is not None, f"no adapter for variant {variant!r} (case {case!r})"
    with jax.enable_x64(tolerance.dtype == "float64"):
        run(data, meta, tolerance)
