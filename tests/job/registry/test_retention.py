"""What is kept after a committed run, what is removed, and that no champion ever names a run that is gone."""

import json
import os
import time
from pathlib import Path

import pytest

from job.attempt import after_commit
from job.config import StoreSection
from job.contract import champion_key, retirements_prefix
from job.errors import ConflictError, UnavailableError
from job.registry import champion
from job.registry.garbage import find_garbage
from job.registry.retention import apply_retention, reachable_runs, remove_runs
from job.registry.serving import finish_layout, is_whole
from job.runs import read
from job.runs.read import CommittedModel, read_commit
from job.runs.write import abandon
from job.store.backend import Entry, TransientError
from job.store.folder import FolderBackend
from job.store.open import open_store
from job.store.store import Store
from tests.job.registry.test_serving import MODEL, Killed, promote
from tests.job.runs.committed_runs import commit_run


def keys_of(store: Store, run: str) -> set[str]:
    return {entry.key.removeprefix(f"runs/{run}/") for entry in store.list_objects(f"runs/{run}/")}


def is_removed(store: Store, run: str) -> bool:
    """Nothing but the records that close the run id."""
    names = keys_of(store, run)
    return {name for name in names if not name.startswith(("retirements/", "claims/"))} == {"run.json", "COMMIT.json"}


def commit_in_order(store: Store, folder: Path, *runs: str, days: float = 1.0) -> None:
    """Committed runs, the first ones longest ago."""
    for number, run in enumerate(runs):
        commit_run(store, run)
        seconds = time.time() - (len(runs) - number) * days * 86400
        os.utime(folder / "runs" / run / "COMMIT.json", (seconds, seconds))


