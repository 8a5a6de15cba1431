"""The champion in a local folder: whole or absent at every point, the newest versions, and what a reader is told."""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.config import StoreSection
from job.errors import ConflictError, IntegrityError, JobError, NotFoundError, UnavailableError
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
    assert sorted(os.listdir(served)) == [".mnist-job", "2", "3", "readme"]
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
    for name, age_seconds in ((".tmp-1-0123456789abcdef", 7200), (".tmp-2-0123456789abcdef", 60), (".tmp-mine", 7200)):
        left = tmp_path / "served" / name
        left.mkdir(parents=True)
        os.utime(left, (time.time() - age_seconds,) * 2)
    fetch_champion(store, MODEL, tmp_path / "served", keep=2)
    assert sorted(os.listdir(tmp_path / "served")) == [".mnist-job", ".tmp-2-0123456789abcdef", ".tmp-mine", "1"]


def test_damaged_champion_is_not_brought(store: Store, tmp_path: Path) -> None:
    promote(store, "a")
    store.put("runs/a/attempts/a/model/variables/variables.data", b"weights of b")
    with pytest.raises(IntegrityError, match=r"variables\.data is not the object that was committed"):
        fetch_champion(store, MODEL, tmp_path / "served", keep=2)
    assert not (tmp_path / "served").exists()


FOREIGN = [
    "000001",
    "0",
    "v3",
    "3.bak",
    "-3",
    "٣",
    "1e3",
    "0x10",
    "1 2",
    ".DS_Store",
    "@eaDir",
    "lost+found",
    "Thumbs.db",
]


def put_version(folder: Path, *, run: str = "mine") -> Path:
    for name, data in model_of(run).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", FOREIGN)
def test_names_that_are_no_version_are_never_touched(store: Store, tmp_path: Path, name: str) -> None:
    served = tmp_path / "served"
    put_version(served / name)
    for number, run in enumerate(("a", "b", "c"), start=1):
        promote(store, run)
        brought = fetch_champion(store, MODEL, served, keep=1)
        assert brought
        assert brought.version == number
    assert content_of(served / name) == model_of("mine")
    assert sorted(os.listdir(served)) == sorted([".mnist-job", "3", name])


