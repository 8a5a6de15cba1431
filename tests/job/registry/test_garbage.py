"""gc on real stores: what goes, what stays whatever happens, and runs that are closed before anything of them is deleted."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job import clock
from job.commands.cli import parse_command_line
from job.commands.store import collect_garbage
from job.config import StoreSection
from job.config_sources import load_config
from job.contract import commit_key
from job.errors import AccessDeniedError, ConfigError, ConflictError, UnavailableError
from job.registry.garbage import Garbage, delete_garbage, find_garbage
from job.runs.read import ClosedRun, StoredFile, read_commit, read_run
from job.runs.write import abandon, commit, upload
from job.store.backend import Entry, TransientError
from job.store.folder import FolderBackend
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import QUICK, S3, RunJob
from tests.job.test_resume import run_until

DAY = 86400.0
AGES = {"older_than_seconds": 7 * DAY, "now_seconds": time.time()}
CHECKPOINT = "checkpoints/000000045-0123456789abcdef.safetensors"
NO_MODEL = {"metrics.json": b"{}", "attempt.json": b"{}"}
FILES = {"model/saved_model.pb": b"graph", "predictions.safetensors": b"numbers", **NO_MODEL}


class Backend(FolderBackend):
    """A folder that lets a test act in the middle of gc."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.writes: list[str] = []
        self.before_create: Callable[[], object] | None = None
        self.deletes_left = 1000
        self.is_away_for = "nothing"

    def create(self, key: str, data: bytes) -> None:
        action, self.before_create = self.before_create, None
        if action:
            action()
        self.writes.append(f"create {key}")
        super().create(key, data)

    def delete(self, key: str) -> None:
        if not self.deletes_left:
            raise AccessDeniedError("killed here")
        self.deletes_left -= 1
        self.writes.append(f"delete {key}")
        super().delete(key)

    def list_objects(self, prefix: str) -> list[Entry]:
        if prefix.startswith(self.is_away_for):
            raise TransientError("away")
        return super().list_objects(prefix)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def backend(folder: Path) -> Backend:
    return Backend(folder)


@pytest.fixture
def store(backend: Backend, folder: Path) -> Store:
    return Store(backend, uri=f"file:{folder}", deadline_seconds=30)


def add(store: Store, run: str, *names: str) -> None:
    for name in names:
        store.put(f"runs/{run}/{name}", b"data")


def commit_content(run: str, attempt: str, stored: list[StoredFile]) -> dict[str, Any]:
    return {
        "format": 1,
        "run": run,
        "attempt": attempt,
        "result_digest": "r",
        "weights_digest": "w",
        "dataset": {"name": "plain"},
        "metrics": {"test_accuracy": 0.5},
        "files": [{"key": file.key, "num_bytes": file.num_bytes, "sha256": file.sha256} for file in stored],
    }


def commit_run(store: Store, run: str, *, attempt: str) -> None:
    stored = upload(store, run, attempt_id=attempt, files=FILES)
    commit(store, run, content=commit_content(run, attempt, stored))


def add_committed_run(store: Store, run: str = "done") -> None:
    """A committed run with everything that its attempts may leave; one loser's name begins like the winner's."""
    add(
        store,
        run,
        "run.json",
        CHECKPOINT,
        "logs/win/000000.jsonl",
        "logs/win-2/000000.jsonl",
        "logs/loser/000000.jsonl",
    )
    for attempt in ("win-2", "loser"):
        upload(store, run, attempt_id=attempt, files=FILES)
    commit_run(store, run, attempt="win")


def add_unfinished_run(store: Store, run: str = "dead") -> None:
    add(store, run, "run.json", CHECKPOINT, "logs/a/000000.jsonl")
    upload(store, run, attempt_id="a", files=NO_MODEL)


def set_age(folder: Path, key: str, *, days: float) -> None:
    seconds = AGES["now_seconds"] - days * DAY
    path = folder / key
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        os.utime(file, (seconds, seconds))


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file in a store."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def find(store: Store) -> list[Garbage]:
    return list(find_garbage(store, **AGES))


def keys(garbage: Garbage) -> set[str]:
    return {entry.key.removeprefix(garbage.place) for entry in garbage.entries}


def collect(store: Store) -> list[Garbage | None]:
    """Find and delete, as the command does."""
    return [delete_garbage(store, garbage, **AGES) for garbage in find_garbage(store, **AGES)]


