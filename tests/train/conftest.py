"""Settings of the tests that train: a data cache of the session, compiled code."""

import os

import pytest

from normjax.core.compiler import compiled_code_in


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
    with compiled_code_in(tmp_path_factory.mktemp("compiled")):
        yield
