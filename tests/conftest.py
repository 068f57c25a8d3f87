"""Settings of every test: four devices on the CPU, no implicit rank promotion."""

import os

# Unoptimised code compiles ten times faster and agrees to rounding; the slow tests
# start processes of their own, which run what users run.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        action="store",
        default=None,
        help="folder of reference arrays to run instead of tests/golden",
    )


@pytest.fixture
def x64():
    """Sixty-four-bit types for the length of a test."""
    with jax.enable_x64(True):
        yield
