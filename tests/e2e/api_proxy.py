"""A proxy before a real API server that breaks a good part of what passes, drawn from a seed, and counts what it broke."""

import contextlib
import http.client
import json
import random
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Fault = Literal[
    "none",
    "429",
    "500",
    "503",
    "request lost",
    "reply lost",
    "cut in the body",
    "410",
    "410 as an event",
    "silence",
]
_OF_ALL: dict[Fault, float] = {"429": 0.03, "500": 0.03, "503": 0.03, "request lost": 0.03, "cut in the body": 0.03}
_OF_WRITES: dict[Fault, float] = {"request lost": 0.15, "reply lost": 0.25}
_OF_WATCHES: dict[Fault, float] = {"410": 0.15, "410 as an event": 0.15, "silence": 0.05}
_CUT_SECONDS = (1.0, 5.0)
_SILENCE_SECONDS = 20.0


class ApiProxy:
    """What it breaks, and how often it has; every few seconds all its connections are cut."""

    def __init__(self, *, upstream: int, seed: int) -> None:
        """Nothing is served yet.

        Args:
            upstream: port of a server on this machine that lets everything through.
        """
        self.upstream = upstream
        self.counts: Counter[str] = Counter()
        self.num_requests = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._is_over = threading.Event()

    def choose(self, method: str, query: dict[str, list[str]]) -> tuple[Fault, float]:
        """What happens to a request, and a number from 0 to 1 for how."""
        with self._lock:
            self.num_requests += 1
            odds: dict[Fault, float] = dict(_OF_ALL)
            if method != "GET":
                odds |= _OF_WRITES
            if "watch" in query:
                odds |= _OF_WATCHES
            faults: list[Fault] = [*odds, "none"]
            [fault] = self._random.choices(faults, [*odds.values(), 1 - sum(odds.values())])
            if fault != "none":
                self.counts[fault] += 1
            return fault, self._random.random()

    @contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        """While a request of this connection is being answered."""
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)

    def cut_all_for_ever(self) -> None:
        """Every 1 to 5 seconds, until `stop`."""
        while not self._is_over.wait(self._random.uniform(*_CUT_SECONDS)):
            with self._lock:
                self.counts["cut, as all at that moment"] += len(self._connections)
                for connection in self._connections:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def wait_silently(self) -> None:
        """Say nothing for longer than a client should listen."""
        self._is_over.wait(_SILENCE_SECONDS)

    def stop(self) -> None:
        """Cut nothing any more."""
        self._is_over.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ApiProxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault, how = self.proxy.choose(self.command, parse_qs(urlsplit(self.path).query))
        with self.proxy.connected(self.connection), contextlib.suppress(OSError, http.client.HTTPException):
            self._answer(body, fault, how)
            return
        self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

    def _answer(self, body: bytes, fault: Fault, how: float) -> None:
        if fault in {"429", "500", "503", "410"}:
            self._fail(int(fault))
        elif fault == "410 as an event":
            self._send(200, _line({"type": "ERROR", "object": _status(410)}), {})
        elif fault == "silence":
            self.proxy.wait_silently()
            self.close_connection = True
        elif fault == "request lost":
            self.close_connection = True
        else:
            self._pass_on(body, fault, how)

    def _pass_on(self, body: bytes, fault: Fault, how: float) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        try:
            kept = ("accept", "content-type", "user-agent")
            headers = {name: value for name, value in self.headers.items() if name.lower() in kept}
            upstream.request(self.command, self.path, body or None, headers)
            reply = upstream.getresponse()
            if fault == "reply lost":
                reply.read()
                self.close_connection = True
                return
            if reply.getheader("Content-Length") is None:
                self._stream(reply, cut_after=int(how * 4000) if fault == "cut in the body" else None)
                return
            data = reply.read()
            sent = data[: int(how * len(data))] if fault == "cut in the body" else data
            content_type = reply.getheader("Content-Type") or "application/json"
            self._send(reply.status, sent, {"Content-Length": str(len(data)), "Content-Type": content_type})
            self.close_connection = len(sent) < len(data)
        finally:
            upstream.close()

    def _stream(self, reply: http.client.HTTPResponse, *, cut_after: int | None) -> None:
        """Piece by piece, as it comes; a cut leaves out the end that tells that the reply is whole."""
        self.send_response(reply.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        num_sent = 0
        while piece := reply.read1(65536):
            if cut_after is not None and num_sent + len(piece) > cut_after:
                piece = piece[: cut_after - num_sent]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b"")
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            num_sent += len(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _fail(self, status: int) -> None:
        headers = {"Retry-After": "1"} if status == 429 else {}
        self._send(status, _line(_status(status)), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _status(code: int) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": f"as told: {code}"}


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


@contextmanager
def api_port() -> Iterator[int]:
    """`kubectl proxy`: plain HTTP, with the rights of whoever runs the tests."""
    command = [shutil.which("kubectl") or "kubectl", "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()


@contextmanager
def faulty_api(*, upstream: int, seed: int) -> Iterator[tuple[ApiProxy, str]]:
    """The proxy, serving, and its URL."""
    proxy = ApiProxy(upstream=upstream, seed=seed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    threads = [threading.Thread(target=act, daemon=True) for act in (server.serve_forever, proxy.cut_all_for_ever)]
    for thread in threads:
        thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_port}"
    finally:
        proxy.stop()
        server.shutdown()
        server.server_close()