class TestRuns:
    def test_newest_stay_and_older_ones_go(self, store: Store, folder: Path) -> None:
        commit_in_order(store, folder, "c", "a", "b", "d")
        apply_retention(store, MODEL, keep_runs=2, keep_versions=10)
        assert [run for run in "cabd" if is_removed(store, run)] == ["c", "a"]
        newest = read_commit(store, "d")
        assert newest
        assert read.read_files(store, newest)

    def test_what_a_kept_pointer_reaches_stays(self, store: Store, folder: Path) -> None:
        for run in ("first", "a", "b", "c"):
            promote(store, run)
        commit_in_order(store, folder, "first", "a", "b", "c", "x", "y", "z")
        assert reachable_runs(store, keep_versions=2) == {"b", "c", "first"}
        apply_retention(store, MODEL, keep_runs=1, keep_versions=2)
        assert [run for run in "abcxyz" if is_removed(store, run)] == ["a", "x", "y"]
        assert champion.list_versions(store, MODEL) == [1, 2, 3, 4]  # the history itself stays for ever

    def test_pointers_of_every_model_count(self, store: Store, folder: Path) -> None:
        commit = commit_run(store, "a")
        to = commit.model(created="2026-01-01")
        champion.move(store, "another", before=None, to=to, by="promote", who="", why="")
        promote(store, "b")
        commit_in_order(store, folder, "a", "b", "z")
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert not is_removed(store, "a")

    def test_busy_model_never_removes_what_is_of_another(self, store: Store, folder: Path) -> None:
        """Each model counts its own runs, by the name that its COMMIT records, and touches its own layouts."""
        for number, run in enumerate(("b1", "b2")):
            commit = commit_run(store, run, model_name="other")
            before = champion.read_newest(store, "other")
            made = champion.move(
                store, "other", before=before, to=commit.model(created=""), by="promote", who="", why=str(number)
            )
            assert made
            finish_layout(store, made)
        commit_run(store, "c1", dataset="third")
        commit_in_order(store, folder, "a1", "a2", "a3")
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert [run for run in ("a1", "a2", "a3", "b1", "b2", "c1") if is_removed(store, run)] == ["a1", "a2"]
        assert all(is_whole(store, "other", version=version) for version in (1, 2))
        commit_run(store, "b3", model_name="other")
        apply_retention(store, "other", keep_runs=1, keep_versions=1)
        assert [
            run for run in ("a3", "b1", "b2", "b3", "c1") if is_removed(store, run)
        ] == []  # b1 and b2 are compared with
        assert not is_whole(store, "other", version=1)

    def test_champion_that_all_are_measured_by_stays(self, store: Store, folder: Path) -> None:
        for run in ("a", "b", "c"):
            promote(store, run)
        commit_in_order(store, folder, "a", "b", "c", "z")
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert [run for run in "abcz" if is_removed(store, run)] == ["b"]

    def test_run_without_a_result_and_one_that_cannot_be_read_stay(
        self, store: Store, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.create("runs/going/run.json", b"{}")
        commit_in_order(store, folder, "damaged", "z")
        store.put("runs/damaged/COMMIT.json", b"{")
        os.utime(folder / "runs/damaged/COMMIT.json", (0, 0))
        before = keys_of(store, "damaged")
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert keys_of(store, "damaged") == before
        assert keys_of(store, "going") == {"run.json"}
        assert "retention.skipped" in [record.getMessage() for record in caplog.records]

    def test_id_of_a_removed_run_is_closed(self, store: Store, folder: Path) -> None:
        commit_in_order(store, folder, "a", "z")
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert is_removed(store, "a")
        with pytest.raises(
            ConflictError, match=r"^run a was committed, and removed by retention at 20.*another run\.suffix"
        ):
            read_commit(store, "a")
        with pytest.raises(ConflictError, match="run a is being removed, or was"):
            champion.move(
                store,
                MODEL,
                before=None,
                to=model_of("a"),
                by="promote",
                who="",
                why="",
            )
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert len(keys_of(store, "a")) == 4

    def test_removal_killed_anywhere_is_completed_by_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        number = 0
        while True:
            folder = tmp_path / str(number)
            store = open_store(StoreSection(uri=f"file:{folder}"), environ={})
            seen: list[str] = []
            commit_in_order(store, folder, "a", "z")

            def kill(point: str, number: int = number, seen: list[str] = seen) -> None:
                seen.append(point)
                if len(seen) > number:
                    raise Killed(point)

            monkeypatch.setattr("job.store.backend.on_point", kill)
            try:
                apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
            except Killed:
                monkeypatch.setattr("job.store.backend.on_point", None)
            else:
                break
            try:
                commit = read_commit(store, "a")
            except ConflictError:
                pass
            else:
                assert commit
                assert read.read_files(store, commit)  # as long as there is a COMMIT, it is whole
            apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
            assert is_removed(store, "a")
            number += 1
        assert number > 20

    def test_store_that_fails_costs_a_warning(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        class Failing(FolderBackend):
            def list_objects(self, prefix: str) -> list[Entry]:
                raise TransientError("away")

        away = Store(Failing(folder), uri="file:x", deadline_seconds=0.1)
        with after_commit("retention.failed"):
            apply_retention(away, MODEL, keep_runs=1, keep_versions=1)
        assert [record.getMessage() for record in caplog.records] == ["retention.failed"]


def model_of(run: str) -> CommittedModel:
    return CommittedModel(
        run=run, created="2026-01-01", dataset=MODEL, evaluation_digest="e", weights_digest="w", accuracy=0.5
    )


class TestAgainstMoves:
    """A move sleeps at its last moment while everything else goes on."""

    def test_run_that_is_about_to_become_champion_stays(
        self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other, passes = open_store(StoreSection(uri=store.uri), environ={}), ["one"]

        def act(point: str) -> None:
            if point == f"before create {champion_key(MODEL, version=1)}" and passes:
                passes.pop()
                commit_in_order(other, folder, "a", "z")
                apply_retention(other, MODEL, keep_runs=1, keep_versions=1)

        monkeypatch.setattr("job.store.backend.on_point", act)
        pointer = promote(store, "a")
        assert passes == []
        assert read.read_files(store, champion.commit_of(store, pointer))
        assert not any(name.startswith("retirements") for name in keys_of(store, "a"))

    def test_run_that_was_marked_first_does_not_become_champion(
        self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other, passes = open_store(StoreSection(uri=store.uri), environ={}), ["one"]

        def act(point: str) -> None:
            if point.startswith("before put runs/a/COMMIT.json") and passes:
                passes.pop()
                with pytest.raises(ConflictError, match="run a is being removed"):
                    promote(other, "a")

        commit_in_order(store, folder, "a", "z")
        monkeypatch.setattr("job.store.backend.on_point", act)
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert passes == []
        assert champion.read_newest(store, MODEL) is None

    def test_claim_on_a_version_that_another_has_made_keeps_nothing(self, store: Store, folder: Path) -> None:
        first = promote(store, "b")
        commit = commit_run(store, "a")
        to = commit.model(created="2026-01-01")
        assert champion.move(store, MODEL, before=None, to=to, by="promote", who="", why="") is None
        assert champion.claimed_versions(store, "a") == [(MODEL, 1)]
        commit_in_order(store, folder, "a", "b", "z")
        apply_retention(store, MODEL, keep_runs=1, keep_versions=1)
        assert is_removed(store, "a")
        assert champion.read_newest(store, MODEL) == first

    def test_mark_is_taken_away_again_from_what_stays(self, store: Store) -> None:
        promote(store, "a")
        remove_runs(store, ["a"], keep_versions=1)
        assert store.list_objects(retirements_prefix("a")) == []
        assert read_commit(store, "a")


class TestVersions:
    def test_newest_layouts_stay_and_what_makes_one_loadable_goes_first(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for run in ("a", "b", "c"):
            finish_layout(store, promote(store, run))
        points: list[str] = []
        monkeypatch.setattr("job.store.backend.on_point", points.append)
        apply_retention(store, MODEL, keep_runs=9, keep_versions=1)
        deleted = [point.removeprefix("after delete ") for point in points if point.startswith("after delete ")]
        assert deleted == [
            "models/plain/versions/1/saved_model.pb",
            "models/plain/versions/2/saved_model.pb",
            "models/plain/versions/1/variables/variables.data",
            "models/plain/versions/2/variables/variables.data",
        ]
        assert {entry.key.split("/")[3] for entry in store.list_objects("models/plain/versions/")} == {"3"}

    def test_only_layout_that_a_server_can_load_stays_until_the_champions_is_whole(self, store: Store) -> None:
        finish_layout(store, promote(store, "a"))
        newest = promote(store, "b")
        store.create("models/plain/versions/2/variables/variables.data", b"weights of b")
        apply_retention(store, MODEL, keep_runs=9, keep_versions=1)
        assert is_whole(store, MODEL, version=1)
        finish_layout(store, newest)
        apply_retention(store, MODEL, keep_runs=9, keep_versions=1)
        assert {entry.key.split("/")[3] for entry in store.list_objects("models/plain/versions/")} == {"2"}

    def test_what_makes_a_version_loadable_goes_even_when_it_came_after_the_listing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        promote(store, "a")
        store.create("models/plain/versions/1/variables/variables.data", b"weights of a")
        finish_layout(store, promote(store, "b"))
        listed = store.list_objects

        def list_then_finish(prefix: str) -> list[Entry]:
            found = listed(prefix)
            if prefix == "models/plain/versions/":
                store.create("models/plain/versions/1/saved_model.pb", b"graph")
            return found

        monkeypatch.setattr(store, "list_objects", list_then_finish)
        apply_retention(store, MODEL, keep_runs=9, keep_versions=1)
        assert listed("models/plain/versions/1/") == []


class TestGarbage:
    AGES = {"older_than_seconds": 3600.0, "now_seconds": time.time() + 86400}  # noqa: RUF012

    def test_layout_that_was_cut_off_is_garbage_once_it_is_not_the_champions(self, store: Store) -> None:
        promote(store, "a")
        store.create("models/plain/versions/1/variables/variables.data", b"half")
        newest = promote(store, "b")
        assert list(find_garbage(store, **self.AGES)) == []  # its own layout is not whole yet
        finish_layout(store, newest)
        assert list(find_garbage(store, older_than_seconds=3600, now_seconds=time.time())) == []
        [garbage] = find_garbage(store, **self.AGES)
        assert (garbage.place, garbage.reason) == ("models/plain/versions/1/", "serving layout that was cut off")
        assert [entry.key for entry in garbage.entries] == ["models/plain/versions/1/variables/variables.data"]

    def test_what_is_reachable_is_never_garbage(self, store: Store) -> None:
        for run in ("a", "b"):
            finish_layout(store, promote(store, run))
        store.create("models/plain/versions/notes.txt", b"")
        store.create("models/plain/versions/01/x", b"not a version's name")
        store.create("models/plain/versions/7/x", b"ahead of the champion")
        assert list(find_garbage(store, **self.AGES)) == []


def test_unreachable_store_of_a_removal_is_told(folder: Path) -> None:
    class Failing(FolderBackend):
        def create(self, key: str, data: bytes) -> None:
            raise TransientError("away")

    with pytest.raises(UnavailableError):
        remove_runs(Store(Failing(folder), uri="file:x", deadline_seconds=0.1), ["a"], keep_versions=1)
    assert json.dumps(list(folder.rglob("*"))) == "[]"


def test_closed_runs_do_not_count_as_the_newest(store: Store, folder: Path) -> None:
    """Their records are younger than many a result."""
    commit_in_order(store, folder, "a", "z")
    for run in ("b", "c"):
        store.create(f"runs/{run}/attempts/a/attempt.json", b"{}")
        assert abandon(store, run)
    apply_retention(store, MODEL, keep_runs=2, keep_versions=1)
    assert not any(is_removed(store, run) for run in "az")
    assert keys_of(store, "b") == {"COMMIT.json", "attempts/a/attempt.json"}  # for gc, not for retention
