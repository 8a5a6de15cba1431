"""Requests to the API server: plain JSON objects in and out, typed errors, one deadline over all tries of a request.

Objects stay the dicts that the server sends: nothing that a newer cluster adds is lost on the way from a template to a Job.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

from job.errors import IntegrityError
from job.texts import one_line
from k8s.connection import Connection
from k8s.errors import NoReplyError, ReplyError, ThrottledError, UnavailableError, UsageError, error_from_reply
from k8s.shapes import Object, fit, fit_all, parse_reply

T = TypeVar("T")

PATIENCE_SECONDS = 90.0
"""How long a server that has answered before may be away: longer than an API server takes to be replaced."""
FIRST_PATIENCE_SECONDS = 8.0
"""The same before its first answer: most likely there is no cluster."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0
_MAX_BACKOFF_SECONDS = 5.0
_MAX_REPLY_BYTES = 64 * 2**20
"""Of one reply: some 5,000 pods, of 13 kB each."""
_MAX_ERROR_BYTES = 64 * 2**10
_PIECE_BYTES = 64 * 2**10
"""Of a stream: what is read at once, however much a server sends."""
_MERGE_PATCH = "application/merge-patch+json"

_log = logging.getLogger("k8s")


class Api:
    """The requests that the client needs, in one namespace. All but creates are tried again until they are answered."""

    def __init__(
        self,
        connection: Connection,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        first_patience_seconds: float = FIRST_PATIENCE_SECONDS,
    ) -> None:
        self.namespace = connection.namespace
        self._client = connection.client
        self._patience_seconds = patience_seconds
        self._first_patience_seconds = min(first_patience_seconds, patience_seconds)
        self._has_answered = False

    def get(self, resource: str, name: str) -> Object:
        """One object; NotFoundError when it is not there."""
        return _fitted(self.persist(lambda: self._send("GET", resource, name)), "GET", resource, name)

    def list(self, resource: str, *, labels: str = "", fields: str = "") -> tuple[list[Object], str]:
        """All objects that match, as they are now, and the version to watch from; what is no such object is left out."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        found = self.persist(lambda: self._send("GET", resource, query=query))
        metadata = found.get("metadata")
        version = metadata.get("resourceVersion", "") if isinstance(metadata, dict) else ""
        return fit_all(resource, found.get("items")), str(version)

    def create_once(self, resource: str, body: Object) -> Object:
        """One try to create an object: the caller knows what a lost reply means.

        Raises:
            NoReplyError, UnavailableError: it may exist now.
            ConflictError: something of that name exists.
        """
        return _fitted(self._send("POST", resource, body=body), "POST", resource)

    def patch(self, resource: str, name: str, body: Object) -> Object:
        """A merge patch that says the same however often it is sent."""
        return _fitted(self.persist(lambda: self._send("PATCH", resource, name, body=body)), "PATCH", resource, name)

    def delete(self, resource: str, name: str, *, uid: str) -> None:
        """Delete exactly that object, its dependents after it; NotFoundError when it is gone."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        self.persist(lambda: self._send("DELETE", resource, name, body=body))

    @contextmanager
    def stream(
        self, resource: str, name: str = "", *, query: Mapping[str, str], silence_seconds: float
    ) -> Iterator[Iterator[bytes]]:
        """A reply in pieces, as they come, in one try.

        Raises:
            NoReplyError: it broke off, or nothing came for `silence_seconds`; also while it is read.
        """
        response = self._open("GET", resource, name, query=query, read_seconds=silence_seconds)
        try:
            yield _pieces(response, what=f"read {resource} {name}".strip())
        finally:
            response.close()

    def persist(self, request: Callable[[], T]) -> T:
        """Try until there is an answer; a server that is away for longer than the patience is an error."""
        started, pause = time.monotonic(), 0.1
        while True:
            try:
                return request()
            except UnavailableError as error:
                patience = self._patience_seconds if self._has_answered else self._first_patience_seconds
                wait = max(pause, error.retry_after_seconds) if isinstance(error, ThrottledError) else pause
                if time.monotonic() + wait > started + patience:
                    raise
                _log.warning("%s; trying again in %.1f s", error, wait)
            time.sleep(wait)
            pause = min(_MAX_BACKOFF_SECONDS, pause * 2)

    def _send(
        self,
        method: str,
        resource: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
    ) -> Object:
        response = self._open(method, resource, name, query=query or {}, body=body, read_seconds=READ_SECONDS)
        what = _describe(method, resource, name)
        try:
            with _no_reply(what):
                data = _read(response, _MAX_REPLY_BYTES + 1)
            if len(data) > _MAX_REPLY_BYTES:
                response.close()
                size = f"{_MAX_REPLY_BYTES // 2**20} MiB"
                raise ReplyError(
                    f"{what}: the reply is longer than {size}; delete Jobs that have ended, or name one --release"
                )
            return parse_reply(data, max_bytes=_MAX_REPLY_BYTES)
        except IntegrityError as error:  # such as cut off, by something that says that it was whole
            raise NoReplyError(f"{what}: {error}; try again later") from error
        finally:
            response.release_conn()

    def _open(
        self,
        method: str,
        resource: str,
        name: str,
        *,
        query: Mapping[str, str],
        body: Object | None = None,
        read_seconds: float,
    ) -> Any:
        """Send one request; returns urllib3's response, its body not read yet."""
        what = _describe(method, resource, name)
        given = [(key, value) for key, value in query.items() if value]
        content_type = _MERGE_PATCH if method == "PATCH" else "application/json"
        with _no_reply(what):
            request = self._client.param_serialize(
                method,
                _path(self.namespace, resource, name),
                query_params=given,
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = self._client.call_api(*request, _request_timeout=(CONNECT_SECONDS, read_seconds)).response
            self._has_answered = True
            if 200 <= response.status <= 299:
                return response
            data = _read(response, _MAX_ERROR_BYTES)
            response.close()
        raise error_from_reply(
            status=response.status,
            body=data,
            what=what,
            namespace=self.namespace,
            retry_after=response.headers.get("Retry-After"),
        )


_GROUPS = {"jobs": "/apis/batch/v1", "cronjobs": "/apis/batch/v1", "pods": "/api/v1", "events": "/api/v1"}
_VERBS = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}


