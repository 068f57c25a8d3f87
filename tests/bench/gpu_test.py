"""The command that makes all tables of an accelerator, and what they are made of."""

import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from normjax.bench import cores, golden, gpu, peers, sizes
from normjax.core.errors import UserError


def test_unknown_sections_and_cores():
    with pytest.raises(UserError, match="unknown section 'model'; did you mean"):
        gpu.gpu_command(["gpu", "model"])
    with pytest.raises(UserError, match="unknown core 'linaer'; did you mean"):
        cores.cores_command(["cores", "linaer"])


def test_the_sections_take_less_than_eight_minutes():
    assert sum(section.limit for section in gpu.SECTIONS.values()) < 8 * 60


def test_what_takes_too_long_is_stopped_with_its_children():
    sleeps = "import time; time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{sleeps}'])"
    begin = time.monotonic()
    assert gpu.run([sys.executable, "-c", code], 0.5) is None
    assert time.monotonic() - begin < 300
    assert gpu.run([sys.executable, "-c", "raise SystemExit(3)"], None) == 3


def test_names_and_sizes():
    assert sizes.sizes_for(["norms", "a", "--small"]) == (["a"], sizes.TINY)
    assert sizes.sizes_for(["norms"]) == ([], sizes.CPU)


def test_results_of_pytest(tmp_path):
    log = tmp_path / "log.xml"
    log.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b">'
        '<failure message="y: 2 of 1&#10;more">...</failure></testcase>'
        '<testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert golden.read(log) == (1, [("b", "y: 2 of 1")])


def test_no_reference_arrays_are_no_success(monkeypatch):
    done = subprocess.CompletedProcess([], 5, "51 deselected", "")  # nothing was run
    monkeypatch.setattr(golden.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match="pytest ended with 5: 51 deselected"):
        golden.arrays("float32", "highest", False)


def test_calls_of_a_function():
    """A forward pass, and that with the gradients of all inputs."""
    x = np.array([1.0, 2.0], np.float32)
    forward, both = peers.of_jax(lambda x: x * x, [x], 3 * x, "float32")
    np.testing.assert_array_equal(forward(), x * x)
    y, (dx,) = both()
    np.testing.assert_array_equal(y, x * x)
    np.testing.assert_array_equal(dx, 6 * x * x)


def test_what_is_too_large_is_not_compiled(monkeypatch):
    monkeypatch.setattr(cores, "MOST_BYTES", 10_000)

    def call(count):
        def scanned(x):
            return jax.lax.scan(lambda s, t: (s + t, t * t), 0.0, x)[1]

        return peers.of_jax(scanned, [np.ones(count, np.float32)], 1.0, "float32")[0]

    assert cores.fits(call(100))
    assert not cores.fits(call(100_000))


@pytest.mark.parametrize("name", cores.CORES)
def test_inputs_of_cores(name):
    """Every core takes them and gives what it was asked for, in their type."""
    inputs = cores.inputs_of(name, 16, 32)
    assert [a.shape for a in inputs[:3]] == [(2, 16, cores.HEADS, cores.WIDTH)] * 3
    out = jax.eval_shape(cores.CORES[name], *inputs)
    assert (out.shape, out.dtype) == (inputs[0].shape, np.float32)


@pytest.mark.slow
def test_sections_run_in_turn():
    done = bench("gpu", "golden", "norms")
    assert "golden: exit code 0" in done and "norms: exit code 0" in done
    assert "reference arrays" in done and "floor" in done


@pytest.mark.slow
@pytest.mark.parametrize(
    "section, name, title",
    [
        ("cores", "linear", "8 heads of 64"),
        ("models", "slab_deit_tiny", "slab_deit_tiny"),
        ("loop", "--config=configs/digits.py", "host overhead"),
    ],
)
def test_sections_on_a_small_scale(section, name, title):
    assert title in bench(section, name, small=gpu.SECTIONS[section].small)


def bench(*arguments, small=gpu.SMALL):
    """What the command prints; it ends well."""
    command = [sys.executable, "-m", "normjax.bench", *arguments, small]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
