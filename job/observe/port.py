"""A port that shows a few pages to whoever reaches it, and that no client can use to hurt the process behind it.

One thread holds a small, fixed number of connections. Each has seconds for its request and for its reply, and is closed after one
request. Owns nothing of what the pages say. docs/adr/0029 says why no server of a library does this.
"""

import asyncio
import contextlib
import math
import re
import resource
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus

from job import clock
from job.logs import warn

Page = Callable[[], bytes]

MAX_CONNECTIONS = 16
"""Held at a time. One more closes the oldest of the address that holds the most."""
REQUEST_SECONDS = REPLY_SECONDS = 5.0
MAX_REQUEST_BYTES = 8192
FRESH_SECONDS = 1.0
"""A page is made again after so long: making the series takes a millisecond of the interpreter that training needs, too."""
LOG_SECONDS = 60.0

_BETWEEN_ACCEPTS_SECONDS = 0.02
_BETWEEN_READS_SECONDS = 0.05
"""After a read that brought no whole request: a client that sends single bytes wakes this thread no more often."""
_SHORT_SECONDS = 1.0
"""Until the next accept, when the process is short of descriptors."""
_KEPT_DESCRIPTORS = 32
"""Of the process's limit, which no client may take: checkpoints, the export and the store need some."""
_BACKLOG = 64
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 2**16

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_REQUEST = re.compile(
    rb"([A-Z]{1,16}) (?:http://[^/? ]*)?(/[^? ]*)(?:\?[^ ]*)? HTTP/1\.[01]\r?\n(?:.*\n)?\r?\n", re.DOTALL
)
_ADVICE = "training goes on; let only your Prometheus reach observe.metrics_port, or set observe.metrics_address"


def listen(address: str | None, *, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        address: IPv4 or IPv6, as numbers; None: all, of both kinds where the machine has both.
        port: 0 chooses a free one.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    if address is None:
        is_dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if is_dual else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=is_dual, backlog=_BACKLOG)
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    family, _, _, _, place = found[0]
    return socket.create_server(place, family=family, backlog=_BACKLOG)


def serve_pages(listener: socket.socket, pages: Mapping[str, Page]) -> None:
    """Answer GET and HEAD from a thread of its own, which ends with the process.

    Args:
        pages: path -> what makes its text. Whatever it raises is answered with 500.
    """
    server = _Server(listener, {path.encode(): _Fresh(page) for path, page in pages.items()})
    threading.Thread(target=lambda: asyncio.run(server.accept()), daemon=True, name="metrics").start()


class _Fresh:
    """A page that is made at most once in `FRESH_SECONDS`."""

    def __init__(self, page: Page) -> None:
        self._page, self._text, self._until = page, b"", -math.inf

    def text(self) -> bytes:
        """The page; empty where it could not be made, which is not tried again at once either."""
        now = clock.monotonic()
        if now >= self._until:
            self._text, self._until = b"", now + FRESH_SECONDS
            with contextlib.suppress(Exception):  # such as of a series that training is changing
                self._text = self._page()
        return self._text