LOST_FILES = {
    f"attempts/{attempt}/{name}"
    for attempt in ("win-2", "loser")
    for name in ("model/saved_model.pb", "metrics.json", "predictions.safetensors")
}


class TestFind:
    def test_finding_changes_nothing(self, store: Store, folder: Path) -> None:
        add_committed_run(store)
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        before = content_of(folder)
        assert len(find(store)) == 2
        assert content_of(folder) == before

    def test_empty_store_holds_no_garbage(self, store: Store) -> None:
        assert find(store) == []

    def test_left_overs_of_store_check_are_garbage_once_old(self, store: Store, folder: Path) -> None:
        for name in ("0123456789abcdef", "fedcba9876543210", "mine"):
            store.put(f"checks/{name}", b"mnist-job store check")
        for name in ("0123456789abcdef", "mine"):
            set_age(folder, f"checks/{name}", days=8)
        [garbage] = find(store)
        assert (garbage.place, keys(garbage), garbage.num_bytes) == ("checks/", {"0123456789abcdef"}, 21)
        assert delete_garbage(store, garbage, **AGES) == garbage
        assert sorted(content_of(folder)) == ["checks/fedcba9876543210", "checks/mine"]

    def test_nothing_outside_runs_and_checks_is_touched(self, store: Store, folder: Path) -> None:
        for key in ("models/mnist/champion/000000001.json", "runs/notes.txt", "readme"):
            store.put(key, b"of others")
        set_age(folder, "", days=100)
        assert find(store) == []


