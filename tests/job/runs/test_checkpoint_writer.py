"""Checkpoints written beside the training: what is late, what is lost, and what must be said."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from job.config import CheckpointSection
from job.errors import AccessDeniedError, UnavailableError
from job.runs import checkpoint as checkpoints
from job.runs.checkpoint import Checkpoint
from job.runs.checkpoint_writer import CheckpointWriter
from job.signals import StopSignal
from job.store.backend import Entry, TransientError
from job.store.folder import FolderBackend
from job.store.store import Store
from tests.job.runs.test_checkpoint import META

SCHEDULE = CheckpointSection(interval_seconds=0.01, keep=2, final_save_seconds=0.5)


@pytest.fixture(autouse=True)
def no_writer_outlives_its_test() -> Iterator[None]:
    """Else one that was given up would go on with the clock of another test."""
    yield
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(30)


class Backend(FolderBackend):
    """A folder that can be slow, away, or refuse to delete."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.is_away = False
        self.may_delete = True
        self.is_open = threading.Event()
        self.is_open.set()

    def create(self, key: str, data: bytes) -> None:
        self.is_open.wait(20)
        if self.is_away:
            raise TransientError("away")
        super().create(key, data)

    def list_objects(self, prefix: str) -> list[Entry]:
        return super().list_objects(prefix)

    def delete(self, key: str) -> None:
        if not self.may_delete:
            raise AccessDeniedError("no deletes")
        super().delete(key)


def make_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, result_digest="d", arrays={"a": np.array([step])}, meta=META)


def make_writer(backend: Backend) -> tuple[CheckpointWriter, Store]:
    store = Store(backend, uri="file:x", deadline_seconds=0.3)
    return CheckpointWriter(
        store, run_id="r", schedule=SCHEDULE, on_saved=lambda *_: None, after_save=lambda _: None
    ), store


def wait_until_due(writer: CheckpointWriter) -> None:
    deadline = time.monotonic() + 10
    while not writer.is_due():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_is_away_costs_one_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    backend = Backend(tmp_path)
    writer, store = make_writer(backend)
    backend.is_away = True
    writer.save(make_checkpoint(1))
    wait_until_due(writer)
    backend.is_away = False
    writer.save(make_checkpoint(2))
    wait_until_due(writer)

    loaded = checkpoints.load_newest(store, "r", result_digest="d")
    assert loaded is not None
    assert loaded.step == 2


def test_the_last_checkpoint_that_cannot_be_saved_is_said(tmp_path: Path) -> None:
    backend = Backend(tmp_path)
    writer, _ = make_writer(backend)
    backend.is_away = True
    with pytest.raises(UnavailableError, match=r"store\.deadline_seconds"):
        writer.save_last(make_checkpoint(1), stop=StopSignal())


def test_a_stop_while_the_last_checkpoint_hangs_is_bounded(tmp_path: Path) -> None:
    backend = Backend(tmp_path)
    store = Store(backend, uri="file:x", deadline_seconds=20)
    writer = CheckpointWriter(store, run_id="r", schedule=SCHEDULE, on_saved=lambda *_: None, after_save=lambda _: None)
    backend.is_open.clear()
    stop = StopSignal()
    timer = threading.Timer(0.3, lambda: setattr(stop, "requested", "SIGTERM"))
    timer.start()
    started = time.monotonic()

    with pytest.raises(UnavailableError, match=r"step 7 could not be saved within 0\.5 s"):
        writer.save_last(make_checkpoint(7), stop=stop)

    assert 0.5 <= time.monotonic() - started < 5
    timer.join()
    backend.is_open.set()


def test_an_error_of_any_kind_in_the_last_write_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: Checkpoint) -> bytes:
        raise MemoryError

    monkeypatch.setattr(checkpoints, "encode", no_memory)
    writer, _ = make_writer(Backend(tmp_path))
    with pytest.raises(MemoryError):
        writer.save_last(make_checkpoint(1), stop=StopSignal())


def test_a_store_that_denies_deletes_keeps_more_and_saves_on(tmp_path: Path) -> None:
    backend = Backend(tmp_path)
    backend.may_delete = False
    writer, _ = make_writer(backend)
    for step in (1, 2, 3):
        writer.save(make_checkpoint(step))
        wait_until_due(writer)
    writer.save_last(make_checkpoint(4), stop=StopSignal())

    assert len(list((tmp_path / "runs" / "r" / "checkpoints").iterdir())) == 4
