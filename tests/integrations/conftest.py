"""A worker beside the test, as the tests of a worker have it."""

from tests.worker.conftest import work

__all__ = ["work"]
