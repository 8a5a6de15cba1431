"""The serving layout: order of its files, repair at every point, and readers during a slow upload."""

import threading
import time
from pathlib import Path

import pytest

from job.config import StoreSection
from job.errors import IntegrityError
from job.registry import champion
from job.registry.champion import Move
from job.registry.fetch import fetch_champion
from job.registry.retention import apply_retention, remove_runs
from job.registry.serving import check_layout, finish_champions_layout, finish_layout, is_whole
from job.runs import read
from job.store.folder import FolderBackend
from job.store.open import open_store
from job.store.store import Store
from tests.job.runs.committed_runs import commit_run

MODEL = "plain"
FILES = {"models/plain/versions/1/saved_model.pb", "models/plain/versions/1/variables/variables.data"}


def promote(store: Store, run: str, *, weights: str | None = None, model: str = MODEL) -> Move:
    commit = commit_run(store, run, weights=weights, model_name=model)
    to = commit.model(created=read.created_at(store, commit))
    before = champion.read_newest(store, model)
    pointer = champion.move(store, model, before=before, to=to, by="promote", who="", why="")
    assert pointer
    return pointer


class Killed(BaseException):
    pass


def test_layout_is_the_committed_model_with_the_file_that_makes_it_loadable_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = promote(store, "a")
    points: list[str] = []
    monkeypatch.setattr("job.store.backend.on_point", points.append)
    finish_layout(store, pointer)
    created = [point.removeprefix("after create ") for point in points if point.startswith("after create ")]
    assert set(created) == FILES
    assert created[-1] == "models/plain/versions/1/saved_model.pb"
    assert store.get("models/plain/versions/1/variables/variables.data") == b"weights of a"
    assert check_layout(store, pointer) == 2


def test_whole_layout_is_not_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = promote(store, "a")
    finish_layout(store, pointer)
    points: list[str] = []
    monkeypatch.setattr("job.store.backend.on_point", points.append)
    finish_layout(store, pointer)
    assert points == []


def test_last_file_of_a_version_that_was_removed_meanwhile_is_not_left_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sleeps before its last file would make a folder without variables loadable."""
    pointer = promote(store, "a")
    last, other = "models/plain/versions/1/saved_model.pb", open_store(StoreSection(uri=store.uri), environ={})

    def act(point: str) -> None:
        if point == f"before create {last}":
            monkeypatch.setattr("job.store.backend.on_point", None)
            finish_layout(other, pointer)
            finish_layout(other, promote(other, "b"))
            apply_retention(other, MODEL, keep_runs=9, keep_versions=1)

    monkeypatch.setattr("job.store.backend.on_point", act)
    finish_layout(store, pointer)
    assert store.list_objects("models/plain/versions/1/") == []
    assert is_whole(store, MODEL, version=2)


def test_who_slept_until_the_champion_was_removed_finishes_the_layout_of_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, "first")  # stays, because candidates are compared with it
    promote(store, "a")
    other, read = open_store(StoreSection(uri=store.uri), environ={}), champion.read_newest

    def read_then_sleep(store: Store, model: str) -> Move | None:
        monkeypatch.setattr("job.registry.champion.read_newest", read)
        newest = read(store, model)
        promote(other, "b")
        remove_runs(other, ["a"], keep_versions=1)
        return newest

    monkeypatch.setattr("job.registry.champion.read_newest", read_then_sleep)
    newest = finish_champions_layout(store, MODEL)
    assert newest
    assert newest.run == "b"
    assert check_layout(store, newest) == 2


def test_layout_that_was_cut_off_anywhere_is_not_whole_and_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at every single point, between the pointer and the layout's last file."""
    number = 0
    while True:
        store = open_store(StoreSection(uri=f"file:{tmp_path / str(number)}"), environ={})
        pointer = promote(store, "a")
        seen: list[str] = []

        def kill(point: str, number: int = number, seen: list[str] = seen) -> None:
            seen.append(point)
            if len(seen) > number:
                raise Killed(point)

        monkeypatch.setattr("job.store.backend.on_point", kill)
        try:
            finish_layout(store, pointer)
        except Killed:
            monkeypatch.setattr("job.store.backend.on_point", None)
            if is_whole(store, MODEL, version=1):
                assert check_layout(store, pointer) == 2
            else:
                with pytest.raises(IntegrityError, match="the layout of version 1 differs from what was committed"):
                    check_layout(store, pointer)
            finish_layout(store, pointer)
            assert check_layout(store, pointer) == 2
            number += 1
        else:
            break
    assert number > 10


