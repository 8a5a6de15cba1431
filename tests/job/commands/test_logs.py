"""`mnist-job logs`: the stored log as it is, chosen, as sentences, and as it comes."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job import clock
from job.commands import logs
from job.commands.cli import parse_command_line
from job.config_sources import load_config
from job.contract import ExitCode, attempt_prefix, log_key
from job.errors import ConfigError, NotFoundError, UnavailableError
from job.runs.read import ATTEMPT_FILE
from job.store.store import Store
from tests.job.runs.committed_runs import commit_run

_TICK_SECONDS = 0.02
"""The clock of a folder is not as fine as a test."""
_END = {"event": "run.end", "level": "info", "outcome": "committed", "code": 0}
_FAILED = _END | {"outcome": "failed", "code": 65}


def a_line(second: int, **fields: object) -> bytes:
    time_ = f"2026-11-26T22:00:{second:02d}.000Z"
    return (
        json.dumps(
            {"time": time_, "level": "info", "event": "train.progress", "message": f"at {second}"} | fields
        ).encode()
        + b"\n"
    )


def put(store: Store, number: int, *lines: bytes, attempt: str = "a1") -> bytes:
    store.create(log_key("r", attempt_id=attempt, number=number), b"".join(lines))
    return b"".join(lines)


def register(store: Store, attempt: str) -> None:
    store.create(attempt_prefix("r", attempt_id=attempt) + ATTEMPT_FILE, b"{}")
    time.sleep(_TICK_SECONDS)


@pytest.fixture
def print_logs(folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[bytes, bytes]]:
    def run(*arguments: str) -> tuple[bytes, bytes]:
        line = parse_command_line(["logs", "r", *arguments])
        assert logs.print_log(line, load_config([f"--store.uri=file:{folder}"], config_file=None)) == ExitCode.OK
        captured = capsysbinary.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def while_asleep(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Each time that the follower sleeps, its clock moves on and the next of these happens."""

    def happen(*steps: Callable[[], object]) -> None:
        now, left = [0.0], list(steps)

        def sleep(seconds: float) -> None:
            now[0] += seconds
            time.sleep(_TICK_SECONDS)
            if left:
                left.pop(0)()

        monkeypatch.setattr(clock, "sleep", sleep)
        monkeypatch.setattr(clock, "monotonic", lambda: now[0])

    return happen


PrintLogs = Callable[..., tuple[bytes, bytes]]
WhileAsleep = Callable[..., None]


def test_every_byte_is_printed_attempts_in_the_order_in_which_they_started(store: Store, print_logs: PrintLogs) -> None:
    later = put(store, 0, a_line(30), attempt="a1")
    first = put(store, 0, a_line(1), b"not ours \xff\n", attempt="b1")
    assert print_logs()[0] == first + later
    assert print_logs("-o", "json")[0] == first + later


def test_lines_are_chosen_by_attempt_level_and_event(store: Store, print_logs: PrintLogs) -> None:
    saved = a_line(2, event="checkpoint.saved")
    skipped = a_line(3, event="checkpoint.skipped", level="warning")
    put(store, 0, a_line(1), saved, skipped, b"not ours\n")
    failed = put(store, 0, a_line(4, event="error", level="error"), attempt="b1")
    assert print_logs("--attempt", "b")[0] == failed
    assert print_logs("--level", "warning")[0] == skipped + failed
    assert print_logs("--event", "checkpoint.")[0] == saved + skipped
    assert print_logs("--event", "checkpoint.saved", "--level=info")[0] == saved
    assert print_logs("--event", "check")[0] == b""
    with pytest.raises(NotFoundError, match="no stored log of attempt c in file:"):
        print_logs("--attempt", "c")
    with pytest.raises(ConfigError, match="must not be empty"):
        print_logs("--event", "")


@pytest.mark.security("S11")
def test_text_is_time_level_and_sentence_and_steers_no_terminal(store: Store, print_logs: PrintLogs) -> None:
    error = {
        "event": "error",
        "level": "error",
        "message": "failed\n\x1b[2J",
        "stack": "Traceback\n  File \x1b]0;x\x07",
    }
    of_old = a_line(2, event="checkpoint.saved", step=7, key="k", seconds=0.5, message=None)
    put(
        store,
        0,
        a_line(1),
        of_old,
        a_line(3, **error),
        b"\x9b not ours \xff\n",
        a_line(4, message=[1], event=2, level=None),
        a_line(5, stack=5, stacks={"x": 1}),
    )
    assert print_logs("-o", "text")[0].decode().splitlines() == [
        "2026-11-26T22:00:01.000Z INFO    at 1",
        "2026-11-26T22:00:02.000Z INFO    A checkpoint of step 7 is saved after 0.5 s",
        r"2026-11-26T22:00:03.000Z ERROR   failed \u001b[2J",
        "    Traceback",
        r"      File \u001b]0;x\u0007",
        r"\x9b not ours \xff",
        "2026-11-26T22:00:04.000Z NONE    [1]",
        "2026-11-26T22:00:05.000Z INFO    at 5",
    ]


