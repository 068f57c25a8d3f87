"""Settings of every test: four devices on the CPU, no implicit rank promotion."""

import functools
import gc
import os
from importlib import metadata

# Unoptimised code compiles ten times faster and agrees to rounding; the slow tests
# start processes of their own, which run what users run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        # Accelerators compile what users run.
        # One part a program: pytest keeps the cores busy.
        "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_parallel_codegen_split_count=1"
        if os.environ["JAX_PLATFORMS"] == "cpu"
        else "",
        # Half of that time again, and patience with a machine that does other things:
        # XLA aborts when a device waits 40 seconds for the others. It exits at a flag
        # that it does not know.
        "--xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_collective_call_terminate_timeout_seconds=300"
        if metadata.version("jaxlib").startswith("0.10.")
        else "",
    )
)

import jax
import numpy as np
import pytest
from flax.core import Scope, meta

from normjax.core.compiler import compiled_code_in

jax.config.update("jax_numpy_rank_promotion", "raise")

# What JAX caches is never garbage: collecting as often as usual takes a twentieth of
# the time.
gc.set_threshold(50_000, 20, 100)


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        action="store",
        default=None,
        help="folder of reference arrays to run instead of tests/golden",
    )
    parser.addoption(
        "--dtypes",
        action="store",
        default=None,
        help="types in which reference arrays are run: float64,float32 or bfloat16; "
        "with it only whole models count as slow",
    )


@pytest.fixture
def users_compiler():
    """Options of jax.jit that undo what makes the tests compile quickly."""
    options = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_use_fusion_emitters": True,
    }
    return {k: v for k, v in options.items() if k in os.environ["XLA_FLAGS"]}


@pytest.fixture
def x64():
    """Sixty-four-bit types for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """Prepared sets of this session; a user's own cache stays as it is."""
    given = os.environ.get("NORMJAX_DATA_DIR")
    path = given or str(tmp_path_factory.mktemp("data"))
    os.environ["NORMJAX_DATA_DIR"] = path
    yield path
    if given is None:
        del os.environ["NORMJAX_DATA_DIR"]


@pytest.fixture(scope="session")
def cloud():
    """A stand-in for Cloud Storage of this session, to which gs:// leads."""
    from tests import cloud_storage

    with cloud_storage.serving() as cloud, pytest.MonkeyPatch.context() as patch:
        for name, value in cloud_storage.environment(cloud).items():
            patch.setenv(name, value)
        cloud_storage.install()
        yield cloud


@pytest.fixture
def bucket(cloud, monkeypatch):
    """gs://bucket, empty."""
    monkeypatch.setattr(cloud, "objects", {})
    monkeypatch.setattr(cloud, "before", lambda method, what: None)
    return cloud


@pytest.fixture(scope="session", autouse=True)
def without_curves():
    """Runs draw no curves and pictures; `report.plot_curves.__wrapped__` does."""
    from normjax.records import pictures, report

    @functools.wraps(report.plot_curves)
    def plot_curves(workdir, curves):
        return workdir / "curves.png"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_curves", plot_curves)
        for draw in (pictures.guesses, pictures.confusion):
            patch.setattr(pictures, draw.__name__, _blank(draw))
        yield


def _blank(draw):
    @functools.wraps(draw)
    def blank(*args):
        return np.zeros((1, 1, 3), np.uint8)

    return blank


@functools.lru_cache(maxsize=4096)
def shapes_of(initializer, *arguments):
    made = jax.eval_shape(lambda: initializer(jax.random.key(0), *arguments))
    return [leaf.shape for leaf in jax.tree.leaves(made)]


@pytest.fixture(scope="session", autouse=True)
def initializers_traced_once():
    """Flax traces the initializer of every parameter that a model reads, to compare
    shapes: a third of what tracing a model takes. What it refuses is refused as ever.
    """
    param = Scope.param

    def known(scope, name, initializer, *arguments, unbox=True, **named):
        if not named and scope.has_variable("params", name):
            value = scope.get_variable("params", name)
            try:
                expected = shapes_of(initializer, *arguments)
            except TypeError:  # arguments that have no hash
                expected = None
            if expected == [np.shape(leaf) for leaf in jax.tree.leaves(value)]:
                scope.reserve(name, "params")
                return meta.unbox(value) if unbox else value
        return param(scope, name, initializer, *arguments, unbox=unbox, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scope, "param", known)
        yield


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory):
    """What this process compiles for whole runs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled_once(compiled_folder):
    """Runs of one config compile their step once for all tests."""
    with compiled_code_in(compiled_folder):
        yield
