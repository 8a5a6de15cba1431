"""The faults of S3 over `gs://`, and a real emulator behind `az://`: what is written once, what is refused, what passes."""

import logging
from collections.abc import Callable, Iterator

import pytest

from job.config import StoreSection
from job.errors import AccessDeniedError, JobError, NotFoundError, UnavailableError
from job.store.open import open_store
from job.store.store import Store
from tests.job.store.azurite import Azurite, serve
from tests.job.store.s3_faults import BUCKET, RESET_AFTER_STORING, FaultyS3, reply
from tests.job.store.s3_faults import serve as serve_s3
from tests.job.store.test_faults import DATA, KEY, STORED_KEY, TRANSIENT, VERBS, check_done_once, prepare, refusal_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.store.store._FIRST_BACKOFF_SECONDS", 0.02)


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with serve_s3() as state:
        yield state


OpenGs = Callable[..., Store]


@pytest.fixture
def open_gs(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> OpenGs:
    """Opens the bucket as a pod of GKE does, with a token of the metadata server."""
    host = server.endpoint.removeprefix("http://")
    environ = {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def open_it(*, timeout_seconds: float = 2.0, deadline_seconds: float = 10.0) -> Store:
        section = StoreSection(
            uri=f"gs://{BUCKET}/prefix",
            endpoint=server.endpoint,
            timeout_seconds=timeout_seconds,
            deadline_seconds=deadline_seconds,
        )
        return open_store(section, environ=environ)

    return open_it


class TestGs:
    @pytest.mark.parametrize("verb", VERBS)
    def test_operation_is_done_exactly_once_after_faults(
        self, verb: str, server: FaultyS3, open_gs: OpenGs, caplog: pytest.LogCaptureFixture
    ) -> None:
        prepare(server, verb)
        method, call = VERBS[verb]
        server.plan[method if method != "POST" else "DELETE"] = [*TRANSIENT.values()]
        with caplog.at_level(logging.DEBUG):
            check_done_once(server, verb, call(open_gs()))
        assert [record.getMessage() for record in caplog.records if record.name == "job"] == ["store.retry"] * 5
        assert "canary" not in caplog.text + str([record.__dict__ for record in caplog.records])

    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize(
        ("status", "code", "error"),
        [(403, "AccessDenied", AccessDeniedError), (404, "NoSuchBucket", NotFoundError)],
    )
    def test_what_is_refused_ends_at_once(
        self, status: int, code: str, error: type[JobError], verb: str, server: FaultyS3, open_gs: OpenGs
    ) -> None:
        server.always = reply(status, code)
        refusal_of(lambda: VERBS[verb][1](open_gs()), error, code)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("standing", [DATA, b"theirs"])
    def test_refused_create_returns_what_stands(self, standing: bytes, server: FaultyS3, open_gs: OpenGs) -> None:
        server.objects[STORED_KEY] = standing
        assert open_gs().create(KEY, DATA) == standing
        assert (server.objects, server.requests) == ({STORED_KEY: standing}, ["PUT", "GET"])

    def test_lost_reply_is_success_and_leaves_one_object(self, server: FaultyS3, open_gs: OpenGs) -> None:
        server.plan["PUT"] = [RESET_AFTER_STORING]
        assert open_gs(timeout_seconds=2).create(KEY, DATA) == DATA
        assert (server.objects, server.num_writes, server.requests) == ({STORED_KEY: DATA}, 1, ["PUT", "GET"])

    @pytest.mark.parametrize("is_conditional", [True, False])
    def test_store_that_ignores_conditions_is_detected(
        self, is_conditional: bool, server: FaultyS3, open_gs: OpenGs
    ) -> None:
        server.is_conditional = is_conditional
        store = open_gs()
        assert store.create(KEY, DATA) == DATA
        assert store.refuses_second_create(KEY, DATA) is is_conditional


@pytest.mark.full
class TestAzurite:
    """Beside the contract of tests/job/store/test_store.py."""

    def open_az(self, azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch, **environ: str) -> Store:
        environ = azurite.env | environ
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        section = StoreSection(
            uri=f"az://{container}/prefix",
            endpoint=azurite.endpoint,
            account_name=azurite.account,
            timeout_seconds=5,
            deadline_seconds=1,
        )
        return open_store(section, environ=environ)

    @pytest.mark.parametrize("verb", VERBS)
    def test_wrong_key_and_missing_container_are_named(
        self, verb: str, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call = VERBS[verb][1]
        absent = self.open_az(azurite, "absent", monkeypatch)
        if verb != "delete":  # Azure's answer to several deletes at once has no code that tells this from an absent key
            refusal_of(lambda: call(absent), NotFoundError, "the bucket does not exist")
        container = azurite.make_container()
        other = self.open_az(azurite, container, monkeypatch, AZURE_STORAGE_ACCOUNT_KEY="Y2FuYXJ5")
        refusal_of(lambda: call(other), AccessDeniedError, "access denied")

    def test_server_that_has_gone_is_unavailable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serve() as azurite:
            store = self.open_az(azurite, azurite.make_container(), monkeypatch)
            assert store.create(KEY, DATA) == DATA
            azurite.process.kill()
            azurite.process.wait()
            for _, call in VERBS.values():
                refusal_of(lambda call=call: call(store), UnavailableError, r"failed for 1 s")  # type: ignore[misc]