class TestCommittedRun:
    def test_what_the_commit_does_not_name_goes_and_all_else_stays(self, store: Store, folder: Path) -> None:
        add_committed_run(store)
        set_age(folder, "", days=8)
        before = content_of(folder)

        [garbage] = find(store)
        assert (garbage.place, garbage.reason) == ("runs/done/", "not part of the committed result")
        assert garbage.run_to_close is None
        assert keys(garbage) == LOST_FILES | {CHECKPOINT}
        assert garbage.num_bytes == 2 * len(b"graph" + b"{}" + b"numbers") + len(b"data")
        assert delete_garbage(store, garbage, **AGES) == garbage

        gone = {f"runs/done/{key}" for key in LOST_FILES | {CHECKPOINT}}
        assert content_of(folder) == {key: data for key, data in before.items() if key not in gone}
        assert find(store) == []

    def test_what_is_younger_than_the_age_stays(self, store: Store, folder: Path) -> None:
        add_committed_run(store)
        set_age(folder, "", days=6.99)
        assert find(store) == []
        set_age(folder, "runs/done/attempts/loser/metrics.json", days=7.01)
        set_age(folder, "runs/done/COMMIT.json", days=7.01)
        [garbage] = find(store)
        assert keys(garbage) == {"attempts/loser/metrics.json"}

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "is not JSON"),
            (b"{", "is not JSON"),
            (b"[]", "must hold a JSON object"),
            (b"{}", "it lacks attempt, dataset"),
            (b'{"abandoned": "2026-01-01"}', "it lacks run"),
            (b'{"abandoned": "2026-01-01", "run": "other"}', "it is of run 'other'"),
            (json.dumps(commit_content("other", "win", [])).encode(), "it is of run 'other'"),
            (json.dumps(commit_content("done", "wim", [])).encode(), "names an attempt that is not there"),
            (
                json.dumps(commit_content("done", "", [])).encode(),
                "its attempt must be the name of a run or an attempt",
            ),
        ],
    )
    def test_corrupt_commit_keeps_its_run_whole_and_no_other(
        self, data: bytes, reason: str, store: Store, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        add_committed_run(store)
        add_committed_run(store, "later")
        store.put(commit_key("done"), data)
        set_age(folder, "", days=8)
        with caplog.at_level(logging.WARNING, logger="job"):
            assert [garbage.place for garbage in find(store)] == ["runs/later/"]
        [record] = caplog.records
        fields = vars(record)["fields"]
        assert (record.getMessage(), fields["run_of_skipped"]) == ("gc.skipped", "done")
        assert reason in fields["reason"]

    def test_store_that_goes_away_is_an_error_and_not_a_skipped_run(self, store: Store, backend: Backend) -> None:
        add_unfinished_run(store)
        backend.is_away_for = "runs/dead/"
        with pytest.raises(UnavailableError, match="away"):
            find(Store(backend, uri=store.uri, deadline_seconds=1))


class TestUnfinishedRun:
    def test_old_run_is_closed_before_anything_of_it_is_deleted(
        self, store: Store, backend: Backend, folder: Path
    ) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        [garbage] = find(store)
        assert (garbage.place, garbage.run_to_close) == ("runs/dead/", "dead")
        assert keys(garbage) == {
            CHECKPOINT,
            "logs/a/000000.jsonl",
            "attempts/a/metrics.json",
            "attempts/a/attempt.json",
        }
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(AGES["now_seconds"] - 8 * DAY))
        assert garbage.reason == f"no result, and no sign of life since {when} UTC"
        backend.writes.clear()

        assert delete_garbage(store, garbage, **AGES) == garbage

        deletes = [f"delete runs/dead/{key}" for key in sorted(keys(garbage))]
        assert backend.writes == ["create runs/dead/COMMIT.json", *deletes]
        assert set(content_of(folder)) == {"runs/dead/run.json", "runs/dead/COMMIT.json"}
        record = json.loads(content_of(folder)["runs/dead/COMMIT.json"])
        assert record.keys() == {"format", "run", "abandoned"}
        assert (record["format"], record["run"]) == (1, "dead")
        assert find(store) == []

    def test_attempt_that_slept_cannot_commit_a_closed_run(self, store: Store, folder: Path) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        collect(store)
        closed = store.get(commit_key("dead"))

        with pytest.raises(
            ConflictError, match=r"^run dead was given up and removed by mnist-job gc at 2.*run\.suffix"
        ):
            commit_run(store, "dead", attempt="a")
        with pytest.raises(ConflictError, match=r"^run dead was given up and removed by mnist-job gc"):
            read_commit(store, "dead")
        assert store.get(commit_key("dead")) == closed

        add(store, "dead", CHECKPOINT, "logs/a/000001.jsonl")
        assert find(store) == []  # what it left is young
        set_age(folder, "", days=8)
        [garbage] = find(store)
        assert garbage.reason == "left over from a run that was given up"
        assert keys(garbage) == {f"attempts/a/{name}" for name in FILES} | {CHECKPOINT, "logs/a/000001.jsonl"}
        assert garbage.run_to_close is None
        delete_garbage(store, garbage, **AGES)
        assert set(content_of(folder)) == {"runs/dead/run.json", "runs/dead/COMMIT.json"}

    @pytest.mark.parametrize("young", ["run.json", CHECKPOINT, "logs/a/000000.jsonl", "attempts/a/attempt.json"])
    def test_run_with_one_young_object_is_left_alone(self, young: str, store: Store, folder: Path) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        set_age(folder, f"runs/dead/{young}", days=6.99)
        assert find(store) == []

    def test_run_that_is_just_being_made_is_left_alone(self, store: Store, folder: Path) -> None:
        (folder / "runs" / "new").mkdir(parents=True)
        assert find(store) == []
        (folder / "runs" / "new" / ".tmp-1-x").write_bytes(b"run.json, half written")
        assert find(store) == []

    def test_run_that_came_to_life_since_it_was_found_is_left_alone(self, store: Store, folder: Path) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        [garbage] = find(store)
        add(store, "dead", "attempts/b/attempt.json")
        before = content_of(folder)
        assert delete_garbage(store, garbage, **AGES) is None
        assert content_of(folder) == before

    def test_run_that_was_committed_since_it_was_found_is_left_alone(self, store: Store, folder: Path) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        [garbage] = find(store)
        commit_run(store, "dead", attempt="b")
        set_age(folder, "", days=8)  # so that only its COMMIT can save it
        before = content_of(folder)
        assert delete_garbage(store, garbage, **AGES) is None
        assert content_of(folder) == before

    def test_commit_that_comes_in_the_very_moment_of_closing_wins(
        self, store: Store, backend: Backend, folder: Path
    ) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        [garbage] = find(store)
        rival = open_store(StoreSection(uri=store.uri), environ={})
        backend.before_create = lambda: commit_run(rival, "dead", attempt="b")
        before = content_of(folder)

        assert delete_garbage(store, garbage, **AGES) is None

        after = content_of(folder)
        assert before.items() <= after.items()
        committed = read_commit(store, "dead")
        assert committed is not None
        assert committed.attempt == "b"

    def test_run_that_was_never_claimed_loses_its_log_and_is_not_closed(self, store: Store, folder: Path) -> None:
        add(store, "refused", "logs/a/000000.jsonl")  # such as a start whose data were corrupt
        set_age(folder, "", days=8)
        [deleted] = collect(store)
        assert deleted is not None
        assert deleted.run_to_close is None
        assert content_of(folder) == {}

    def test_two_collectors_close_it_once(self, store: Store, folder: Path) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        [garbage] = find(store)
        assert abandon(store, "dead")
        closed = store.get(commit_key("dead"))
        assert abandon(store, "dead")
        assert (
            delete_garbage(store, garbage, **AGES) is None
        )  # of the run that is closed already, the next finds the rest
        set_age(folder, "", days=8)
        collect(store)
        assert content_of(folder) == {"runs/dead/run.json": b"data", "runs/dead/COMMIT.json": closed}

    @pytest.mark.parametrize("num_deletes", [0, 1, 2, 3])
    def test_collector_that_was_killed_midway_is_completed_by_the_next(
        self, num_deletes: int, store: Store, backend: Backend, folder: Path
    ) -> None:
        add_unfinished_run(store)
        set_age(folder, "", days=8)
        backend.deletes_left = num_deletes
        with pytest.raises(AccessDeniedError, match="killed here"):
            collect(store)
        assert isinstance(read_run(store, "dead"), ClosedRun)
        assert len(content_of(folder)) == 2 + 4 - num_deletes

        backend.deletes_left = 1000
        collect(store)
        assert set(content_of(folder)) == {"runs/dead/run.json", "runs/dead/COMMIT.json"}
        assert find(store) == []


