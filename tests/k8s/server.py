"""A small API server for tests without a cluster: real HTTP, real JSON, a few rules of the real one, and faults on request.

It knows objects by path, label selectors of the form a=b, and field selectors on metadata.name and involvedObject.name. A Job
controller or kubelet it has not: tests put pods and conditions there themselves. What needs more is tested in a real cluster.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes.client import ApiClient, Configuration

from k8s.connection import Connection

Object = dict[str, Any]
Fault = Callable[["ApiHandler"], bool]
"""Answers in place of the server and returns True, or leaves it alone."""


@dataclass(slots=True)
class ApiServer:
    """The objects, and what was asked for."""

    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    logs: dict[str, list[bytes]] = field(default_factory=dict)
    """Pod -> what each further reading of its log sends."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """Each is asked once, in order, until it has acted."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    num_made: int = 0

    def add(self, resource: str, thing: Object) -> Object:
        with self.lock:
            self.num_made += 1
            made = {"uid": f"uid-{self.num_made}", "creationTimestamp": f"2026-11-24T03:00:{self.num_made:02d}Z"}
            thing["metadata"] = made | thing["metadata"]
            self.objects.setdefault(resource, {})[thing["metadata"]["name"]] = thing
            return thing

    def get(self, resource: str) -> list[Object]:
        return list(self.objects.get(resource, {}).values())


class ApiHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ApiServer

    def _handle(self) -> None:
        state = self.server_state
        with state.lock:
            state.requests.append((self.command, self.path))
            fault = state.faults[0] if state.faults else None
        if fault is not None and fault(self):
            with state.lock:
                state.faults.remove(fault)
            return
        self.serve()

    do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

    def serve(self, *, is_silent: bool = False) -> None:
        """The right answer; `is_silent` does what was asked for and drops the connection."""
        status, content = self._answer(self._body())
        if is_silent:
            self.drop()
        elif isinstance(content, bytes):
            self.reply(status, content)
        else:
            self.reply(status, json.dumps(content).encode())

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._body()
        self.reply(status, json.dumps(_status(status, message)).encode(), headers)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def send_half(self, body: bytes) -> None:
        """A reply that says that it is longer than it is."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 100))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.drop()

    def _body(self) -> Object:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content: Object = json.loads(text) if text else {}
        return content

    def _answer(self, body: Object) -> tuple[int, Any]:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        resource, _, rest = parts.path.partition("/namespaces/")[2].partition("/")[2].partition("/")
        name, _, sub = rest.partition("/")
        with self.server_state.lock:
            if sub == "log":
                pieces = self.server_state.logs.get(name, [])
                return (
                    (200, pieces.pop(0) if len(pieces) > 1 else pieces[0]) if pieces else (404, _status(404, "no pod"))
                )
            if "watch" in query:
                return 200, b""
            if self.command == "POST":
                return self._create(resource, body)
            things = self.server_state.objects.setdefault(resource, {})
            if not name:
                items = [thing for thing in things.values() if matches(thing, query)]
                return 200, {"metadata": {"resourceVersion": "1"}, "items": items}
            if name not in things:
                return 404, _status(404, f'{resource} "{name}" not found')
            return self._change(things, name, body)

    def _create(self, resource: str, body: Object) -> tuple[int, Object]:
        if body["metadata"]["name"] in self.server_state.objects.get(resource, {}):
            return 409, _status(409, f'{resource} "{body["metadata"]["name"]}" already exists')
        return 201, self.server_state.add(resource, body)

    def _change(self, things: dict[str, Object], name: str, body: Object) -> tuple[int, Object]:
        if self.command == "PATCH":
            things[name]["spec"] |= body["spec"]
        if self.command == "DELETE":
            if body["preconditions"]["uid"] != things[name]["metadata"]["uid"]:
                return 409, _status(409, "uid")
            return 200, things.pop(name)
        return 200, things[name]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def serve(state: ApiServer) -> tuple[ThreadingHTTPServer, str]:
    """Start it; returns the server and its URL."""
    handler = type("Handler", (ApiHandler,), {"server_state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def connection_to(url: str, *, namespace: str) -> Connection:
    """Plain HTTP, without credentials."""
    configuration = Configuration(host=url)
    configuration.retries = False
    return Connection(client=ApiClient(configuration), namespace=namespace)


def _status(code: int, message: str) -> Object:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}


def matches(thing: Object, query: dict[str, str]) -> bool:
    """Also of objects that tests have damaged: what has no labels or names has none that matches."""
    metadata = _part(thing, "metadata")
    labels = _part(metadata, "labels")
    wanted = [term.split("=") for term in query.get("labelSelector", "").split(",") if term]
    fields = {
        "metadata.name": metadata.get("name"),
        "involvedObject.name": _part(thing, "involvedObject").get("name"),
    }
    terms = [term.split("=") for term in query.get("fieldSelector", "").split(",") if term]
    return all(labels.get(key) == value for key, value in wanted) and all(fields[key] == value for key, value in terms)


def _part(thing: Object, key: str) -> Object:
    part = thing.get(key)
    return part if isinstance(part, dict) else {}