def test_follow_prints_what_comes_and_ends_with_the_run(
    store: Store, print_logs: PrintLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that was interrupted is no end: the next one goes on."""
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.02)
    written = put(store, 0, a_line(1), a_line(2, **_END | {"outcome": "failed", "code": 65}), attempt="a0")
    written += put(store, 0, a_line(3))

    def go_on() -> None:
        time.sleep(0.1)
        put(store, 1, a_line(4, **_END | {"outcome": "interrupted", "code": 75}))
        time.sleep(0.1)
        put(store, 0, a_line(5), attempt="b1")
        time.sleep(0.1)
        put(store, 1, a_line(6, **_END), attempt="b1")

    thread = threading.Thread(target=go_on)
    thread.start()
    output, notice = print_logs("-f")
    thread.join()
    written += a_line(4, **_END | {"outcome": "interrupted", "code": 75}) + a_line(5) + a_line(6, **_END)
    assert (output, notice) == (written, b"mnist-job: run r ended as committed with exit code 0\n")


def test_follow_knows_an_end_that_a_warning_follows(store: Store, print_logs: PrintLogs) -> None:
    put(store, 0, a_line(1), a_line(2, **_END | {"outcome": "failed", "code": 70}), a_line(3, event="index.failed"))
    put(store, 1, a_line(4, event="index.failed"))
    assert print_logs("-f")[1] == b"mnist-job: run r ended as failed with exit code 70\n"


def test_follow_goes_on_while_another_attempt_trains_after_a_failure(
    store: Store, print_logs: PrintLogs, while_asleep: WhileAsleep
) -> None:
    """It has registered, and has stored no line so far."""
    register(store, "a")
    written = put(store, 0, a_line(1), a_line(2, **_FAILED), attempt="a")
    time.sleep(_TICK_SECONDS)
    register(store, "b")
    while_asleep(
        lambda: None,
        lambda: put(store, 0, a_line(3), attempt="b"),
        lambda: put(store, 1, a_line(4, **_END), attempt="b"),
    )
    output, notice = print_logs("-f")
    assert output == written + a_line(3) + a_line(4, **_END)
    assert notice == b"mnist-job: run r ended as committed with exit code 0\n"


def test_follow_goes_on_when_a_start_beside_the_live_one_is_refused(
    store: Store, print_logs: PrintLogs, while_asleep: WhileAsleep
) -> None:
    register(store, "a")
    written = put(store, 0, a_line(1), attempt="a")
    refused, end = a_line(2, **_FAILED | {"code": 73}), a_line(3, **_FAILED)
    while_asleep(
        lambda: put(store, 0, refused, attempt="other"),
        lambda: None,
        lambda: put(store, 1, end, attempt="a"),
    )
    output, notice = print_logs("-f")
    assert output == written + refused + end
    assert notice == b"mnist-job: run r ended as failed with exit code 65\n"


def test_follow_waits_for_what_a_run_says_after_its_commit(
    store: Store, print_logs: PrintLogs, while_asleep: WhileAsleep
) -> None:
    """The gate, the tidying of the store and the report come between COMMIT and the last segment."""
    commit_run(store, "r")
    put(store, 0, a_line(1), attempt="a")
    a_minute = [lambda: None] * 12
    while_asleep(*a_minute, lambda: put(store, 1, a_line(2, **_END), attempt="a"))
    output, notice = print_logs("-f")
    assert output == a_line(1) + a_line(2, **_END)
    assert notice == b"mnist-job: run r ended as committed with exit code 0\n"


def test_follow_of_a_process_that_was_killed_after_its_commit_ends(
    store: Store, print_logs: PrintLogs, while_asleep: WhileAsleep
) -> None:
    commit_run(store, "r")
    put(store, 0, a_line(1), attempt="a")
    while_asleep()
    assert print_logs("-f")[1] == b"mnist-job: run r has a result\n"


def test_follow_of_a_run_that_says_nothing_more_ends(
    store: Store, print_logs: PrintLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="run r is not in file:"):
        print_logs("-f")
    put(store, 0, a_line(1))
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(logs, "_SILENT_SECONDS", 0.1)
    with pytest.raises(UnavailableError, match="run r has stored no line for"):
        print_logs("-f")
