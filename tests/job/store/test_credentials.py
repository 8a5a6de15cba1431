"""Who a pod is in a cloud, without a Secret: by GKE's metadata server, by AKS' token; and the quick refusal without either."""

import http.server
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from job.config import StoreSection
from job.config_sources import load_config
from job.errors import AccessDeniedError, ConfigError, UnavailableError
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import RunJob

EMAIL = "/computeMetadata/v1/instance/service-accounts/default/email"
TOKEN = "/computeMetadata/v1/instance/service-accounts/default/token"
BEARER = "Bearer canary-of-this-pod"


@dataclass(slots=True)
class Cloud:
    """A metadata server, a token service and a bucket with the object `p/key`, on one local port.

    Attributes:
        token_statuses: how the next requests for a token are answered; then with one.
        requests: what was asked: method, path, and the Authorization or the body.
    """

    flavor: str = "Google"
    email_status: int = 200
    delay_seconds: float = 0.0
    token_statuses: list[int] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    host: str = ""

    def answer(self, path: str) -> tuple[int, bytes]:
        if path == EMAIL:
            time.sleep(self.delay_seconds)
            return self.email_status, b"project.svc.id.goog"
        if "/token" in path:
            status = self.token_statuses.pop(0) if self.token_statuses else 200
            token = BEARER.removeprefix("Bearer ")
            body = f'{{"access_token": "{token}", "expires_in": 3599, "token_type": "Bearer"}}'
            return status, body.encode() if status == http.HTTPStatus.OK else b"no rights to impersonate"
        return (200, b"data") if path.endswith("/p/key") else (404, b"")

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


def serve(cloud: Cloud, port: int = 0) -> http.server.ThreadingHTTPServer:
    """The cloud behind a real socket, until it is shut down."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            path = urllib.parse.unquote(self.path.partition("?")[0])
            cloud.requests.append((self.command, path, self.headers.get("Authorization") or body))
            status, answer = cloud.answer(path)
            with suppress(OSError):  # whoever asked waits no longer
                self.send_response(status)
                self.send_header("Metadata-Flavor", cloud.flavor)
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("Last-Modified", "Thu, 26 Nov 2026 12:00:00 GMT")
                self.send_header("ETag", '"1"')
                self.end_headers()
                self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    cloud.host = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    cloud = Cloud()
    server = serve(cloud)
    yield cloud
    server.shutdown()
    server.server_close()


OpenGs = Callable[..., Store]


@pytest.fixture
def open_gs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenGs:
    """Opens `gs://bucket/p` as in a pod that asks these hosts for its identity, without a variable of credentials."""

    def open_it(*hosts: str, deadline_seconds: float = 5) -> Store:
        names = ("GCE_METADATA_HOST", "GCE_METADATA_IP")
        environ = dict(zip(names, hosts if len(hosts) > 1 else hosts * 2, strict=True))
        for name, value in {**environ, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        section = StoreSection(
            uri="gs://bucket/p",
            endpoint=f"http://{hosts[-1]}",
            timeout_seconds=2,
            deadline_seconds=deadline_seconds,
        )
        return open_store(section, environ=environ)

    return open_it


class TestMetadataServer:
    def test_pod_of_gke_reads_its_bucket_with_the_token_of_its_service_account(
        self, cloud: Cloud, open_gs: OpenGs
    ) -> None:
        assert open_gs(cloud.host).get("key") == b"data"
        assert cloud.requests == [("GET", EMAIL, ""), ("GET", TOKEN, ""), ("GET", "/bucket/p/key", BEARER)]

    def test_second_host_is_asked_as_obstore_does(self, cloud: Cloud, open_gs: OpenGs, dead_port: int) -> None:
        assert open_gs(f"127.0.0.1:{dead_port}", cloud.host).get("key") == b"data"

    def test_answer_may_take_a_second_and_connections_may_be_refused_at_first(
        self, cloud: Cloud, open_gs: OpenGs, dead_port: int
    ) -> None:
        cloud.delay_seconds = 1.0
        open_gs(cloud.host)
        late = Cloud()
        servers: list[http.server.ThreadingHTTPServer] = []
        timer = threading.Timer(0.5, lambda: servers.append(serve(late, dead_port)))
        timer.start()
        try:
            open_gs(f"127.0.0.1:{dead_port}")
            assert late.paths == [EMAIL]
        finally:
            timer.join()
            servers[0].shutdown()
            servers[0].server_close()

    def test_answer_in_drips_is_not_waited_for_longer(self, open_gs: OpenGs) -> None:
        def drip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                for number in range(60):
                    connection.sendall(f"x-{number}: x\r\n".encode())
                    time.sleep(0.1)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=drip, daemon=True).start()
            started = time.monotonic()
            with pytest.raises(AccessDeniedError, match="no service account from Google's metadata server"):
                open_gs(f"127.0.0.1:{listener.getsockname()[1]}")
            assert time.monotonic() - started < 5  # of the 6 that the drips take

    @pytest.mark.parametrize(
        ("kind", "limit_seconds"), [("another cloud's", 1.9), ("no account", 1.9), ("late", 10), ("none", 10)]
    )
    def test_without_an_identity_the_refusal_is_quick_and_says_who_was_asked(
        self, kind: str, limit_seconds: float, cloud: Cloud, open_gs: OpenGs, dead_port: int
    ) -> None:
        cloud.flavor = "" if kind == "another cloud's" else "Google"
        cloud.email_status = 404 if kind == "no account" else 200
        cloud.delay_seconds = 3.0 if kind == "late" else 0.0
        host = f"127.0.0.1:{dead_port}" if kind == "none" else cloud.host
        started = time.monotonic()
        with pytest.raises(AccessDeniedError) as refused:
            open_gs(host)
        assert time.monotonic() - started < limit_seconds
        assert str(refused.value).startswith(
            "store gs://: no credentials found in the environment, and no service account from Google's metadata server "
            f"({host}); set GOOGLE_APPLICATION_CREDENTIALS, or "
        )

    def test_nobody_is_asked_with_credentials_or_for_another_scheme(self, cloud: Cloud) -> None:
        hosts = {"GCE_METADATA_HOST": cloud.host, "GCE_METADATA_IP": cloud.host}
        open_store(StoreSection(uri="gs://bucket"), environ=hosts | {"GOOGLE_SKIP_SIGNATURE": "1"})
        for uri in ("s3://bucket", "az://container"):
            with pytest.raises(AccessDeniedError, match="no credentials found in the environment; set "):
                open_store(StoreSection(uri=uri), environ=hosts)
        assert cloud.requests == []

    @pytest.mark.parametrize("host", ["", "no host", "[::1", "127.0.0.1:99999999"])
    def test_host_that_is_none_is_no_traceback(self, host: str, cloud: Cloud, open_gs: OpenGs) -> None:
        cloud.email_status = 404
        with pytest.raises(AccessDeniedError, match="no credentials found in the environment, and no service account"):
            open_gs(host, cloud.host)
        assert cloud.paths == [EMAIL]

    @pytest.mark.parametrize("status", [400, 403, 404])
    def test_token_that_is_refused_is_77_and_no_missing_object(
        self, status: int, cloud: Cloud, open_gs: OpenGs
    ) -> None:
        """Such as a Kubernetes service account that may not act as Google's."""
        cloud.token_statuses = [status] * 2
        with pytest.raises(
            AccessDeniedError, match=rf"access denied: .*{status}.*no rights to impersonate; check the cred"
        ):
            open_gs(cloud.host).get("key")

    def test_token_that_is_late_is_asked_for_again(self, cloud: Cloud, open_gs: OpenGs) -> None:
        cloud.token_statuses = [503] * 2  # obstore asks by name and by number
        assert open_gs(cloud.host).get("key") == b"data"
        cloud.token_statuses = [429] * 100
        with pytest.raises(UnavailableError, match="429"):
            open_gs(cloud.host, deadline_seconds=2).get("key")

    def test_command_without_any_exits_77(self, run_job: RunJob, dead_port: int) -> None:
        env = dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_IP"), f"127.0.0.1:{dead_port}")
        done = run_job("runs", "--store.uri=gs://bucket/p", env=env, timeout=30)
        assert (done.code, "no service account from Google's metadata server" in done.error) == (77, True)