def _path(namespace: str, resource: str, name: str) -> str:
    kind, _, sub = resource.partition("/")
    place = f"{_GROUPS[kind]}/namespaces/{quote(namespace, safe='')}/{kind}"
    return "/".join(filter(None, (place, quote(name, safe=""), sub)))


def _describe(method: str, resource: str, name: str) -> str:
    verb = "list" if method == "GET" and not name else _VERBS[method]
    return f"{verb} {resource} {name}".strip()


@contextmanager
def _no_reply(what: str) -> Iterator[None]:
    """What a connection that does not work says, as our own errors."""
    import urllib3
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except (ValueError, UnicodeError) as error:  # of http.client: a header or an address that none can be made of
        raise UsageError(
            f"{what}: no request can be made of the server, proxy-url and credentials of the kubeconfig "
            f"({one_line(error, limit=300)}); correct it there"
        ) from error
    except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
        text = one_line(error, limit=300)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            raise UsageError(
                f"{what}: the certificate of the API server cannot be verified ({text}); correct the kubeconfig"
            ) from error
        raise NoReplyError(f"{what}: the API server does not answer ({text}); is the cluster up?") from error


def _pieces(response: Any, *, what: str) -> Iterator[bytes]:
    with _no_reply(what):
        if response.chunked:
            yield from response.stream(amt=_PIECE_BYTES, decode_content=True)
        else:  # `stream` would wait until a piece is full
            while piece := response.read1(_PIECE_BYTES, decode_content=True):
                yield piece


def _read(response: Any, num_bytes: int) -> bytes:
    """The first so many bytes of a reply, or all of it."""
    data = bytearray()
    for piece in response.stream(amt=_PIECE_BYTES, decode_content=True):
        data += piece
        if len(data) >= num_bytes:
            break
    return bytes(data[:num_bytes])


def _fitted(content: Object, method: str, resource: str, name: str = "") -> Object:
    thing = fit(resource, content)
    if thing is None:
        what = _describe(method, resource, name)
        raise ReplyError(f"{what}: the reply is no object of that kind; see what is between here and the API server")
    return thing
