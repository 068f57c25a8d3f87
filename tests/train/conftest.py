"""Settings of the tests that train: a data cache of the session, compiled code."""

import os

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """Prepared sets of this session; a user's own cache stays as it is."""
    given = os.environ.get("NORMJAX_DATA_DIR")
    path = given or str(tmp_path_factory.mktemp("data"))
    os.environ["NORMJAX_DATA_DIR"] = path
    yield path
    if given is None:
        del os.environ["NORMJAX_DATA_DIR"]


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Runs of one config compile their step once for all tests of a module."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
