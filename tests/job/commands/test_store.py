"""store check and gc in real processes: each says what it did, and fails when it did nothing of it."""

import os
from pathlib import Path

import pytest

from job.config import StoreSection
from job.errors import NotFoundError
from job.registry.garbage import delete_garbage, find_garbage
from job.store.backend import Entry
from job.store.folder import FolderBackend
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import RunJob
from tests.job.store.s3_faults import BUCKET, Fault, FaultyS3, reply, serve

ENV = {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"}


def settings(server: FaultyS3) -> tuple[str, ...]:
    return (
        f"--store.uri=s3://{BUCKET}/prefix",
        f"--store.endpoint={server.endpoint}",
        "--store.region=x",
        "--store.deadline_seconds=2",
    )


def test_check_does_every_verb_and_leaves_nothing(run_job: RunJob) -> None:
    with serve() as server:
        done = run_job("store", "check", *settings(server), env=ENV)
        assert (done.code, server.objects) == (0, {})
        assert server.requests == ["PUT", "GET", "GET", "PUT", "POST", "GET"]
    assert (
        done.stdout
        == f"s3://{BUCKET}/prefix: create, read, list and delete work; a second create-only write is refused\n"
    )


@pytest.mark.parametrize(
    ("plan", "code", "words", "left"),
    [
        ({"PUT": [reply(403, "AccessDenied")]}, 77, "access denied: AccessDenied", 0),
        ({"GET": [reply(403, "AccessDenied", "no reading")]}, 77, "no reading", 1),
        ({"GET": [None, reply(403, "AccessDenied", "no listing")]}, 77, "no listing", 1),
        ({"POST": [reply(403, "AccessDenied", "no deleting")]}, 77, "no deleting", 1),
        ({"GET": [reply(200, "stale")]}, 65, "does not hold what was written", 0),
        ({"GET": [None, reply(200, "stale")]}, 66, "does not list checks/", 0),
        ({"GET": [None, None, reply(200, "stale")]}, 66, "is still there after it was deleted", 0),
    ],
)
def test_check_says_which_verb_fails_and_says_it_once(
    plan: dict[str, list[Fault | None]], code: int, words: str, left: int, run_job: RunJob
) -> None:
    with serve() as server:
        server.plan = plan
        done = run_job("store", "check", *settings(server), env=ENV)
        assert (done.code, len(server.objects)) == (code, left), done.error
    assert words in done.error
    assert done.error.count("\n") == 0


def test_check_of_a_store_that_is_away_waits_for_one_deadline(dead_port: int, run_job: RunJob) -> None:
    away = FaultyS3(endpoint=f"http://127.0.0.1:{dead_port}")
    done = run_job("store", "check", *settings(away), env=ENV)
    assert done.code == 69
    assert "create checks/" in done.error and "Connection refused" in done.error


class KeepsEverything(FolderBackend):
    """Says that it deletes, as a bucket under a lock does."""

    def delete(self, key: str) -> None:
        pass

    def list_objects(self, prefix: str) -> list[Entry]:
        return [
            Entry(key=entry.key, num_bytes=entry.num_bytes, modified_seconds=0.0)
            for entry in super().list_objects(prefix)
        ]


def test_gc_that_deletes_nothing_of_what_it_says_fails(tmp_path: Path) -> None:
    store = Store(KeepsEverything(tmp_path), uri=f"file:{tmp_path}", deadline_seconds=5)
    store.create("checks/0123456789abcdef", b"data")
    ages = {"older_than_seconds": 1.0, "now_seconds": 100.0}
    [garbage] = find_garbage(store, **ages)
    with pytest.raises(
        NotFoundError, match=r"1 objects are still listed after they were deleted, such as checks/0123456789abcdef; see"
    ):
        delete_garbage(store, garbage, **ages)


def test_gc_says_what_it_did_and_that_there_was_nothing(tmp_path: Path, run_job: RunJob) -> None:
    store = open_store(StoreSection(uri=f"file:{tmp_path / 'out'}"), environ={})
    store.create("checks/0123456789abcdef", b"data")
    os.utime(tmp_path / "out" / "checks" / "0123456789abcdef", (0, 0))
    said = [
        run_job("gc", "--older-than=1h", *flags).stdout.splitlines()[-1] for flags in ((), ("--delete",), ("--delete",))
    ]
    assert [line.partition(": ")[2] for line in said[:2]] == [
        "dry run, nothing deleted; --delete would delete 1 objects, 4 bytes",
        "deleted 1 objects, 4 bytes",
    ]
    assert said[2].endswith("deleted 0 objects, 0 bytes")
