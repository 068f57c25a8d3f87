"""The data cache of the session, as for the tests that train."""

from tests.train.conftest import data_dir  # noqa: F401
