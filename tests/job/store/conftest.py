"""Fixtures of the stores' tests."""

from collections.abc import Iterator

import pytest

from tests.job.store.azurite import Azurite, serve


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """One for all tests of a process."""
    with serve() as running:
        yield running