def test_left_overs_in_s3_are_found_and_deleted(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    store = open_store(
        StoreSection(uri=f"s3://{s3.bucket}/prefix", endpoint=s3.endpoint, region="us-east-1"), environ=s3.env
    )
    add_committed_run(store)
    add_unfinished_run(store)
    assert find(store) == []
    later = {"older_than_seconds": 7 * DAY, "now_seconds": time.time() + 30 * DAY}
    before = {entry.key for entry in store.list_objects("")}

    deleted = [delete_garbage(store, garbage, **later) for garbage in find_garbage(store, **later)]

    dead, done = deleted
    assert dead and dead.run_to_close == "dead"
    assert done and keys(done) == LOST_FILES | {CHECKPOINT}
    gone = {entry.key for garbage in (dead, done) for entry in garbage.entries}
    assert {entry.key for entry in store.list_objects("")} == before - gone | {commit_key("dead")}
    committed = read_commit(store, "done")
    assert committed is not None
    assert all(store.get(file.key) is not None for file in committed.files.values())
    assert list(find_garbage(store, **later)) == []


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "seconds"),
        [
            ([], 7 * DAY),
            (["--older-than=7d"], 7 * DAY),
            (["--older-than", "12h"], DAY / 2),
            (["--older-than=90m"], 5400),
            (["--older-than=1h"], 3600),
            (["--older-than=3600s"], 3600),
            (["--older-than=1.5h"], 5400),
        ],
    )
    def test_ages_come_with_a_unit(self, arguments: list[str], seconds: float) -> None:
        options = parse_command_line(["gc", *arguments]).options
        assert (options.older_than, options.delete) == (seconds, False)

    @pytest.mark.parametrize(
        "age", ["59m", "3599s", "0d", "-8d", "7", "7w", "d", "", "soon", "nand", "infd", "1e999d", "1e308d"]
    )
    def test_ages_below_an_hour_and_what_is_no_age_are_refused(self, age: str) -> None:
        message = f"--older-than: must be an age of at least 1h, such as 7d, 12h or 90m, received {age!r}"
        with pytest.raises(ConfigError, match=message):
            parse_command_line(["gc", f"--older-than={age}"])

    def test_young_age_exits_64_with_one_line(self, run_job: RunJob) -> None:
        done = run_job("gc", "--older-than=10m")
        assert (done.code, done.stdout) == (64, "")
        assert done.stderr.splitlines() == [
            "mnist-job: error 64: argument --older-than: must be an age of at least 1h, such as 7d, 12h or 90m, received "
            "'10m'; see mnist-job gc --help"
        ]

    @pytest.mark.parametrize("step_seconds", [-400 * DAY, -2 * DAY, 0.0, DAY, 400 * DAY])
    def test_a_wrong_clock_of_this_machine_makes_nothing_old(
        self, step_seconds: float, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The store's own clock is right; where this machine's is behind, less is old."""

        class Wrong(clock.Source):
            def now(self) -> float:
                return time.time() + step_seconds

        monkeypatch.setattr(clock, "source", Wrong())
        add_unfinished_run(store, "alive")
        add_unfinished_run(store)
        set_age(folder, "runs/dead", days=8)
        before = content_of(folder)
        line = parse_command_line(["gc", "--delete"])
        assert collect_garbage(line, load_config([f"--store.uri=file:{folder}"])) == 0
        gone = {key for key in before if key not in content_of(folder)}
        assert not any("alive" in key for key in gone)
        assert bool(gone) == (step_seconds >= 0)
        assert not (folder / "checks").exists() or not list((folder / "checks").iterdir())

    def test_listing_is_the_default_and_delete_deletes(self, run_job: RunJob, store: Store, folder: Path) -> None:
        add_committed_run(store)
        add_unfinished_run(store)
        add_committed_run(store, "broken")
        store.put(commit_key("broken"), b"{")
        set_age(folder, "", days=2)
        set_age(folder, "runs/dead", days=8)
        before = content_of(folder)

        dry = run_job("gc")
        assert (dry.code, content_of(folder)) == (0, before)
        uri = f"file:{folder.resolve()}"
        [found, total] = dry.stdout.splitlines()
        assert found.startswith("runs/dead/: 4 objects, 12 bytes: no result, and no sign of life since 2")
        assert total == f"gc of {uri}: dry run, nothing deleted; --delete would delete 4 objects, 12 bytes"
        [warning] = [json.loads(line) for line in dry.stderr.splitlines()]
        assert (warning["event"], warning["run_of_skipped"]) == ("gc.skipped", "broken")

        left_over = folder / "runs/done/.tmp-1-0123456789abcdef"
        left_over.write_bytes(b"half")
        set_age(folder, "runs/done/.tmp-1-0123456789abcdef", days=1)
        deleted = run_job("gc", "--older-than=1d", "--delete")
        assert deleted.code == 0
        assert not left_over.exists()
        assert deleted.stdout.splitlines() == [
            found,
            "runs/done/: 7 objects, 32 bytes: not part of the committed result",
            f"gc of {uri}: deleted 11 objects, 44 bytes",
        ]
        assert set(before) - set(content_of(folder)) == {
            *(f"runs/done/{key}" for key in LOST_FILES | {CHECKPOINT}),
            *(key for key in before if key.startswith("runs/dead/") and key != "runs/dead/run.json"),
        }
        rows = json.loads(run_job("runs", "-o", "json").stdout)
        states = {"broken": "damaged", "dead": "abandoned", "done": "committed"}
        assert {row["run"]: row["state"] for row in rows} == states
        shown = run_job("show", "dead")
        assert (shown.code, shown.stdout) == (73, "")


@pytest.mark.tf
def test_run_that_was_given_up_is_refused_for_good(run_job: RunJob, tmp_path: Path) -> None:
    flags = [*QUICK, "--train.epochs=30", "--run.id=r", "--checkpoint.interval_seconds=0.2"]
    code, _ = run_until(
        tmp_path, lambda event: event["event"] == "checkpoint.saved", flags=flags, signals=[signal.SIGKILL]
    )
    assert code == -signal.SIGKILL
    set_age(tmp_path / "out", "", days=8)
    collected = run_job("gc", "--delete")
    assert collected.code == 0, collected.stderr
    assert {key for key in content_of(tmp_path / "out") if ".tmp-" not in key} == {
        "runs/r/run.json",
        "runs/r/COMMIT.json",
    }

    done = run_job("run", *flags)

    assert (done.code, len(done.error.splitlines())) == (73, 1)
    assert "run r was given up and removed by mnist-job gc at 2" in done.error
    assert "choose another run.id" in done.error
    assert "train.start" not in [event["event"] for event in done.events]
    [row] = json.loads(run_job("runs", "-o", "json").stdout)
    assert (row["run"], row["state"]) == ("r", "abandoned")