def test_altered_layout_is_noticed_and_not_overwritten(store: Store) -> None:
    pointer = promote(store, "a")
    store.put("models/plain/versions/1/variables/variables.data", b"another's")
    with pytest.raises(
        IntegrityError, match=r"variables\.data is not the committed file; delete file:.*versions/1/ and"
    ):
        finish_layout(store, pointer)
    assert not is_whole(store, MODEL, version=1)
    store.delete("models/plain/versions/1/variables/variables.data")
    finish_layout(store, pointer)
    store.put("models/plain/versions/1/saved_model.pb", b"another's")
    with pytest.raises(IntegrityError, match=r"differs from what was committed: saved_model\.pb"):
        check_layout(store, pointer)
    store.put("models/plain/versions/1/variables/variables.more", b"")
    with pytest.raises(IntegrityError, match=r"differs from what was committed: variables/variables\.more"):
        check_layout(store, pointer)


class _SlowFolder(FolderBackend):
    """50 kB/s in both directions."""

    def create(self, key: str, data: bytes) -> None:
        time.sleep(len(data) / 50_000)
        super().create(key, data)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        data = super().get(key, max_bytes=max_bytes)
        time.sleep(len(data) / 50_000)
        return data


def test_pollers_during_slow_uploads_never_read_half_a_model(folder: Path, tmp_path: Path) -> None:
    """One follows the layout in the store, one fetches into a folder, one reads that folder, while versions come at 50 kB/s."""
    slow = Store(_SlowFolder(folder), uri=f"file:{folder}", deadline_seconds=60)
    done, partial, whole, served = threading.Event(), [], [], tmp_path / "served"

    def follow_layout() -> None:
        own = open_store(StoreSection(uri=f"file:{folder}"), environ={})
        while not done.is_set():
            newest = champion.read_newest(own, MODEL)
            if newest and is_whole(own, MODEL, version=newest.version):
                try:
                    check_layout(own, newest)
                    whole.append(f"layout {newest.version}")
                except IntegrityError as error:
                    partial.append(str(error))
            time.sleep(0.02)

    def fetch() -> None:
        own = Store(_SlowFolder(folder), uri=f"file:{folder}", deadline_seconds=60)
        while not done.is_set():
            if champion.read_newest(own, MODEL):
                fetch_champion(own, MODEL, served, keep=2)
            time.sleep(0.02)

    def serve() -> None:
        while not done.is_set():
            for version in served.glob("[0-9]*") if served.is_dir() else []:
                try:
                    found = sorted(path.name for path in version.rglob("*") if path.is_file())
                    sizes = {(version / "variables" / "variables.data").stat().st_size}
                except FileNotFoundError:  # an old version may go, as a whole
                    if version.is_dir():
                        partial.append(f"{version} lacks a file")
                    continue
                if found == ["saved_model.pb", "variables.data"] and sizes == {40_000}:
                    whole.append(f"folder {version.name}")
                elif version.is_dir():
                    partial.append(f"{version} holds {found}")
            time.sleep(0.005)

    pollers = [threading.Thread(target=poll) for poll in (follow_layout, fetch, serve)]
    for poller in pollers:
        poller.start()
    for number in range(4):
        finish_layout(slow, promote(slow, f"r{number}", weights=f"{number:040000d}"))
    time.sleep(2.5)
    done.set()
    for poller in pollers:
        poller.join()
    assert partial == []
    assert {"layout 4", "folder 4"} <= set(whole)
    assert len(whole) > 50
