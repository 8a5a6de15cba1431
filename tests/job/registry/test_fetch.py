"""The champion in a local folder: whole or absent at every point, the newest versions, and what a reader is told."""

import json
import os
import time
from pathlib import Path

import pytest

from job.config import StoreSection
from job.errors import IntegrityError, NotFoundError
from job.registry import champion
from job.registry.champion import Move
from job.registry.fetch import fetch_champion
from job.registry.retention import remove_runs
from job.registry.serving import finish_layout
from job.runs.read import CommittedRun
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import RunJob
from tests.job.registry.test_serving import MODEL, Killed, promote


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{tmp_path / 'out'}", deadline_seconds=2), environ={})


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_of(run: str) -> dict[str, bytes]:
    return {"saved_model.pb": b"graph", "variables/variables.data": f"weights of {run}".encode()}


def test_champion_comes_whole_and_once(store: Store, tmp_path: Path) -> None:
    promote(store, "a")
    brought = fetch_champion(store, MODEL, tmp_path / "served", keep=2)
    assert brought
    assert (brought.version, brought.run) == (1, "a")
    assert content_of(tmp_path / "served" / "1") == model_of("a")
    assert fetch_champion(store, MODEL, tmp_path / "served", keep=2) is None


def test_newest_versions_stay_and_foreign_names_too(store: Store, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "readme").write_text("mine")
    for run in ("a", "b", "c"):
        promote(store, run)
        fetch_champion(store, MODEL, served, keep=2)
    assert sorted(os.listdir(served)) == ["2", "3", "readme"]
    assert content_of(served / "3") == model_of("c")


def test_killed_at_any_point_the_folder_holds_whole_versions_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, killed_at = 0, []
    promote(store, "a")
    promote(store, "b")
    while True:
        served = tmp_path / f"served-{number}"
        seen: list[str] = []
        (served / "1" / "variables").mkdir(parents=True)
        for name, data in model_of("a").items():
            (served / "1" / name).write_bytes(data)

        def kill(point: str, number: int = number, seen: list[str] = seen) -> None:
            seen.append(point)
            if len(seen) > number:
                raise Killed(point)

        monkeypatch.setattr("job.store.backend.on_point", kill)
        # What a kill leaves: nobody tidies up.
        monkeypatch.setattr("job.registry.fetch.shutil.rmtree", lambda path, ignore_errors: None)
        try:
            fetch_champion(store, MODEL, served, keep=1)
        except Killed as point:
            killed_at.append(str(point))
        finally:
            monkeypatch.undo()
        for version in (path for path in served.iterdir() if path.name.isdecimal()):
            assert content_of(version) == model_of({"1": "a", "2": "b"}[version.name])
        fetch_champion(store, MODEL, served, keep=1)
        assert content_of(served / "2") == model_of("b")
        number += 1
        if len(seen) < number:
            break
    assert len(killed_at) > 8


def test_old_left_overs_of_killed_fetches_are_swept(store: Store, tmp_path: Path) -> None:
    promote(store, "a")
    for name, age_seconds in ((".tmp-old", 7200), (".tmp-young", 60)):
        left = tmp_path / "served" / name
        left.mkdir(parents=True)
        os.utime(left, (time.time() - age_seconds,) * 2)
    fetch_champion(store, MODEL, tmp_path / "served", keep=2)
    assert sorted(os.listdir(tmp_path / "served")) == [".tmp-young", "1"]


def test_damaged_champion_is_not_brought(store: Store, tmp_path: Path) -> None:
    promote(store, "a")
    store.put("runs/a/attempts/a/model/variables/variables.data", b"weights of b")
    with pytest.raises(IntegrityError, match=r"variables\.data is not the object that was committed"):
        fetch_champion(store, MODEL, tmp_path / "served", keep=2)
    assert not (tmp_path / "served").exists()


def test_without_a_champion_it_says_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"model plain has no champion in file:.*; see mnist-job runs"):
        fetch_champion(store, MODEL, tmp_path, keep=2)


class TestCommand:
    def test_fetch_brings_the_only_model_and_finishes_its_layout(
        self, run_job: RunJob, store: Store, tmp_path: Path
    ) -> None:
        assert run_job("fetch", "--to=served").code == 66
        promote(store, "a")
        done = run_job("fetch", "--to=served")
        assert (done.code, done.stdout) == (0, "served/1: run a, accuracy 0.9000\n")
        assert content_of(tmp_path / "served" / "1") == model_of("a")
        assert content_of(tmp_path / "out" / "models" / "plain" / "versions" / "1") == model_of("a")
        again = run_job("fetch", "--to=served")
        assert (again.code, again.stdout) == (0, "served: the champion is there already\n")

    def test_reader_who_may_not_write_gets_the_model_and_a_warning(
        self, run_job: RunJob, store: Store, tmp_path: Path
    ) -> None:
        pointer = promote(store, "a")
        blocked = tmp_path / "out" / "models" / "plain" / "versions"
        blocked.write_text("a file where a folder has to be")  # root may write anywhere
        done = run_job("fetch", "--to=served")
        assert done.code == 0
        assert "layout.not_finished" in done.stderr
        assert content_of(tmp_path / "served" / "1") == model_of("a")
        blocked.unlink()
        finish_layout(store, pointer)

    def test_every_goes_on_over_errors_until_it_is_stopped(self, store: Store, tmp_path: Path) -> None:
        import subprocess

        from tests.conftest import job_command, job_environment

        command = job_command(["fetch", "--to=served", "--every=0.1", "--store.uri=file:./out"])
        environment = job_environment({"PYTHONPATH": str(Path.cwd())})
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as fetching:
            assert fetching.stderr
            warned = json.loads(fetching.stderr.readline())
            assert (warned["event"], warned["again_in_seconds"]) == ("fetch.failed", 0.1)
            for run in ("a", "b"):
                promote(store, run)
                assert fetching.stdout
                assert f"run {run}, accuracy 0.9000" in fetching.stdout.readline()
            fetching.terminate()
            fetching.communicate(timeout=30)
        assert fetching.returncode == 75
        assert content_of(tmp_path / "served" / "2") == model_of("b")


def test_retention_during_a_fetch_brings_the_next_champion(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion that was read is replaced, and its run removed, before its files are read."""
    promote(store, "first")  # stays, because candidates are compared with it
    promote(store, "a")
    original = champion.commit_of
    moved: list[str] = []

    def read_late(own: Store, pointer: Move) -> CommittedRun:
        if not moved:
            moved.append(promote(store, "b").run)
            remove_runs(store, ["a"], keep_versions=1)
        return original(own, pointer)

    monkeypatch.setattr("job.registry.champion.commit_of", read_late)
    brought = fetch_champion(store, MODEL, tmp_path / "served", keep=2)
    assert brought
    assert (brought.run, moved) == ("b", ["b"])