@pytest.mark.parametrize("name", ["3", "2", "0000002", "99", "+7", " 8", "9 ", "1 ", str(2**63 - 1)])
@pytest.mark.parametrize("is_folder", [True, False])
def test_what_a_server_would_load_instead_is_an_error_and_the_champion_is_there(
    store: Store, tmp_path: Path, name: str, is_folder: bool
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    put_version(served / name) if is_folder else (served / name).touch()
    promote(store, "a")
    for _ in range(2):
        with pytest.raises(
            ConflictError, match=rf"^--to .*: '{re.escape(name)}' is there, and is no champion of plain"
        ):
            fetch_champion(store, MODEL, served, keep=1)
        assert content_of(served / "1") == model_of("a")
        assert (served / name).exists()


def test_version_that_a_later_move_brought_meanwhile_is_no_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion moves, and a quicker fetch brings the next one, while this one is still writing."""
    promote(store, "a")
    served = tmp_path / "served"
    moved: list[object] = []

    def overtake(point: str) -> None:
        if point == "before rename 1" and not moved:
            moved.append(promote(store, "b"))
            fetch_champion(store, MODEL, served, keep=1)

    monkeypatch.setattr("job.store.backend.on_point", overtake)
    brought = fetch_champion(store, MODEL, served, keep=1)
    assert brought
    assert brought.version == 1
    assert content_of(served / "2") == model_of("b")


def _alter(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"grapj")


def _cut(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"gra")


def _empty(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"")


def _lose(version: Path) -> None:
    (version / "variables" / "variables.data").unlink()


def _make_folder_of_file(version: Path) -> None:
    (version / "saved_model.pb").unlink()
    (version / "saved_model.pb").mkdir()


def _make_file_of_folder(version: Path) -> None:
    shutil.rmtree(version / "variables")
    (version / "variables").write_text("")


DAMAGES = [_alter, _cut, _empty, _lose, _make_folder_of_file, _make_file_of_folder]


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_version_with_other_content_is_brought_again_and_kept_aside(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    can_exchange: bool,
) -> None:
    """A model of the user's own, or one of another store, that has the champion's number."""
    if not can_exchange:
        monkeypatch.setattr("job.registry.fetch._exchange", lambda one, other: False)
    promote(store, "a")
    served = tmp_path / "served"
    damage(put_version(served / "1", run="a"))
    assert fetch_champion(store, MODEL, served, keep=1)
    assert content_of(served / "1") == model_of("a")
    [aside] = served.glob("replaced-1-*")
    assert content_of(aside) != model_of("a")
    assert "a server that has loaded it must be started again" in str(vars(caplog.records[0]))
    damage(served / "1")  # what was fetched and spoilt since is the user's now
    assert fetch_champion(store, MODEL, served, keep=1)
    assert content_of(served / "1") == model_of("a")
    assert len([*served.glob("replaced-1-*")]) == 2
    assert fetch_champion(store, MODEL, served, keep=1) is None
    assert not [*served.glob(".tmp-*")]


def test_version_of_another_store_makes_room(store: Store, tmp_path: Path) -> None:
    other = open_store(StoreSection(uri=f"file:{tmp_path / 'other'}", deadline_seconds=2), environ={})
    served = tmp_path / "served"
    promote(store, "a")
    promote(other, "b")
    fetch_champion(store, MODEL, served, keep=1)
    assert fetch_champion(other, MODEL, served, keep=1)
    assert content_of(served / "1") == model_of("b")
    assert sorted(os.listdir(served)) == [".mnist-job", "1"]


@pytest.mark.parametrize("kind", ["file", "dangling", "link", "empty"])
def test_anything_under_the_champions_number_is_replaced(store: Store, tmp_path: Path, kind: str) -> None:
    promote(store, "a")
    served, mine = tmp_path / "served", put_version(tmp_path / "mine")
    served.mkdir()
    if kind == "file":
        (served / "1").write_text("mine")
    elif kind == "empty":
        (served / "1").mkdir()
    else:
        (served / "1").symlink_to(mine if kind == "link" else tmp_path / "nowhere")
    assert fetch_champion(store, MODEL, served, keep=1)
    assert content_of(served / "1") == model_of("a")
    assert len([*served.glob("replaced-1-*")]) == (kind != "empty")
    assert content_of(mine) == model_of("mine")


def test_other_files_in_a_version_make_no_other_model_of_it(store: Store, tmp_path: Path) -> None:
    promote(store, "a")
    served = tmp_path / "served"
    fetch_champion(store, MODEL, served, keep=1)
    for name in (".DS_Store", "assets.extra/tf_serving_warmup_requests", "variables/Thumbs.db"):
        (served / "1" / name).parent.mkdir(exist_ok=True)
        (served / "1" / name).write_text("mine")
    assert fetch_champion(store, MODEL, served, keep=1) is None


def test_only_what_was_fetched_is_removed(store: Store, tmp_path: Path) -> None:
    served = tmp_path / "served"
    for run in ("a", "b", "c", "d", "e"):
        promote(store, run)
    put_version(served / "1")  # of the user
    put_version(served / "2", run="b")  # the committed files, and no record that says who brought them
    (served / "3").symlink_to(put_version(tmp_path / "elsewhere", run="c"))
    (served / "4").write_text("mine")
    assert fetch_champion(store, MODEL, served, keep=1)
    assert sorted(os.listdir(served)) == [".mnist-job", "1", "2", "3", "4", "5"]
    promote(store, "f")
    (served / "5" / "saved_model.pb").write_bytes(b"changed by hand")
    assert fetch_champion(store, MODEL, served, keep=1)
    assert sorted(os.listdir(served)) == [".mnist-job", "1", "2", "3", "4", "5", "6"]


DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in model_of("mine").items()}
LIES: dict[str, object] = {
    "no JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "empty": b"",
    "nested": b"[" * 1000,
    "too long": b" " * 5_000_000,
    "nothing": {},
    "no files": {"model": MODEL, "files": {}},
    "not the graph": {"notes.txt": DIGESTS["saved_model.pb"]},
    "another digest": {**DIGESTS, "saved_model.pb": "0" * 64},
    "a digest that is none": {**DIGESTS, "saved_model.pb": 1},
    "more files": {**DIGESTS, "assets/a": "0" * 64},
    "up": {**DIGESTS, "../3/saved_model.pb": DIGESTS["saved_model.pb"]},
    "absolute": {**DIGESTS, "/etc/hostname": hashlib.sha256(Path("/etc/hostname").read_bytes()).hexdigest()},
    "NUL": {**DIGESTS, "a\0b": "0" * 64},
    "a dot": {"saved_model.pb": DIGESTS["saved_model.pb"], "./variables/../saved_model.pb": DIGESTS["saved_model.pb"]},
    "another model": {"model": "another", "files": {**DIGESTS, "saved_model.pb": "0" * 64}},
}


@pytest.mark.security("S6")
@pytest.mark.parametrize("lie", LIES)
def test_record_that_lies_removes_nothing(store: Store, tmp_path: Path, lie: str) -> None:
    served = tmp_path / "served"
    for name in ("1", "2", "3"):
        put_version(served / name)
    (served / ".mnist-job").mkdir()
    record = LIES[lie]
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    for name in ("1", "2"):
        (served / ".mnist-job" / f"{name}.json").write_bytes(data)
    for run in ("a", "b", "c", "d"):
        promote(store, run)
    assert fetch_champion(store, MODEL, served, keep=1)
    assert [content_of(served / name) for name in ("1", "2", "3")] == [model_of("mine")] * 3
    assert content_of(served / "4") == model_of("d")


@pytest.mark.security("S6")
@pytest.mark.parametrize("part", ["records", "record", "version", "graph", "folder in it"])
def test_links_below_the_folder_are_not_followed(store: Store, tmp_path: Path, part: str) -> None:
    """Version 1 was fetched; then a part of it is moved away and a link put in its place."""
    served = tmp_path / "served"
    promote(store, "a")
    fetch_champion(store, MODEL, served, keep=1)
    path = (
        served
        / {
            "records": ".mnist-job",
            "record": ".mnist-job/1.json",
            "version": "1",
            "graph": "1/saved_model.pb",
            "folder in it": "1/variables",
        }[part]
    )
    moved = path.rename(tmp_path / "moved")
    path.symlink_to(moved)
    before = content_of(moved) if moved.is_dir() else moved.read_bytes()
    promote(store, "b")
    if part == "records":
        with pytest.raises(
            IntegrityError, match=r"^--to \S+: \.mnist-job is a link to .*; no links are followed there"
        ):
            fetch_champion(store, MODEL, served, keep=1)
        assert sorted(os.listdir(served)) == [".mnist-job", "1"]
    else:
        assert fetch_champion(store, MODEL, served, keep=1)
    assert path.is_symlink()
    assert (content_of(moved) if moved.is_dir() else moved.read_bytes()) == before


@pytest.mark.security("S6")
def test_link_in_the_place_of_the_record_is_refused_and_not_written_through(store: Store, tmp_path: Path) -> None:
    promote(store, "a")
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "served" / ".mnist-job").mkdir(parents=True)
    (tmp_path / "served" / ".mnist-job" / "1.json").symlink_to(tmp_path / "precious")
    with pytest.raises(IntegrityError, match=r"\.mnist-job/1\.json is a link to .*/precious'"):
        fetch_champion(store, MODEL, tmp_path / "served", keep=1)
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert os.listdir(tmp_path / "served") == [".mnist-job"]


@pytest.mark.security("S6")
def test_pipes_in_the_folder_make_nobody_wait(store: Store, tmp_path: Path) -> None:
    served = tmp_path / "served"
    for run in ("a", "b"):
        promote(store, run)
    (served / ".mnist-job").mkdir(parents=True)
    (served / "1").mkdir()
    (served / "2").mkdir()
    for name in (".mnist-job/1.json", "1/saved_model.pb", "2/saved_model.pb"):
        os.mkfifo(served / name)
    assert fetch_champion(store, MODEL, served, keep=1)
    assert sorted(name.partition("-")[0] for name in os.listdir(served)) == [".mnist", "1", "2", "replaced"]


@pytest.mark.security("S6")
def test_years_beside_the_versions_stay_with_the_version_just_brought(store: Store, tmp_path: Path) -> None:
    served = tmp_path / "served"
    for year in range(2019, 2024):
        put_version(served / str(year))
    for run in ("a", "b"):
        promote(store, run)
        with pytest.raises(ConflictError, match=r"'2023' is there, and is no champion"):
            fetch_champion(store, MODEL, served, keep=1)
    assert [content_of(served / str(year)) for year in range(2019, 2024)] == [model_of("mine")] * 5
    assert content_of(served / "2") == model_of("b")


@pytest.mark.security("S6")
def test_files_that_somebody_put_into_a_fetched_version_are_kept(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = tmp_path / "served"
    promote(store, "a")
    fetch_champion(store, MODEL, served, keep=1)
    (served / "1" / "variables" / "notes").write_text("mine")
    (served / "1" / "link").symlink_to(served)
    promote(store, "b")
    fetch_champion(store, MODEL, served, keep=1)
    [kept] = served.glob("replaced-1-*")
    assert sorted(path.name for path in kept.rglob("*")) == ["link", "notes", "variables"]
    assert (kept / "variables" / "notes").read_text() == "mine"
    assert sorted(os.listdir(served)) == [".mnist-job", "2", kept.name]
    assert os.listdir(served / ".mnist-job") == ["2.json"]
    assert [record.getMessage() for record in caplog.records] == ["fetch.kept"]


@pytest.mark.security("S6")
def test_folder_of_another_model_is_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    other, served = "another", tmp_path / "served"
    promote(store, "a")
    promote(store, "x", model=other)
    fetch_champion(store, MODEL, served, keep=1)
    before = content_of(served)
    with pytest.raises(
        ConflictError,
        match=r"^--to \S+: version 1 there was fetched of model plain; a folder serves one model: choose another folder",
    ):
        fetch_champion(store, other, served, keep=1)
    assert content_of(served) == before


@pytest.mark.security("S3")
@pytest.mark.parametrize("name", ["a\0b", "n" * 300])
def test_committed_name_that_no_file_can_have_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    promote(store, "a")
    monkeypatch.setattr("job.runs.read.model_digests", lambda run: {name: "0" * 64})
    monkeypatch.setattr("job.runs.read.read_model", lambda store, run: {name: b""})
    with pytest.raises(JobError, match=r"is no file below a folder|File name too long"):
        fetch_champion(store, MODEL, tmp_path / "served", keep=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("a file"), "Not a directory|File exists"),
        (lambda path: path.symlink_to("nowhere/at/all"), "File exists"),
        (lambda path: path.symlink_to(path), "Too many levels|File exists"),
    ],
)
def test_folder_that_cannot_be_is_an_error_with_its_name(
    store: Store, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    promote(store, "a")
    make(tmp_path / "served")
    with pytest.raises(NotFoundError, match=rf"^--to .*served: .*({message}); name a folder that"):
        fetch_champion(store, MODEL, tmp_path / "served", keep=1)


def test_full_disk_is_an_error_that_a_later_fetch_may_not_have(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    promote(store, "a")
    with monkeypatch.context() as patched:
        patched.setattr("job.registry.fetch._write", full)
        with pytest.raises(UnavailableError, match="No space left on device; make room") as raised:
            fetch_champion(store, MODEL, tmp_path / "served", keep=1)
    assert isinstance(raised.value, JobError), "fetch --every goes on over it"
    assert fetch_champion(store, MODEL, tmp_path / "served", keep=1)


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