class TestStorageAccount:
    def test_pod_of_aks_changes_its_token_for_one_of_the_account(
        self, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "azure-identity-token").write_text("projected")
        environ = {
            "AZURE_CLIENT_ID": "client",
            "AZURE_TENANT_ID": "tenant",
            "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "azure-identity-token"),
            "AZURE_AUTHORITY_HOST": f"http://{cloud.host}/",
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        section = StoreSection(uri="az://container/p", endpoint=f"http://{cloud.host}", deadline_seconds=5)
        with pytest.raises(ConfigError, match=r"name the storage account in store\.account_name$"):
            open_store(section, environ=environ)

        store = open_store(section.model_copy(update={"account_name": "account1"}), environ=environ)
        assert store.get("key") == b"data"
        (_, token_path, body), (_, path, authorization) = cloud.requests
        assert (token_path, path) == ("/tenant/oauth2/v2.0/token", "/container/p/key")
        assert urllib.parse.parse_qs(body)["client_assertion"] == ["projected"]
        assert authorization == BEARER

    @pytest.mark.parametrize("uri", ["az://container", None])
    def test_setting_wins_over_the_variable_and_holds_for_other_places(
        self, uri: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        environ = {"AZURE_STORAGE_ACCOUNT_NAME": "other", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        own = StoreSection(uri="s3://bucket" if uri else "az://own", account_name="account1")
        store = open_store(own, environ=environ, uri=uri)
        assert "'account1'" in str(store._backend._store.config)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("name", ["ab", "a" * 25, "Account", "a-b", "account1.blob.core.windows.net", "a\n", ""])
    def test_name_that_azure_gives_to_nobody_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"^store\.account_name: (must|should) "):
            load_config(["--store.uri=az://container", f"--store.account_name={name}"])
