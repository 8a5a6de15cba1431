"""A proxy before moto's S3 server that breaks requests as it is told, in a process of its own.

Own process: the trials fork, which a process with servers' threads must not. Rules come by HTTP, see `S3Proxy`.
"""

import contextlib
import http.client
import json
import logging
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from tests.job.store.s3_faults import Fault, FaultyS3, Handler
from tests.s3_server import serve_s3

_RULES_PATH = "/__rules__"
_HOP_BY_HOP = ("connection", "content-length", "transfer-encoding", "keep-alive", "host", "server", "date")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which requests are broken, and how.

    Attributes:
        method, contains: of the request and its path with query; `excludes` must not be in it.
        skip, times: leave so many alone first, then break so many.
        slow_seconds: pass on the right answer, its body in pieces over so long a time.
    """

    method: str
    contains: str = ""
    excludes: str = "\n"
    skip: int = 0
    times: int = 1
    fault: Fault = field(default_factory=Fault)
    slow_seconds: float = 0.0


class _ProxyState(FaultyS3):
    def __init__(self, *, upstream: str) -> None:
        super().__init__()
        self.upstream, self.num_broken = upstream, 0
        self.rules: list[dict[str, Any]] = []

    def choose(self, method: str, path: str) -> dict[str, Any] | None:
        with self.lock:
            for rule in self.rules:
                if rule["method"] == method and rule["contains"] in path and rule["excludes"] not in path:
                    if rule["skip"] > 0:
                        rule["skip"] -= 1
                    elif rule["times"] > 0:
                        rule["times"] -= 1
                        self.num_broken += 1
                        return rule
            return None


class _ProxyHandler(Handler):
    state: _ProxyState

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == _RULES_PATH:
            self._control(body)
            return
        rule = self.state.choose(self.command, self.path)
        if rule is None:
            self._reply(*self._serve(body))
        elif rule["slow_seconds"]:
            self._reply_slowly(*self._serve(body), seconds=rule["slow_seconds"])
        else:
            self._break(body, Fault(**rule["fault"]))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _serve(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(self.state.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        connection.request(self.command, self.path, body=body or None, headers=headers)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        kept = {name: value for name, value in reply.getheaders() if name.lower() not in _HOP_BY_HOP}
        return reply.status, content, kept

    def _reply_slowly(self, status: int, body: bytes, headers: dict[str, str], *, seconds: float) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for start in range(0, 4):
            self.wfile.flush()
            time.sleep(seconds / 4)
            self.wfile.write(body[start * len(body) // 4 : (start + 1) * len(body) // 4])

    def _control(self, body: bytes) -> None:
        with self.state.lock:
            if self.command == "PUT":
                self.state.rules, self.state.num_broken = json.loads(body), 0
            answer = json.dumps({"broken": self.state.num_broken}).encode()
        self._reply(200, answer, {})


class S3Proxy:
    """The other end: starts the servers' process, and tells it what to break."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.endpoint, self.moto = json.loads(self._process.stdout.readline())

    def make_bucket(self, name: str) -> None:
        """Create a bucket, past the rules."""
        urllib.request.urlopen(urllib.request.Request(f"{self.moto}/{name}", method="PUT"), timeout=30).close()

    def set_rules(self, *rules: Rule) -> None:
        """Break these requests from now on, and no others."""
        self._control("PUT", json.dumps([asdict(rule) for rule in rules]).encode())

    def num_broken(self) -> int:
        """Requests that were broken since the rules were set."""
        count: int = self._control("GET", None)["broken"]
        return count

    def stop(self) -> None:
        """End the servers."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)

    def _control(self, method: str, body: bytes | None) -> Any:
        request = urllib.request.Request(f"{self.endpoint}{_RULES_PATH}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())


def main() -> None:
    """Serve until stdin closes."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serve_s3() as moto:
        state = _ProxyState(upstream=moto.removeprefix("http://"))
        handler = type("Handler", (_ProxyHandler,), {"state": state})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(json.dumps([f"http://127.0.0.1:{server.server_address[1]}", moto]), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read()
        state.stopping.set()


if __name__ == "__main__":
    main()
