"""The pool of worker processes, one for all distributed tests."""

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pool():
    workers = Pool()
    yield workers
    workers.close()
