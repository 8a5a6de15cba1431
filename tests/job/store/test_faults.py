"""What a store over the network does when the network or the server misbehaves."""

import logging
import re
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from job.config import StoreSection
from job.errors import AccessDeniedError, ConfigError, JobError, NotFoundError, UnavailableError
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import NO_METADATA_SERVER, RunJob
from tests.job.store.s3_faults import (
    BUCKET,
    RESET,
    RESET_AFTER_STORING,
    SILENCE,
    SILENCE_AFTER_STORING,
    Fault,
    FaultyS3,
    reply,
    serve,
)

CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-id",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_SESSION_TOKEN": "canary-token",
}
KEY, DATA = "runs/x/COMMIT.json", b"ours"
STORED_KEY = f"prefix/{KEY}"

VERBS: dict[str, tuple[str, Callable[[Store], object]]] = {
    "create": ("PUT", lambda store: store.create(KEY, DATA)),
    "put": ("PUT", lambda store: store.put(KEY, DATA)),
    "get": ("GET", lambda store: store.get(KEY)),
    "list": ("GET", lambda store: store.list_objects("runs/")),
    "list folders": ("GET", lambda store: store.list_folders("runs/")),
    "delete": ("POST", lambda store: store.delete(KEY)),
}


@pytest.fixture(autouse=True)
def _canaries(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Credentials that may appear in no log line of any test here; obstore reads them from the environment itself."""
    monkeypatch.setattr("job.store.store._FIRST_BACKOFF_SECONDS", 0.02)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.DEBUG):
        yield
    assert_no_canary(caplog.text + str([record.__dict__ for record in caplog.records]))


def assert_no_canary(text: str) -> None:
    assert "canary" not in text


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with serve() as state:
        yield state


def connect(endpoint: str, *, timeout_seconds: float = 2.0, deadline_seconds: float = 10.0) -> Store:
    return open_store(
        StoreSection(
            uri=f"s3://{BUCKET}/prefix",
            endpoint=endpoint,
            region="us-east-1",
            timeout_seconds=timeout_seconds,
            deadline_seconds=deadline_seconds,
        ),
        environ=CANARIES,
    )


def refusal_of(call: Callable[[], object], error: type[JobError], match: str) -> float:
    """Check the refusal and that it tells no secret; returns the seconds it took."""
    started = time.monotonic()
    with pytest.raises(error, match=match) as refused:
        call()
    assert_no_canary(str(refused.value))
    assert "\n" not in str(refused.value)
    return time.monotonic() - started


def prepare(server: FaultyS3, verb: str) -> None:
    if verb not in ("create", "put"):
        server.objects[STORED_KEY] = DATA


def check_done_once(server: FaultyS3, verb: str, result: object) -> None:
    if verb in ("create", "put"):
        assert (server.objects, server.num_writes) == ({STORED_KEY: DATA}, 1)
    if verb in ("create", "get"):
        assert result == DATA
    if verb == "list":
        assert [entry.key for entry in result] == [KEY]  # type: ignore[attr-defined]
    if verb == "list folders":
        assert result == ["x"]
    if verb == "delete":
        assert server.objects == {}


TRANSIENT = {
    "500": reply(500, "InternalError"),
    "502 without a body": reply(502),
    "503": reply(503, "SlowDown"),
    "429": reply(429, "TooManyRequests"),
    "connection reset": RESET,
}


class TestTransientFaults:
    @pytest.mark.parametrize("fault", TRANSIENT)
    @pytest.mark.parametrize("verb", VERBS)
    def test_operation_is_done_exactly_once_after_faults(
        self, verb: str, fault: str, server: FaultyS3, caplog: pytest.LogCaptureFixture
    ) -> None:
        prepare(server, verb)
        method, call = VERBS[verb]
        server.plan[method] = [TRANSIENT[fault]]
        check_done_once(server, verb, call(connect(server.endpoint)))
        assert [record.getMessage() for record in caplog.records if record.name == "job"] == ["store.retry"]

    @pytest.mark.parametrize("verb", VERBS)
    def test_faults_without_end_are_unavailable_within_the_deadline(self, verb: str, server: FaultyS3) -> None:
        server.always = reply(503, "SlowDown", "Please reduce your request rate.")
        seconds = refusal_of(
            lambda: VERBS[verb][1](connect(server.endpoint, deadline_seconds=2)),
            UnavailableError,
            rf"^store s3://bucket/prefix: {verb.partition(' ')[0]} runs/\S* failed for 2 s \(store\.deadline_seconds\): "
            r"SlowDown: Please reduce your request rate\.(, then: [^;]+)?; check the endpoint",
        )
        assert seconds < 10
        assert len(server.requests) > 1
        assert server.num_writes == 0

    @pytest.mark.parametrize("verb", VERBS)
    def test_silent_server_is_unavailable_within_the_deadline(self, verb: str, server: FaultyS3) -> None:
        server.always = SILENCE
        store = connect(server.endpoint, timeout_seconds=20, deadline_seconds=2)
        assert refusal_of(lambda: VERBS[verb][1](store), UnavailableError, "no answer before the deadline") < 10

    @pytest.mark.parametrize("verb", VERBS)
    def test_silent_request_is_given_up_and_tried_again(self, verb: str, server: FaultyS3) -> None:
        prepare(server, verb)
        method, call = VERBS[verb]
        server.plan[method] = [SILENCE]
        check_done_once(server, verb, call(connect(server.endpoint, timeout_seconds=2)))

    @pytest.mark.parametrize("verb", VERBS)
    def test_dead_port_is_unavailable_within_the_deadline(self, verb: str, dead_port: int) -> None:
        store = connect(f"http://127.0.0.1:{dead_port}", deadline_seconds=2)
        assert refusal_of(lambda: VERBS[verb][1](store), UnavailableError, r"failed for 2 s .*check the endpoint") < 10

    @pytest.mark.parametrize("verb", ["get", "list"])
    def test_reply_cut_off_in_its_body_is_read_again(self, verb: str, server: FaultyS3) -> None:
        prepare(server, verb)
        server.plan["GET"] = [Fault(is_cut_off=True), Fault(is_cut_off=True)]
        check_done_once(server, verb, VERBS[verb][1](connect(server.endpoint)))
        assert len(server.requests) == 3

    def test_store_works_again_after_a_deadline(self, server: FaultyS3) -> None:
        store = connect(server.endpoint, timeout_seconds=20, deadline_seconds=2)
        server.plan["PUT"] = [SILENCE]
        refusal_of(lambda: store.put(KEY, b"late"), UnavailableError, "no answer before the deadline")
        store.put(KEY, DATA)
        assert store.get(KEY) == DATA

    def test_signal_interrupts_a_waiting_call_at_once(self, server: FaultyS3) -> None:
        """A native call in the main thread would hold SIGTERM back until it returns."""

        class Alarm(Exception):  # noqa: N818
            pass

        def on_alarm(number: int, frame: FrameType | None) -> None:
            raise Alarm

        before = signal.signal(signal.SIGALRM, on_alarm)
        server.always = SILENCE
        started = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Alarm):
                connect(server.endpoint, timeout_seconds=20, deadline_seconds=15).get(KEY)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - started < 10


HTML = Fault(status=404, body="<html>nothing here</html>")
DENIED = r"^store s3://bucket/prefix: access denied: .*; check the credentials$"
PERMANENT: dict[str, tuple[Fault, type[JobError], str]] = {
    "403": (reply(403, "AccessDenied", "no"), AccessDeniedError, r"access denied: AccessDenied: no; check the cred"),
    "403 of a proxy": (Fault(status=403, body="<html>forbidden</html>"), AccessDeniedError, DENIED),
    "403 of Azure": (reply(403, "AuthorizationFailure"), AccessDeniedError, DENIED),
    "401": (reply(401), AccessDeniedError, DENIED),
    "unknown key": (
        Fault(
            status=403,
            body="<Error><Code>InvalidAccessKeyId</Code><Message>unknown</Message><AWSAccessKeyId>canary-id"
            "</AWSAccessKeyId></Error>",
        ),
        AccessDeniedError,
        r"access denied: InvalidAccessKeyId: unknown; check the credentials",
    ),
    "wrong secret": (
        Fault(
            status=403,
            body="<Error><Code>SignatureDoesNotMatch</Code><Message>wrong</Message><AWSAccessKeyId>canary-id"
            "</AWSAccessKeyId><StringToSign>x-amz-security-token:canary-token</StringToSign></Error>",
        ),
        AccessDeniedError,
        r"access denied: SignatureDoesNotMatch: wrong; check the credentials",
    ),
    "expired token": (reply(400, "ExpiredToken", "old"), AccessDeniedError, r"access denied: ExpiredToken: old"),
    "wrong region": (
        reply(400, "AuthorizationHeaderMalformed", "expecting 'eu-west-1'"),
        ConfigError,
        r"^store\.region: the bucket of s3://bucket/prefix is in another region: .*expecting 'eu-west-1'",
    ),
    "redirected to another region": (
        reply(301, "PermanentRedirect"),
        ConfigError,
        r"^store\.region: the bucket of s3://bucket/prefix is in another region",
    ),
    "no bucket": (
        reply(404, "NoSuchBucket"),
        NotFoundError,
        r"^store s3://bucket/prefix: the bucket does not exist; create it or correct store\.uri \(NoSuchBucket: as told\)",
    ),
}


class TestPermanentFaults:
    @pytest.mark.parametrize("fault", PERMANENT)
    @pytest.mark.parametrize("verb", ["create", "put", "get", "list", "list folders"])
    def test_permanent_fault_is_typed_and_not_tried_again(self, verb: str, fault: str, server: FaultyS3) -> None:
        answer, error, message = PERMANENT[fault]
        server.always = answer
        seconds = refusal_of(lambda: VERBS[verb][1](connect(server.endpoint, deadline_seconds=20)), error, message)
        assert len(server.requests) == 1
        assert seconds < 10

    @pytest.mark.parametrize("fault", PERMANENT)
    def test_permanent_fault_of_a_delete_is_typed(self, fault: str, server: FaultyS3) -> None:
        answer, error, message = PERMANENT[fault]
        server.always = answer
        store = connect(server.endpoint, deadline_seconds=20)
        refusal_of(lambda: store.delete(KEY), error, message)

    def test_delete_without_the_right_to_is_access_denied(self, server: FaultyS3) -> None:
        """S3 answers 200 and says it for each key in the body."""
        refusal = f"<Error><Key>{STORED_KEY}</Key><Code>AccessDenied</Code><Message>no right</Message></Error>"
        server.always = Fault(status=200, body=f"<DeleteResult>{refusal}</DeleteResult>")
        store = connect(server.endpoint, deadline_seconds=20)
        refusal_of(lambda: store.delete(KEY), AccessDeniedError, r"access denied: .*no right")
        assert len(server.requests) == 1

    @pytest.mark.parametrize("verb", ["create", "put", "list"])
    def test_server_that_is_no_store_is_not_found(self, verb: str, server: FaultyS3) -> None:
        """Such as a web server under a mistyped endpoint."""
        server.always = HTML
        store = connect(server.endpoint, deadline_seconds=20)
        refusal_of(lambda: VERBS[verb][1](store), NotFoundError, r"^store s3://bucket/prefix: .*store\.uri")

    def test_https_endpoint_that_speaks_http_is_a_wrong_endpoint(self, server: FaultyS3) -> None:
        store = connect(server.endpoint.replace("http:", "https:"))
        refusal_of(lambda: store.get(KEY), ConfigError, r"speaks no TLS.*; correct store\.endpoint")

    @pytest.mark.parametrize("code", [301, 302, 307, 308])
    @pytest.mark.parametrize("verb", ["create", "put", "delete"])
    def test_write_that_is_redirected_is_never_taken_for_done(self, code: int, verb: str, server: FaultyS3) -> None:
        """obstore follows some redirects with another method: the bucket's old object must not pass for the new one."""
        prepare(server, "get")
        with serve() as front:
            front.always = Fault(status=code, location=server.endpoint)
            store = connect(front.endpoint, deadline_seconds=20)
            if verb == "delete" and code in (307, 308):  # sent on as it was
                store.delete(KEY)
                assert server.objects == {}
                return
            with pytest.raises(JobError, match=r"^store"):
                VERBS[verb][1](store)
        assert server.objects == {STORED_KEY: DATA}

    @pytest.mark.parametrize("status", [409, 412])
    @pytest.mark.parametrize("verb", ["put", "get", "list", "delete"])
    def test_refusal_of_what_set_no_condition_is_typed(self, status: int, verb: str, server: FaultyS3) -> None:
        server.always = reply(status, "Refused")
        error = UnavailableError if status == 409 else NotFoundError
        refusal_of(lambda: VERBS[verb][1](connect(server.endpoint, deadline_seconds=20)), error, "Refused: as told")


class TestRefusedCreate:
    @pytest.mark.parametrize("fault", [RESET_AFTER_STORING, SILENCE_AFTER_STORING, Fault(status=500, is_stored=True)])
    def test_lost_reply_is_success_and_leaves_one_object(self, fault: Fault, server: FaultyS3) -> None:
        server.plan["PUT"] = [fault]
        assert connect(server.endpoint, timeout_seconds=2).create(KEY, DATA) == DATA
        assert (server.objects, server.num_writes) == ({STORED_KEY: DATA}, 1)
        assert server.requests == ["PUT", "GET"], "it looks before it writes again"

    def test_lost_reply_is_success_though_reading_back_fails_at_first(self, server: FaultyS3) -> None:
        server.plan = {"PUT": [RESET_AFTER_STORING], "GET": [reply(503, "SlowDown"), RESET]}
        assert connect(server.endpoint).create(KEY, DATA) == DATA
        assert (server.objects, server.num_writes) == ({STORED_KEY: DATA}, 1)

    @pytest.mark.parametrize("standing", [DATA, b"theirs"])
    @pytest.mark.parametrize("status", [412, 409])
    def test_refused_create_returns_what_stands(self, status: int, standing: bytes, server: FaultyS3) -> None:
        server.objects[STORED_KEY] = standing
        server.plan["PUT"] = [reply(status, "Refused")]
        assert connect(server.endpoint).create(KEY, DATA) == standing
        assert (server.objects, server.requests) == ({STORED_KEY: standing}, ["PUT", "GET"])

    def test_conflict_with_an_absent_key_is_tried_again(self, server: FaultyS3) -> None:
        server.plan["PUT"] = [reply(409, "ConditionalRequestConflict")]
        assert connect(server.endpoint).create(KEY, DATA) == DATA
        assert (server.requests, server.num_writes) == (["PUT", "GET", "PUT"], 1)

    def test_conflict_without_end_is_unavailable(self, server: FaultyS3) -> None:
        server.plan["PUT"] = [reply(409, "ConditionalRequestConflict")] * 100
        store = connect(server.endpoint, deadline_seconds=2)
        refusal_of(
            lambda: store.create(KEY, DATA), UnavailableError, r"create was refused, but .*COMMIT\.json is absent"
        )

    @pytest.mark.parametrize("is_conditional", [True, False])
    def test_store_that_ignores_conditions_is_detected(self, is_conditional: bool, server: FaultyS3) -> None:
        server.is_conditional = is_conditional
        store = connect(server.endpoint)
        assert store.create(KEY, DATA) == DATA
        assert store.refuses_second_create(KEY, DATA) is is_conditional
        assert server.objects == {STORED_KEY: DATA}

    @pytest.mark.parametrize(("is_conditional", "code"), [(True, 0), (False, 66)])
    def test_store_check_says_so(self, is_conditional: bool, code: int, server: FaultyS3, run_job: RunJob) -> None:
        server.is_conditional = is_conditional
        settings = (f"--store.uri=s3://{BUCKET}/prefix", f"--store.endpoint={server.endpoint}", "--store.region=x")
        done = run_job("store", "check", *settings, env=CANARIES)
        assert done.code == code
        assert ("does not honour conditional writes" in done.error) is not is_conditional
        assert server.objects == {}, "the check leaves nothing behind"
        assert_no_canary(done.stdout + done.stderr)


class TestCredentials:
    @pytest.mark.parametrize(
        ("uri", "names"),
        [
            ("s3://bucket", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE"),
            ("gs://bucket", "GOOGLE_APPLICATION_CREDENTIALS"),
            ("az://bucket", "AZURE_STORAGE_ACCOUNT_KEY"),
        ],
    )
    def test_no_credentials_are_refused_at_once_naming_the_variables(self, uri: str, names: str) -> None:
        started = time.monotonic()
        with pytest.raises(
            AccessDeniedError, match=rf"^store {uri[:5]}: no credentials found .*; set {re.escape(names)}"
        ):
            open_store(StoreSection(uri=uri), environ={"AWS_ACCESS_KEY_ID": "only half"} | NO_METADATA_SERVER)
        assert time.monotonic() - started < 1.9  # a server that is silent is waited for 2 s

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("AWS_ACCESS_KEY_ID", "canary-id\n"),
            ("AWS_ACCESS_KEY_ID", "canary-id\r"),
            ("AWS_ACCESS_KEY_ID", "canary-id\x7f"),
            ("AWS_ACCESS_KEY_ID", "\x01canary-id"),
            ("AWS_ACCESS_KEY_ID", "canary-id "),
            ("AWS_ACCESS_KEY_ID", "canary-id\udcff"),  # a byte that is no UTF-8
            ("AWS_SECRET_ACCESS_KEY", "canary-secret\n"),
            ("AWS_SECRET_ACCESS_KEY", "canary\tsecret"),
            ("AWS_SESSION_TOKEN", "canary-token\n"),
            ("AWS_REGION", "us-east-1\n"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/canary-token\r\n"),
        ],
    )
    def test_a_value_that_no_header_can_carry_is_refused_by_name_before_any_request(
        self, name: str, value: str
    ) -> None:
        with pytest.raises(AccessDeniedError, match=rf"^store s3://: {name} must be printable") as refusal:
            open_store(StoreSection(uri="s3://b/p"), environ=CANARIES | {name: value})
        assert_no_canary(str(refusal.value))

    def test_a_service_accounts_json_may_have_lines(self) -> None:
        from job.store.credentials import require_clean_values

        require_clean_values("gs", environ={"GOOGLE_SERVICE_ACCOUNT_KEY": '{\n "type": "service_account"\n}\n'})
        with pytest.raises(AccessDeniedError, match="AZURE_STORAGE_ACCOUNT_KEY must be printable"):
            require_clean_values("az", environ={"AZURE_STORAGE_ACCOUNT_KEY": "canary\n"})

    def test_variables_that_obstore_does_not_read_may_hold_anything(self) -> None:
        environ = CANARIES | {
            "AWS_CA_PEM": "-----BEGIN\nx\n",
            "GOOGLE_SKIP_SIGNATURE": "1",
            "GOOGLE_PRIVATE_KEY": "a\nb\n",
        }
        for uri in ("s3://b/p", "gs://b/p"):
            assert open_store(StoreSection(uri=uri), environ=environ).uri == uri

    @pytest.mark.parametrize(
        ("name", "value", "code", "words"),
        [
            ("AWS_UNSIGNED_PAYLOAD", "maybe", 64, "AWS_UNSIGNED_PAYLOAD: s3://b/p cannot be opened: failed to parse"),
            ("AWS_CHECKSUM_ALGORITHM", "CRC32", 64, "AWS_CHECKSUM_ALGORITHM: s3://b/p cannot be opened"),
            ("AWS_SERVER_SIDE_ENCRYPTION", "yes", 64, "AWS_SERVER_SIDE_ENCRYPTION: s3://b/p cannot be opened"),
            ("AWS_ENDPOINT_URL", "minio:9000", 64, "AWS_ENDPOINT_URL: must be a URL"),
            ("AWS_ENDPOINT_URL_S3", "http://x y", 64, "AWS_ENDPOINT_URL_S3: must be a URL"),
        ],
    )
    def test_a_variable_that_obstore_cannot_read_is_named(
        self, name: str, value: str, code: int, words: str, run_job: RunJob
    ) -> None:
        done = run_job("store", "check", "--store.uri=s3://b/p", env=CANARIES | {name: value})
        assert (done.code, words in done.error) == (code, True), done.error
        assert done.error.count(value) <= 2, "the reason is said once"

    def test_a_sas_token_without_its_form_is_a_matter_of_credentials(self, run_job: RunJob) -> None:
        env = {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_SAS_TOKEN": "zzz"}
        assert run_job("store", "check", "--store.uri=az://b/p", env=env).code == 77

    def test_the_address_of_a_credentials_server_alone_is_none(self) -> None:
        with pytest.raises(AccessDeniedError, match="FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            open_store(StoreSection(uri="s3://b/p"), environ={"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://x"})

    def test_a_region_with_a_line_break_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^store\.region: must be printable"):
            open_store(StoreSection(uri="s3://b/p", region="us-east-1\n"), environ=CANARIES)

    def test_command_without_credentials_exits_77_at_once(self, run_job: RunJob) -> None:
        done = run_job("runs", "--store.uri=s3://bucket/prefix", timeout=60)
        assert done.code == 77
        assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.error
