"""How metrics leave the process: /metrics and /healthz while it runs, the Pushgateway and a text file at its end.

None of it may fail a run: what does not work is a warning.
"""

import errno
import http.client
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from job.logs import emit, warn
from job.observe.port import listen, serve_pages
from job.store.faults import reason_of
from job.texts import one_line

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PUSH_SECONDS = 5.0
"""How long a push may take: a Pushgateway that is away must not hold the exit back."""

_JOB = "mnist-train"
_ANSWER_BYTES = 500
"""As much of an answer as is looked at."""

Families = Callable[[], Iterator[Any]]


def serve(families: Families, *, port: int, address: str | None = None) -> int | None:
    """Answer /metrics and /healthz from a thread of its own; returns the port, or None when it is taken.

    Args:
        families: the series at the time of a scrape.
        port: 0 chooses a free one.
        address: IPv4 or IPv6 of this machine; None: all.
    """
    try:
        listener = listen(address, port=port)
    except OSError as error:
        advice = "choose another observe.metrics_port, or 0 for none"
        if error.errno == errno.EADDRNOTAVAIL:
            advice = "set observe.metrics_address to an address of this machine, or leave it out"
        where = {"port": port} | ({"address": address} if address else {})
        warn("metrics.not_served", **where, reason=f"{reason_of(error)}; {advice}")
        return None
    serve_pages(listener, {"/metrics": lambda: to_text(families), "/healthz": lambda: b"ok\n"})
    return int(listener.getsockname()[1])


def push_start(url: str, families: Families, *, group: Mapping[str, str]) -> None:
    """`push` from a thread of its own: the attempt does not wait for a gateway. What is lost so, the end says again."""
    act = partial(push, url, families, group=group, at="start")
    threading.Thread(target=act, daemon=True, name="push of the start").start()


def push(url: str, families: Families, *, group: Mapping[str, str], at: str = "end") -> None:
    """Add series to a group of the Pushgateway at `url`, for `PUSH_SECONDS` at most; others of the group stay as they are.

    Says `metrics.pushed`, or `metrics.not_pushed` and why.

    Args:
        group: labels; what is empty is left out.
        at: whether the attempt starts or ends, for the log.
    """
    from prometheus_client import pushadd_to_gateway

    registry, failure = _registry(families), f"no answer within {PUSH_SECONDS:g} s"

    def attempt() -> None:
        nonlocal failure
        try:
            pushadd_to_gateway(
                url,
                job=_JOB,
                registry=registry,
                grouping_key={name: one_line(value) for name, value in group.items() if value},
                timeout=PUSH_SECONDS,
                handler=_request,
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            failure = f"{type(error).__name__}: {one_line(error, limit=300)}"
        else:
            failure = ""

    thread = threading.Thread(target=attempt, daemon=True, name="push")  # a name server that is away knows no time-out
    thread.start()
    thread.join(PUSH_SECONDS)
    if failure:
        warn(
            "metrics.not_pushed",
            url=url,
            at=at,
            reason=f"{failure}; correct observe.pushgateway_url or start the gateway",
        )
    else:
        emit("metrics.pushed", url=url, at=at)


def _request(
    url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
) -> Callable[[], None]:
    """Sends one push, in the form that prometheus_client asks for.

    Raises:
        OSError: it was not accepted; the client's own handler sees no more than the status, and follows a 301 with a GET.
    """

    def send() -> None:
        request = urllib.request.Request(url, data=data, headers=dict(headers), method=method)  # noqa: S310 - the user's own
        try:
            with urllib.request.build_opener(_SameMethod).open(request, timeout=timeout) as answer:
                kind, body = answer.headers.get_content_type(), answer.read(_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            raise OSError(f"{error}: {error.read(_ANSWER_BYTES).decode(errors='replace')}") from error
        if kind == "text/html" or body.lstrip().startswith(b"<"):
            raise OSError(f"{answer.url} answered with a page, as a login or a web server does, not as a Pushgateway")

    return send


class _SameMethod(urllib.request.HTTPRedirectHandler):
    """Sends what is redirected again as it was: urllib itself makes a GET of it for 301, 302 and 303, and drops the body.

    It goes to the host that the user named, and to no other: who answers must not choose whom this process talks to.
    """

    def http_error_302(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        """Before urllib reads the answer, which may have no end, close it."""
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The same request to the place that was named; 303 asks for a GET of something else, so that it is none of ours."""
        if code == http.HTTPStatus.SEE_OTHER:
            return None
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("https", old.scheme) or new.hostname != old.hostname or "@" in new.netloc:
            raise OSError("it redirects to another host, to another kind of address, or from https to http")
        return urllib.request.Request(newurl, data=req.data, headers=req.headers, method=req.get_method())  # noqa: S310


def to_text(families: Families) -> bytes:
    """The series in Prometheus' text format."""
    from prometheus_client import generate_latest

    return generate_latest(_registry(families))


def _registry(families: Families) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

    class Collected(Collector):
        def collect(self) -> Iterator[Any]:
            return families()

    registry = CollectorRegistry()
    registry.register(Collected())
    return registry
