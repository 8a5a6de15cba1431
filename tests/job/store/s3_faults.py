"""A small real S3 server over HTTP that does what a test tells it to, request by request; Google's XML API too, which is S3's but
for one header, and the metadata server that gives it a token.
"""

import contextlib
import hashlib
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one request.

    Attributes:
        status, body: the reply; 0 = no reply at all.
        is_stored: whether the request takes effect all the same.
        is_silent: say nothing until the server stops, instead of cutting the connection.
        is_cut_off: cut the connection in the middle of the right body.
        location: another server, to which the reply sends the client on.
    """

    status: int = 0
    body: str = ""
    is_stored: bool = False
    is_silent: bool = False
    is_cut_off: bool = False
    location: str = ""


def reply(status: int, code: str = "", message: str = "as told") -> Fault:
    """A refusal in S3's own form, or an empty one without a code."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    return Fault(status=status, body=text)


RESET = Fault()
RESET_AFTER_STORING = Fault(is_stored=True)
SILENCE = Fault(is_silent=True)
SILENCE_AFTER_STORING = Fault(is_silent=True, is_stored=True)


@dataclass(slots=True, kw_only=True)
class FaultyS3:
    """The server's state.

    Attributes:
        plan: faults by HTTP method, each used for one request in turn, None for a healthy answer; `always` is for all others.
    """

    endpoint: str = ""
    is_conditional: bool = True
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    num_writes: int = 0
    plan: dict[str, list[Fault | None]] = field(default_factory=dict)
    always: Fault | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, method: str) -> Fault | None:
        """What is planned for this request."""
        with self.lock:
            self.requests.append(method)
            return self.plan[method].pop(0) if self.plan.get(method) else self.always


@contextlib.contextmanager
def serve() -> Iterator[FaultyS3]:
    """Run the server on a free port."""
    state = FaultyS3()
    handler = type("Handler", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: FaultyS3

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/computeMetadata/"):
            token = b'{"access_token": "canary-token", "expires_in": 3599, "token_type": "Bearer"}'
            self._reply(200, token, {"Metadata-Flavor": "Google"})
            return
        fault = self.state.next_fault(self.command)
        if fault is None:
            self._reply(*self._serve(body))
        else:
            self._break(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _break(self, body: bytes, fault: Fault) -> None:
        """What happens to one request."""
        if fault.is_cut_off:
            status, content, _ = self._serve(body)
            self._reply(status, content[: len(content) // 2], {}, promised=len(content))
            self._cut()
        else:
            if fault.is_stored:
                self._serve(body)
            if fault.is_silent:
                self.state.stopping.wait(30)
            if fault.status:
                self._reply(
                    fault.status,
                    fault.body.encode(),
                    {"Location": fault.location + self.path} if fault.location else {},
                )
            else:
                self._cut()

    def _serve(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:  # noqa: PLR0911 - one for each request
        """What a healthy S3 answers: status, body, headers."""
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        key = urllib.parse.unquote(url.path).removeprefix(f"/{BUCKET}").lstrip("/")
        with self.state.lock:
            objects = self.state.objects
            if self.command == "POST":
                deleted = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for name in deleted:
                    objects.pop(name, None)
                items = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in deleted)
                return 200, f"<DeleteResult>{items}</DeleteResult>".encode(), {}
            if self.command == "DELETE":
                objects.pop(key, None)
                return 204, b"", {}
            if self.command == "PUT":
                is_create = "If-None-Match" in self.headers or self.headers.get("x-goog-if-generation-match") == "0"
                if self.state.is_conditional and is_create and key in objects:
                    return 412, reply(412, "PreconditionFailed").body.encode(), {}
                objects[key] = body
                self.state.num_writes += 1
                return 200, b"", {"ETag": _etag(body)}
            if "list-type" in query:
                return 200, _listing(objects, prefix=query.get("prefix", [""])[0], is_deep="delimiter" not in query), {}
            if key not in objects:
                return 404, reply(404, "NoSuchKey").body.encode(), {}
            return 200, objects[key], {"ETag": _etag(objects[key]), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}

    def _reply(self, status: int, body: bytes, headers: dict[str, str], *, promised: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _cut(self) -> None:
        """Reset the connection, as a crashed proxy does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002 - the name of the base class
        """Requests are in `state.requests`."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _listing(objects: dict[str, bytes], *, prefix: str, is_deep: bool) -> bytes:
    keys = sorted(key for key in objects if key.startswith(prefix))
    folders = (
        []
        if is_deep
        else sorted({prefix + k[len(prefix) :].partition("/")[0] + "/" for k in keys if "/" in k[len(prefix) :]})
    )
    files = [key for key in keys if is_deep or "/" not in key[len(prefix) :]]
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(objects[key])}</Size><ETag>{_etag(objects[key])}</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in files
    )
    prefixes = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{prefixes}</ListBucketResult>".encode()
