"""The one seam for time, sleep and random tokens."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from job import clock
from tests.conftest import REPOSITORY


def test_timestamp_is_utc_to_the_millisecond() -> None:
    assert clock.timestamp(0.25) == "1970-01-01T00:00:00.250+00:00"
    assert clock.timestamp(-99_999_999_999) == "0001-01-01T00:00:00.000+00:00"
    assert clock.timestamp(999_999_999_999) == "9999-12-31T23:59:59.000+00:00"
    assert abs(clock.now() - time.time()) < 5


def test_tokens_are_hex_and_differ() -> None:
    first, second = clock.token(8), clock.token(8)
    assert first != second
    assert len(bytes.fromhex(first)) == 8


def test_whoever_replaces_the_source_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(clock.Source):
        def now(self) -> float:
            return 1.0

        def monotonic(self) -> float:
            return 2.0

        def sleep(self, seconds: float) -> None:
            raise TimeoutError(seconds)

        def uniform(self, low: float, high: float) -> float:
            return high

        def token(self, num_bytes: int) -> str:
            return "0" * 2 * num_bytes

    monkeypatch.setattr(clock, "source", Still())
    assert (clock.now(), clock.monotonic(), clock.uniform(0, 3)) == (1.0, 2.0, 3)
    assert (clock.token(2), clock.timestamp()) == ("0000", "1970-01-01T00:00:01.000+00:00")
    with pytest.raises(TimeoutError):
        clock.sleep(1)


class Machine:
    """Clocks that a test moves: of the machine, and of how long the main thread has had a processor or waited for one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.elapsed = self.computed = 1000.0
        monkeypatch.setattr(clock, "_elapsed", lambda: self.elapsed)
        monkeypatch.setattr(clock, "_computed", lambda: self.computed)
        # A thread that ticks by itself would ask in between.
        monkeypatch.setattr(clock._Pauses, "_tick", lambda pauses: threading.Event().wait(60))
        monkeypatch.setattr(clock, "source", clock.Source())
        clock.monotonic()

    def pass_seconds(self, seconds: float, *, computing: float = 0.0) -> None:
        self.elapsed += seconds
        self.computed += computing


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "computing", "paused"),
    [
        (0.25, 0.0, 0.0),  # a tick in time
        (1.2, 0.0, 0.0),  # a busy machine
        (1.3, 0.0, 1.05),
        (10.25, 0.0, 10.0),
        (10.25, 0.25, 10.0),  # it computed until it was stopped
        (10.25, 9.0, 0.0),  # native code held the interpreter, such as an import
        (10.25, 6.0, 0.0),  # the same on a slow disk
        (86400.25, 0.2, 86400.0),
    ],
)
def test_a_pause_is_a_long_silence_in_which_nothing_was_computed(
    seconds: float, computing: float, paused: float, machine: Machine
) -> None:
    before = clock.monotonic()
    machine.pass_seconds(seconds, computing=computing)
    assert clock.monotonic() - before == pytest.approx(seconds - paused)
    assert clock.paused_seconds() == pytest.approx(paused)
    assert clock.elapsed() - before == pytest.approx(seconds)


def test_time_never_goes_back_over_any_number_of_pauses(machine: Machine) -> None:
    seen = []
    for seconds in (0.1, 500.0, 0.2, 0.3, 3.0, 7000.0, 0.0):
        machine.pass_seconds(seconds)
        seen.append(clock.monotonic())
    assert seen == sorted(seen)
    assert clock.paused_seconds() == pytest.approx(500.0 + 3.0 + 7000.0 - 3 * 0.25)


def test_whoever_waits_is_asked_again_after_a_pause(machine: Machine) -> None:
    asked: list[float] = []

    def step(seconds: float) -> bool:
        asked.append(seconds)
        machine.pass_seconds(300.0 if len(asked) == 2 else seconds)
        return len(asked) == 4

    assert clock.wait(step, seconds=5.0)
    assert len(asked) == 4


@pytest.mark.parametrize(("seconds", "num_steps"), [(0.0, 1), (-1.0, 1), (0.5, 2), (3.0, 4)])
def test_a_wait_ends_in_time(seconds: float, num_steps: int, machine: Machine) -> None:
    asked: list[float] = []

    def step(step_seconds: float) -> bool:
        asked.append(step_seconds)
        machine.pass_seconds(step_seconds)
        return False

    assert not clock.wait(step, seconds=seconds)
    assert sum(asked) == pytest.approx(max(0.0, seconds))
    assert len(asked) <= num_steps


WHILE_STOPPED = """
import sys, threading, time
from job import clock
{work}
"""
WORKS = {
    "nothing": """
clock.monotonic()
print("ready", flush=True)
while clock.paused_seconds() < 2: time.sleep(0.1)
print("well")
""",
    "watchdog": """
from job.observe.phases import Phases
from job.training import watchdog
phases = Phases()
def stalled(reason, stacks): print(reason, flush=True)
with watchdog.Watchdog(timeout_seconds=1.0, phases=phases, on_stall=stalled).watching():
    phases.switch("train")
    print("ready", flush=True)
    while clock.paused_seconds() < 2:
        time.sleep(0.1); phases.beat()
    time.sleep(0.5)
print("well")
""",
    "store": """
from job.store.store import Store
from job.store.backend import TransientError
class Backend:
    calls = 0
    def get(self, key, *, max_bytes=None):
        self.calls += 1
        if self.calls == 1:
            print("ready", flush=True)
            time.sleep(2)
            raise TransientError("the connection is gone")
        return b"data"
print("well" if Store(Backend(), uri="x", deadline_seconds=2.9).get("key") == b"data" else "")
""",
    "last save": """
from job.runs.checkpoint_writer import _StopDeadline
from job.signals import StopSignal
stop, saved = StopSignal(), threading.Event()
stop.request("SIGTERM")
threading.Timer(0.2, lambda: (clock.sleep(0.5), saved.set())).start()
print("ready", flush=True)
print("well" if _StopDeadline(stop, seconds=2.5).wait(saved) else "too late")
""",
}


@pytest.mark.parametrize("work", WORKS)
def test_a_process_that_was_stopped_has_its_time_again(work: str) -> None:
    """SIGSTOP and SIGCONT, for longer than any limit that is at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", WHILE_STOPPED.format(work=WORKS[work])],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.0)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "well"
