"""Claiming a run, writing an attempt's objects once, and the one COMMIT."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from job.config import StoreSection
from job.contract import attempt_prefix, commit_key, run_key
from job.digests import canonical_json, sha256_hex
from job.errors import ConflictError, IntegrityError, NotFoundError
from job.runs.read import CommittedRun, StoredFile, check_same_result, parse_object, parse_run, read_commit, read_files
from job.runs.write import begin_run, commit, upload
from job.store.folder import FolderBackend
from job.store.open import open_store
from job.store.store import Store

RUN, ATTEMPT = "namespace.name-1", "attempt-1"
INPUTS = {"train": {"epochs": 3, "optimizer": "sgd"}, "seed": 1, "dataset_digest": "d"}
FILES = {"model/saved_model.pb": b"graph", "metrics.json": b"{}", "empty": b""}


def claim(store: Store, inputs: dict[str, Any] | None = None, *, run_id: str = RUN) -> str:
    return begin_run(store, run_id, inputs=INPUTS if inputs is None else inputs, config={"any": "thing"})


class TestBeginRun:
    def test_first_claim_records_what_decides_the_result(self, store: Store) -> None:
        digest = claim(store)
        assert digest == sha256_hex(canonical_json(INPUTS))
        record = store.get(run_key(RUN))
        assert record is not None
        recorded = json.loads(record)
        assert abs(datetime.fromisoformat(recorded.pop("created")).timestamp() - time.time()) < 60
        assert recorded == {
            "format": 1,
            "result_digest": digest,
            "inputs": INPUTS,
            "config": {"any": "thing"},
        }

    def test_second_claim_of_equal_inputs_agrees_and_changes_nothing(self, store: Store) -> None:
        digest = claim(store)
        before = store.get(run_key(RUN))
        assert begin_run(store, RUN, inputs=dict(reversed(INPUTS.items())), config={"other": "node"}) == digest
        assert store.get(run_key(RUN)) == before

    @pytest.mark.parametrize(
        ("inputs", "difference"),
        [
            (INPUTS | {"seed": 2}, r"\(seed was 1, is 2\)"),
            (INPUTS | {"train": {"epochs": 5, "optimizer": "sgd"}}, r"\(train\.epochs was 3, is 5\)"),
            (INPUTS | {"train": {"epochs": 3}}, r"\(train\.optimizer was 'sgd', is None\)"),
            (INPUTS | {"dataset_digest": "e", "seed": 2}, r"\(dataset_digest was 'd', is 'e'; seed was 1, is 2\)"),
        ],
    )
    def test_claim_of_other_inputs_names_the_setting(
        self, inputs: dict[str, Any], difference: str, store: Store
    ) -> None:
        claim(store)
        before = store.get(run_key(RUN))
        with pytest.raises(
            ConflictError,
            match=rf"^run {RUN} exists with another result digest {difference}; choose another run\.id \(or run\.suffix",
        ):
            claim(store, inputs)
        assert store.get(run_key(RUN)) == before

    def test_claim_of_a_record_without_inputs_is_a_conflict(self, store: Store) -> None:
        store.put(run_key(RUN), b'{"result_digest": "older"}')
        with pytest.raises(ConflictError, match=r"\(its settings are not recorded\)"):
            claim(store)

    def test_damaged_record_is_refused(self, store: Store) -> None:
        store.put(run_key(RUN), b'{"result_digest": ')
        with pytest.raises(IntegrityError, match=rf"store: {run_key(RUN)} is not JSON"):
            claim(store)

    def test_store_without_conditional_writes_is_refused(self, tmp_path: Path) -> None:
        class Careless(FolderBackend):
            create = FolderBackend.put

        careless = Store(Careless(tmp_path), uri="file:careless", deadline_seconds=2)
        with pytest.raises(
            NotFoundError,
            match=rf"store file:careless does not honour conditional writes: .*{run_key(RUN)} was accepted",
        ):
            claim(careless)


class TestUpload:
    def test_files_are_stored_once_with_size_and_hash(self, store: Store) -> None:
        stored = upload(store, RUN, attempt_id=ATTEMPT, files=FILES)
        prefix = attempt_prefix(RUN, attempt_id=ATTEMPT)
        assert stored == [
            StoredFile(key=prefix + name, num_bytes=len(FILES[name]), sha256=sha256_hex(FILES[name]))
            for name in sorted(FILES)
        ]
        assert {name: store.get(prefix + name) for name in FILES} == FILES
        assert upload(store, RUN, attempt_id=ATTEMPT, files=FILES) == stored

    def test_other_content_under_the_name_is_refused_and_stands(self, store: Store) -> None:
        upload(store, RUN, attempt_id=ATTEMPT, files=FILES)
        key = attempt_prefix(RUN, attempt_id=ATTEMPT) + "metrics.json"
        with pytest.raises(ConflictError, match=rf"{key} was written before with other content; start a new attempt"):
            upload(store, RUN, attempt_id=ATTEMPT, files=FILES | {"metrics.json": b"[]"})
        assert store.get(key) == b"{}"


def content(*, attempt: str = ATTEMPT, result: str = "r", weights: str = "w") -> dict[str, Any]:
    return {
        "run": RUN,
        "attempt": attempt,
        "result_digest": result,
        "weights_digest": weights,
        "dataset": {"name": "plain"},
        "metrics": {"test_accuracy": 0.5},
        "files": [],
    }


def read(store: Store) -> CommittedRun:
    committed = read_commit(store, RUN)
    assert committed
    return committed


class TestCommit:
    def test_first_commit_stands(self, store: Store) -> None:
        assert read_commit(store, RUN) is None
        assert commit(store, RUN, content=content()).record == content()
        assert read(store).record == content()

    def test_second_equal_commit_returns_the_first(self, store: Store, caplog: pytest.LogCaptureFixture) -> None:
        commit(store, RUN, content=content())
        assert commit(store, RUN, content=content(attempt="attempt-2")).record == content()
        assert caplog.records == []

    def test_other_weights_are_a_warning_and_the_first_stands(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        commit(store, RUN, content=content())
        assert commit(store, RUN, content=content(attempt="attempt-2", weights="v")).record == content()
        assert [record.getMessage() for record in caplog.records] == ["commit.other_weights"]
        fields = caplog.records[0].__dict__["fields"]
        assert (fields["committed"], fields["ours"]) == ("w", "v")

    def test_commit_of_another_result_is_refused_and_the_first_stands(self, store: Store) -> None:
        commit(store, RUN, content=content())
        with pytest.raises(ConflictError, match=rf"^run {RUN} is committed with another result digest \(r\.\.\.\)"):
            commit(store, RUN, content=content(result="s"))
        assert read(store).record == content()

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"metrics": None}, "its metrics should be"),
            ({"metrics": {}}, "it lacks metrics.test_accuracy"),
            ({"run": "another"}, "it is of run 'another'"),
            (
                {"files": [{"key": f"runs/{RUN}/attempts/attempt-3/a", "num_bytes": 1, "sha256": "x"}]},
                "its files are not",
            ),
            ({"files": [{"key": f"runs/{RUN}/attempts/attempt-1/../a", "num_bytes": 1, "sha256": "x"}]}, "its files"),
            ({"files": None}, "its files should be a valid list, received None"),
        ],
    )
    def test_damaged_commit_is_refused(self, change: dict[str, Any], reason: str, store: Store) -> None:
        store.create(f"runs/{RUN}/COMMIT.json", json.dumps(content() | change).encode())
        with pytest.raises(IntegrityError, match=reason):
            read_commit(store, RUN)

    @pytest.mark.parametrize("results", [("r", "r"), ("r", "s")])
    def test_two_commits_at_once_leave_one(self, results: tuple[str, str], tmp_path: Path) -> None:
        outcomes: dict[str, CommittedRun | ConflictError] = {}
        barrier = threading.Barrier(2)

        def run(attempt: str, result: str) -> None:
            own = open_store(StoreSection(uri=f"file:{tmp_path}"), environ={})
            barrier.wait()
            try:
                outcomes[attempt] = commit(own, RUN, content=content(attempt=attempt, result=result))
            except ConflictError as error:
                outcomes[attempt] = error

        threads = [threading.Thread(target=run, args=(f"attempt-{i}", result)) for i, result in enumerate(results)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorded = read(open_store(StoreSection(uri=f"file:{tmp_path}"), environ={}))
        assert outcomes[recorded.attempt] == recorded
        loser = next(outcome for attempt, outcome in outcomes.items() if attempt != recorded.attempt)
        if results[0] == results[1]:
            assert loser == recorded
        else:
            assert isinstance(loser, ConflictError)

    def test_commit_that_is_no_json_is_refused(self, store: Store) -> None:
        store.put(commit_key(RUN), b"\x00\xff")
        with pytest.raises(IntegrityError, match=rf"store: {commit_key(RUN)} is not JSON"):
            read_commit(store, RUN)
        with pytest.raises(IntegrityError, match=rf"store: {commit_key(RUN)} is not JSON"):
            commit(store, RUN, content=content())

    def test_check_passes_the_same_result(self) -> None:
        recorded = parse_run(json.dumps(content()).encode(), RUN)
        assert check_same_result(recorded, result_digest="r") is recorded
        with pytest.raises(ConflictError, match=rf"run {RUN} is committed with another result digest \(r\.\.\."):
            check_same_result(recorded, result_digest="s")


PREFIX = attempt_prefix(RUN, attempt_id=ATTEMPT)


@pytest.fixture
def committed(store: Store) -> CommittedRun:
    stored = upload(store, RUN, attempt_id=ATTEMPT, files=FILES)
    return commit(store, RUN, content=content() | {"files": [asdict(file) for file in stored]})


def damaged(committed: CommittedRun, damage: dict[str, Any]) -> bytes:
    return json.dumps({**committed.record, **damage}).encode()


class TestReadFiles:
    def test_every_file_is_returned_by_name(self, store: Store, committed: CommittedRun) -> None:
        assert read_files(store, committed) == FILES

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda store, key: store.delete(key), "is named by the COMMIT and does not exist"),
            (lambda store, key: store.put(key, b"grapi"), r"is not the object that was committed \(size or SHA-256\)"),
            (lambda store, key: store.put(key, b"grap"), r"is not the object that was committed"),
            (lambda store, key: store.put(key, b"graph\0"), r"is not the object that was committed"),
            (lambda store, key: store.put(key, b""), r"is not the object that was committed"),
        ],
        ids=["missing", "altered", "truncated", "longer", "empty"],
    )
    def test_object_that_is_not_the_committed_one_is_refused(
        self, damage: Callable[[Store, str], None], message: str, store: Store, committed: CommittedRun
    ) -> None:
        key = f"{PREFIX}model/saved_model.pb"
        damage(store, key)
        with pytest.raises(IntegrityError, match=f"{key} {message}"):
            read_files(store, committed)

    @pytest.mark.parametrize(
        "key",
        [
            "runs/other/attempts/attempt-1/metrics.json",
            f"runs/{RUN}/attempts/attempt-10/metrics.json",
            "../../etc/passwd",
            "/etc/passwd",
            f"{PREFIX}../../../../secret",
        ],
    )
    def test_object_outside_the_attempt_is_refused(self, key: str, store: Store, committed: CommittedRun) -> None:
        if ".." not in key and not key.startswith("/"):
            store.put(key, b"{}")
        entry = {"key": key, "num_bytes": 2, "sha256": sha256_hex(b"{}")}
        with pytest.raises(IntegrityError, match=f"its files are not those of its attempt '{ATTEMPT}'"):
            parse_run(damaged(committed, {"files": [entry]}), RUN)

    @pytest.mark.parametrize(
        "damage",
        [
            {"files": None},
            {"files": "all of them"},
            {"files": [{"key": f"{PREFIX}empty"}]},
            {"files": [{"key": None, "num_bytes": 0, "sha256": ""}]},
            {"files": [3]},
            {"dataset": "mnist"},
            {"dataset": {"digest": "d"}},
            {"dataset": {"name": None}},
            {"metrics": {}},
            {"metrics": {"test_accuracy": None}},
            {"metrics": {"test_accuracy": "good"}},
        ],
    )
    def test_commit_that_lacks_what_it_must_say_is_refused(
        self, damage: dict[str, Any], committed: CommittedRun
    ) -> None:
        with pytest.raises(IntegrityError, match="COMMIT"):
            parse_run(damaged(committed, damage), RUN)


class TestParseObject:
    def test_object_is_parsed(self) -> None:
        assert parse_object(b'{"a": "\xc3\xbc"}', key="k") == {"a": "ü"}

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", r"^store: some/key is not JSON: "),
            (b'{"a": 1', r"^store: some/key is not JSON: "),
            (b"\xff\xfe\xfd", r"^store: some/key is not JSON: "),
            (b"[]", r"^store: some/key must hold a JSON object, received list"),
            (b"null", r"^store: some/key must hold a JSON object, received NoneType"),
            (b'"text"', r"^store: some/key must hold a JSON object, received str"),
        ],
    )
    def test_anything_else_is_refused(self, data: bytes, message: str) -> None:
        with pytest.raises(IntegrityError, match=message):
            parse_object(data, key="some/key")


@pytest.mark.security("S5")
def test_commit_that_nobody_could_read_is_not_written(store: Store) -> None:
    content: dict[str, Any] = {"run": RUN, "attempt": "a", "result_digest": "r", "weights_digest": "w", "files": []}
    content |= {"dataset": {"name": "plain"}, "metrics": {"test_accuracy": 0.5}, "more": "x" * 4_000_000}
    with pytest.raises(IntegrityError, match="at most 4000000 are read"):
        commit(store, RUN, content=content)
    assert store.get(commit_key(RUN)) is None
