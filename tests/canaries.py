"""Canaries: a secret of its own for each place that may hold one, and the real programs run with all of them.

A `Programs` is one process that has imported both programs. It forks for each command line: the child calls the program's own
`main`, so that hundreds of command lines need no second each. `Echo` is a server that answers with all that it was sent.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.conftest import REPOSITORY, job_environment

_DRIVER = """
import json, os, sys
import job.__main__, job.commands.dispatch, job.commands.run, job.store.cloud, k8s.__main__, k8s.commands
import kubernetes.client, kubernetes.config, requests
for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((0, os.devnull), (1, case["stdout"]), (2, case["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
        os.environ.clear()
        os.environ.update(case["environ"])
        sys.argv = case["arguments"]
        (k8s if case["is_client"] else job).__main__.main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def canary(place: str) -> str:
    """A secret that is in no other text: 8 characters that nothing else has, then some that a URL, JSON and base64 change."""
    return f"Zq{hashlib.sha256(place.encode()).hexdigest()[:14]}/+%'x{place[-3:]}"


def leaks_of(secrets: Mapping[str, str], data: bytes) -> list[str]:
    """Which secrets are in some bytes: whole, their first 8 characters, quoted, or in base64 at any place of a longer text."""
    found = []
    for place, secret in secrets.items():
        inner = secret.encode()
        shifted = (base64.b64encode(b" " * shift + inner)[4:16] for shift in (0, 1, 2))
        forms = (inner, inner[:8], urllib.parse.quote(secret, safe="").encode(), base64.b64encode(inner)[:12], *shifted)
        if any(form in data for form in forms):
            found.append(place)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command line that has ended."""

    code: int
    output: bytes
    """What it wrote to stdout and stderr."""

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")


class Programs:
    """Runs command lines of `mnist-job` and `mnist-k8s` with an environment of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environ = job_environment({"PYTHONPATH": str(REPOSITORY)})
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environ,
        )

    def run(self, arguments: Sequence[str], environ: Mapping[str, str], *, is_client: bool = False) -> Ended:
        outputs = [self._folder / "stdout", self._folder / "stderr"]
        for output in outputs:
            output.write_bytes(b"")
        base = job_environment(
            {"PYTHONPATH": str(REPOSITORY), "HOME": str(self._folder), "XDG_CACHE_HOME": str(self._folder)}
        )
        case = {
            "arguments": ["mnist", *arguments],
            "environ": {name: value for name, value in (base | dict(environ)).items() if value},
            "is_client": is_client,
            "stdout": str(outputs[0]),
            "stderr": str(outputs[1]),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Ended(code=code, output=b"".join(output.read_bytes() for output in outputs))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


class Echo(ThreadingHTTPServer):
    """Answers every request with its own line, headers and body, as careless proxies do."""

    status: int = 403
    location: str = ""
    bodies: list[bytes]
    """What was sent to it, without headers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _EchoHandler(BaseHTTPRequestHandler):
    server: Echo

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.bodies.append(sent)
        body = f"{self.command} {self.path}\n{self.headers}".encode() + sent
        self.send_response(self.server.status)
        if 300 <= self.server.status < 400:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_CONNECT = _answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextmanager
def echo() -> Iterator[Echo]:
    server = Echo(("127.0.0.1", 0), _EchoHandler)
    server.bodies = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def everything_below(folder: Path) -> bytes:
    """Names and contents of all files."""
    parts = [
        os.fsencode(path.relative_to(folder)) + b"\n" + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return b"\n".join(parts)
