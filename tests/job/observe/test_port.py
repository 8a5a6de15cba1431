"""The metrics port and its enemies: real sockets, and a process of its own where descriptors run out."""

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from job.contract import ExitCode
from job.observe import exposition, port
from job.observe.metrics import Metrics
from job.observe.phases import Phases
from job.observe.termination import Status
from tests.conftest import QUICK, REPOSITORY, job_command, job_environment
from tests.ports import free_ports

pytestmark = pytest.mark.security("S9")

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
OPENMETRICS = b"Accept: application/openmetrics-text; version="


@pytest.fixture
def served() -> int:
    found = exposition.serve(Metrics(status=Status(), phases=Phases()).running, port=0)
    assert found
    return found


def connect(to: int, *, timeout: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", to), timeout=timeout)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65_536):
        received += part
    return received


def ask(to: int, request: bytes, *, is_half_closed: bool = False, timeout: float = 10) -> bytes:
    """All that the port answers until it closes."""
    with connect(to, timeout=timeout) as connection:
        connection.sendall(request)
        if is_half_closed:
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def is_served(to: int) -> bool:
    return ask(to, GET + b"\r\n").startswith(b"HTTP/1.1 200 OK")


# Request -> the first line of the answer. None of them may leave a line on stderr.
REQUESTS = {
    "plain": (GET + b"\r\n", b"200 OK"),
    "bare line feeds": (b"GET /metrics HTTP/1.0\n\n", b"200 OK"),
    "query": (b"GET /metrics?name[]=%ff%00 HTTP/1.1\r\n\r\n", b"200 OK"),
    "version that is none": (GET + OPENMETRICS + b"abc\r\n\r\n", b"200 OK"),
    "version without end": (GET + OPENMETRICS + b"9" * 5000 + b"\r\n\r\n", b"200 OK"),
    "accept of bytes": (GET + b"Accept: \xff\x00;q=\r\nAccept-Encoding: gzip;q=x, \x80\r\n\r\n", b"200 OK"),
    "pipelined": ((GET + b"\r\n") * 50, b"200 OK"),
    "other path": (b"GET /x\x1b[31m HTTP/1.1\r\n\r\n", b"404 Not Found"),
    "body": (b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 50_000, b"405 Method Not Allowed"),
    "garbage": (bytes(range(256)) + b"\r\n\r\n", b"400 Bad Request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400 Bad Request"),
    "HTTP/0.9": (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
    "long line": (b"GET /" + b"a" * 200_000, b"431 Request Header Fields Too Large"),
    "many headers": (GET + b"X: 1\r\n" * 5000 + b"\r\n", b"431 Request Header Fields Too Large"),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_whatever_is_asked_is_answered_and_nothing_is_printed(
    name: str, served: int, capfd: pytest.CaptureFixture[str]
) -> None:
    request, status = REQUESTS[name]
    answer = ask(served, request)
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert is_served(served)
    assert capfd.readouterr() == ("", "")


def test_head_is_answered_without_a_body(served: int) -> None:
    head, _, body = ask(served, b"HEAD /metrics HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert (head.startswith(b"HTTP/1.1 200 OK"), body) == (True, b"")


def test_a_client_that_ends_early_gets_what_it_asked_for(served: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(served, GET + b"\r\n", is_half_closed=True).startswith(b"HTTP/1.1 200 OK")
    assert ask(served, GET, is_half_closed=True).startswith(b"HTTP/1.1 400")
    for request in (b"", GET, GET + b"\r\n"):  # gone, with a reset
        with connect(served) as connection:
            connection.sendall(request)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert is_served(served)
    assert capfd.readouterr() == ("", "")


def test_slow_clients_are_closed_in_time(served: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "REQUEST_SECONDS", 0.3)
    tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    started = time.monotonic()
    for sent in (b"", GET, tls):
        assert ask(served, sent) == b""
    with connect(served) as dripping, pytest.raises(OSError, match=r"reset|pipe"):
        drip(dripping)
    assert time.monotonic() - started < 10


def drip(connection: socket.socket) -> None:
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.01)


def test_more_clients_than_the_port_holds_keep_nobody_out(served: int) -> None:
    held = [connect(served) for _ in range(4 * port.MAX_CONNECTIONS)]
    try:
        assert is_served(served)
        assert held[0].recv(1) == b""  # the oldest was closed
    finally:
        for connection in held:
            connection.close()


def test_refused_clients_are_counted_in_one_line_a_minute(
    served: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    minutes = [0.0]
    monkeypatch.setattr("job.clock.monotonic", lambda: 60 * minutes[0])
    for minute in (1, 1.1, 1.2, 2.1):
        minutes[0] = minute
        ask(served, b"\x1b]0;x\x07\r\n\r\n")
    lines = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [line.pop("bad_request") for line in lines] == [1, 3]
    assert [record.message for record in caplog.records] == ["metrics.clients_refused"] * 2
    assert lines[0]["last_address"].endswith("127.0.0.1")
    assert "set observe.metrics_address" in lines[0]["reason"]


def test_pages_are_made_once_a_second_and_a_page_that_fails_is_no_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made: list[int] = []

    def page() -> bytes:
        made.append(1)
        if len(made) > 1:
            raise RuntimeError("dictionary changed size during iteration")
        return b"text"

    monkeypatch.setattr(port, "FRESH_SECONDS", 1000.0)
    listener = port.listen("127.0.0.1", port=0)
    port.serve_pages(listener, {"/metrics": page})
    to = listener.getsockname()[1]
    assert [ask(to, GET + b"\r\n")[-4:] for _ in range(3)] == [b"text"] * 3
    assert made == [1]

    def fails() -> bytes:
        raise RuntimeError("dictionary changed size during iteration")

    other = port.listen("127.0.0.1", port=0)
    port.serve_pages(other, {"/metrics": fails})
    assert ask(other.getsockname()[1], GET + b"\r\n").startswith(b"HTTP/1.1 500")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("address", "other"), [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
def test_the_port_is_open_on_the_chosen_address_alone(address: str, other: str) -> None:
    made = exposition.serve(Metrics(status=Status(), phases=Phases()).running, port=0, address=address)
    assert made
    socket.create_connection((address, made), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((other, made), timeout=5)


def test_an_address_of_another_machine_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert exposition.serve(Metrics(status=Status(), phases=Phases()).running, port=0, address="192.0.2.1") is None
    [warning] = caplog.records
    assert warning.fields == {  # type: ignore[attr-defined]
        "port": 0,
        "address": "192.0.2.1",
        "reason": "Cannot assign requested address; set observe.metrics_address to an address of this machine, or leave it out",
    }


_SERVE = """
import os, resource, sys, threading
from job import logs
from job.observe import port
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
logs.configure("json")
files = [open(os.devnull) for _ in range(int(sys.argv[2]))]
listener = port.listen("127.0.0.1", port=0)
port.serve_pages(listener, {"/metrics": lambda: b"text"})
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    kept = [open(os.devnull) for _ in range(int(line))]
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("opened", threading.active_count(), used.ru_utime + used.ru_stime, flush=True)
    del kept
"""


class Served:
    """A process that serves a page, and can be asked to open so many files, as a checkpoint does."""

    def __init__(self, *, limit: int, num_open: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(limit), str(num_open)],
            env=job_environment({"PYTHONPATH": str(REPOSITORY)}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def open_files(self, number: int) -> tuple[int, float]:
        """Threads of the process, and seconds of a core that it has used."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("opened"):
            assert line, self.process.communicate()[1]
        _, threads, seconds = line.split()
        return int(threads), float(seconds)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(**keywords: int) -> Served:
        started.append(Served(**keywords))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_400_slow_clients_take_neither_threads_nor_descriptors(serve: Callable[..., Served]) -> None:
    served = serve(limit=256, num_open=0)
    threads, _ = served.open_files(10)
    held = [connect(served.port) for _ in range(40)]
    flood = [socket.socket() for _ in range(360)]
    for connection in flood:
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", served.port))
    for connection in held:
        connection.send(b"GET /m")
    assert served.open_files(200)[0] == threads
    for connection in held + flood:
        connection.close()


def test_the_last_descriptors_stay_with_the_training(serve: Callable[..., Served]) -> None:
    served = serve(limit=128, num_open=85)  # the port has eight of its own
    held = [connect(served.port) for _ in range(20)]
    time.sleep(0.3)
    served.open_files(28)
    for connection in held:
        connection.close()


def test_an_accept_without_descriptors_costs_no_time(serve: Callable[..., Served]) -> None:
    served = serve(limit=64, num_open=0)
    _, before = served.open_files(1)
    with connect(served.port):
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (5, 64))  # fewer than are open: each accept fails
        with pytest.raises(TimeoutError):
            ask(served.port, GET + b"\r\n", timeout=2)
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        _, after = served.open_files(1)
    assert after - before < 0.5


def attack(to: int, stop: threading.Event) -> None:
    """Ask, stay silent, send garbage and drop connections until told to stop."""
    held: list[socket.socket] = []
    sent = (GET + b"\r\n", GET + OPENMETRICS + b"abc\r\n\r\n", b"\x16\x03\x01" * 100, b"GET /m", b"")
    while not stop.wait(0.002):
        connection = socket.socket()
        connection.settimeout(0.2)
        try:
            connection.connect(("127.0.0.1", to))
            connection.sendall(sent[len(held) % len(sent)])
        except OSError:  # the backlog is full, or the run has not opened its port yet
            time.sleep(0.02)
        held.append(connection)
        if len(held) > 400:
            held.pop(0).close()
    for connection in held:
        connection.close()


@pytest.mark.full
@pytest.mark.tf
def test_a_training_under_attack_keeps_its_checkpoints_and_hears_the_signal(tmp_path: Path) -> None:
    [to] = free_ports(1)
    arguments = [
        "run",
        *QUICK,
        "--train.epochs=100000",
        "--run.id=r",
        f"--observe.metrics_port={to}",
        "--checkpoint.interval_seconds=0.2",
    ]
    stop = threading.Event()
    events: list[dict[str, Any]] = []
    attacker = threading.Thread(target=attack, args=(to, stop))
    with subprocess.Popen(
        job_command(arguments), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=job_environment({"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY)}),
    ) as process:  # fmt: skip
        try:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 256))
            attacker.start()
            assert process.stdout
            while [event["event"] for event in events].count("checkpoint.saved") < 5:
                events.append(json.loads(process.stdout.readline()))
            assert is_served(to)
            process.terminate()
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            stop.set()
            attacker.join()
    events += [json.loads(line) for line in output.splitlines()]
    names = [event["event"] for event in events]
    assert (process.returncode, "checkpoint.failed" in names, "Traceback" in errors) == (
        ExitCode.INTERRUPTED,
        False,
        False,
    )
    seconds = time_of(events[-1]) - time_of(events[0])
    assert 1 <= names.count("metrics.clients_refused") <= 1 + seconds / port.LOG_SECONDS


def time_of(event: Mapping[str, str]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()
