"""Fixtures of the tests that need a store of their own; a module may have others by these names."""

from pathlib import Path

import pytest

from job.config import StoreSection
from job.store.open import open_store
from job.store.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `store` keeps its objects."""
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Store:
    """An empty `file:` store that gives up after two seconds."""
    return open_store(StoreSection(uri=f"file:{folder}", deadline_seconds=2), environ={})
