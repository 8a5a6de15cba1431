"""The store and the run that a command names."""

import os
from collections.abc import Callable
from typing import TypeVar

from job import clock, contract
from job.config_sources import LoadedConfig
from job.errors import NotFoundError
from job.runs.read import CommittedRun, read_commit
from job.store.open import open_store
from job.store.store import Store
from job.uris import shown

T = TypeVar("T")


def configured_store(loaded: LoadedConfig) -> Store:
    """The store of the settings, with credentials from this process's environment."""
    return open_store(loaded.config.store, environ=os.environ)


def find_committed(store: Store, run_id: str, *, wait_seconds: float = 0.0) -> CommittedRun:
    """A run that has a result, within so many seconds.

    Raises:
        NotFoundError: it has none, or no run can have this name.
    """
    checked_run_id(run_id)
    committed = wait_for(lambda: read_commit(store, run_id), seconds=wait_seconds)
    if committed is None:
        raise NotFoundError(f"run {run_id} has no COMMIT in {store.uri}; see mnist-job runs")
    return committed


def wait_for(read: Callable[[], T | None], *, seconds: float) -> T | None:
    """What is there within so many seconds, or None."""
    deadline = clock.monotonic() + seconds
    while (found := read()) is None and clock.monotonic() < deadline:
        clock.sleep(1.0)
    return found


def checked_run_id(run_id: str) -> str:
    """The same text.

    Raises:
        NotFoundError: no run can have this name.
    """
    if not contract.is_run_id(run_id):
        raise NotFoundError(f"run {shown(run_id)}: no run can have this name; see mnist-job runs")
    return run_id


def checked_model(name: str) -> str:
    """The same text.

    Raises:
        NotFoundError: no model can have this name.
    """
    if not contract.is_model_name(name):
        raise NotFoundError(f"model {shown(name)}: no model can have this name; see promotion.model_name")
    return name