class _Refusals:
    """Counts clients that were not served, and says so in at most one line in `LOG_SECONDS`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._quiet_until = -math.inf

    def count(self, why: str, *, address: str) -> None:
        self._counts[why] += 1
        now = clock.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_SECONDS
            counts, self._counts = self._counts, Counter()
            warn("metrics.clients_refused", **counts, last_address=address, reason=_ADVICE)


class _Server:
    def __init__(self, listener: socket.socket, pages: Mapping[bytes, _Fresh]) -> None:
        self._listener, self._pages = listener, pages
        self._held: dict[asyncio.Task[None], str] = {}
        self._refusals = _Refusals()
        listener.setblocking(False)

    async def accept(self) -> None:
        """Take connections for ever, no faster than training can do without."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, place = await loop.sock_accept(self._listener)
                is_short = _is_short_of_descriptors(connection)
            except OSError:  # no descriptor is left: the connection stays where the kernel keeps it
                await asyncio.sleep(_SHORT_SECONDS)
                continue
            if is_short:
                connection.close()
                self._refusals.count("no_descriptors", address=place[0])
                await asyncio.sleep(_SHORT_SECONDS)
                continue
            self._hold(connection, address=place[0])
            await asyncio.sleep(_BETWEEN_ACCEPTS_SECONDS)

    def _hold(self, connection: socket.socket, *, address: str) -> None:
        if len(self._held) >= MAX_CONNECTIONS:
            [(greediest, _)] = Counter(self._held.values()).most_common(1)
            next(task for task, holder in self._held.items() if holder == greediest).cancel()
        task = asyncio.get_running_loop().create_task(self._talk(connection, address=address))
        self._held[task] = address
        task.add_done_callback(self._held.pop)

    async def _talk(self, connection: socket.socket, *, address: str) -> None:
        """Read one request, answer it, and close."""
        with connection:
            try:
                await self._answer(connection, address=address)
            except TimeoutError:
                self._refusals.count("too_slow", address=address)
            except asyncio.CancelledError:
                self._refusals.count("too_many", address=address)
            except OSError:  # the client went away, as a probe does
                return

    async def _answer(self, connection: socket.socket, *, address: str) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            head = await _read_head(connection)
        if not head:  # it asked for nothing, as a probe does
            return
        reply, why = self._reply(head)
        if why:
            self._refusals.count(why, address=address)
        async with asyncio.timeout(REPLY_SECONDS):
            await asyncio.get_running_loop().sock_sendall(connection, reply)
        await _linger(connection)

    def _reply(self, head: bytes) -> tuple[bytes, str]:
        """A whole reply, and why the client was not served; empty when it was."""
        if len(head) > MAX_REQUEST_BYTES:
            return _to_reply(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), "bad_request"
        found = _REQUEST.fullmatch(head)
        if not found:
            return _to_reply(HTTPStatus.BAD_REQUEST), "bad_request"
        method, path = found.groups()
        if method not in (b"GET", b"HEAD"):
            return _to_reply(HTTPStatus.METHOD_NOT_ALLOWED, more="Allow: GET, HEAD\r\n"), "bad_request"
        if path not in self._pages:
            return _to_reply(HTTPStatus.NOT_FOUND, b" and ".join(self._pages) + b"\n"), ""
        text = self._pages[path].text()
        if not text:
            return _to_reply(HTTPStatus.INTERNAL_SERVER_ERROR), "failed"
        return _to_reply(HTTPStatus.OK, text, is_head=method == b"HEAD"), ""


def _is_short_of_descriptors(connection: socket.socket) -> bool:
    """Whether the kernel, which gives the lowest free number, has few left to give."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit != resource.RLIM_INFINITY and connection.fileno() >= limit - _KEPT_DESCRIPTORS


async def _read_head(connection: socket.socket) -> bytes:
    """The request without its body: whole, cut off by a client that has ended, or a little above the limit."""
    loop, head = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(connection, MAX_REQUEST_BYTES + 1 - len(head)):
        head += part
        if (end := _END_OF_HEAD.search(head)) and end.end() <= MAX_REQUEST_BYTES:
            return head[: end.end()]
        if len(head) > MAX_REQUEST_BYTES:
            break
        await asyncio.sleep(_BETWEEN_READS_SECONDS)
    return head


async def _linger(connection: socket.socket) -> None:
    """Wait a moment for the client to close: the kernel throws a reply away with what was sent to us and not read."""
    loop = asyncio.get_running_loop()
    try:
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_LINGER_SECONDS):
            while await loop.sock_recv(connection, _LINGER_BYTES):
                await asyncio.sleep(_BETWEEN_READS_SECONDS)
    except OSError:  # time is up, or it went away: it was answered
        return


def _to_reply(status: HTTPStatus, text: bytes | None = None, *, is_head: bool = False, more: str = "") -> bytes:
    body = f"{status.phrase}\n".encode() if text is None else text
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else body)
