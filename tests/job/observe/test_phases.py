"""A clock that is always in exactly one phase, so that phases add up."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from job.observe import phases as module
from job.observe.phases import PHASES, PROCESS, START_UP, Phases, seconds_since_process_start

AGE_SECONDS = 0.75
"""Of the process when its first phase starts."""


class Clock:
    """Time that passes when a test says so; a power of two, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1024.0
        self.paused_seconds = 0.0

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    source = SimpleNamespace(
        monotonic=lambda: clock.now - clock.paused_seconds, paused_seconds=lambda: clock.paused_seconds
    )
    monkeypatch.setattr("job.clock.source", source)
    monkeypatch.setattr(module, "seconds_since_process_start", lambda: AGE_SECONDS)
    return clock


def test_first_phase_is_what_went_before(clock: Clock) -> None:
    phases = Phases()
    clock.pass_seconds(2.0)
    assert phases.seconds == {PROCESS: AGE_SECONDS, START_UP: 2.0}


def test_inner_phase_is_not_counted_to_the_outer_one(clock: Clock) -> None:
    phases = Phases()
    with phases("train"):
        clock.pass_seconds(4.0)
        with phases("evaluate"):
            clock.pass_seconds(1.0)
            with phases("store"):
                clock.pass_seconds(0.5)
            clock.pass_seconds(0.25)
        clock.pass_seconds(8.0)
    clock.pass_seconds(16.0)
    assert phases.seconds == {PROCESS: AGE_SECONDS, START_UP: 16.0, "train": 12.0, "evaluate": 1.25, "store": 0.5}


def test_same_phase_again_goes_on_counting(clock: Clock) -> None:
    phases = Phases()
    for seconds in (1.0, 2.0, 4.0):
        with phases("store"):
            clock.pass_seconds(seconds)
        with phases("store"), phases("store"):
            clock.pass_seconds(0.5)
    assert phases.seconds == {PROCESS: AGE_SECONDS, START_UP: 0.0, "store": 8.5}


def test_running_phase_is_included_and_reading_changes_nothing(clock: Clock) -> None:
    phases = Phases()
    with phases("train"):
        clock.pass_seconds(1.0)
        assert phases.seconds == phases.seconds == {PROCESS: AGE_SECONDS, START_UP: 0.0, "train": 1.0}
        phases.seconds["train"] = 99.0
        clock.pass_seconds(1.0)
    clock.pass_seconds(1.0)
    assert phases.seconds == {PROCESS: AGE_SECONDS, START_UP: 1.0, "train": 2.0}


def test_switch_inside_a_block_lasts_until_its_end(clock: Clock) -> None:
    phases = Phases()
    with phases("compile"):
        clock.pass_seconds(1.0)
        phases.switch("train")
        clock.pass_seconds(2.0)
        with phases("checkpoint"):
            clock.pass_seconds(4.0)
        clock.pass_seconds(8.0)
    clock.pass_seconds(16.0)
    assert phases.seconds == {
        PROCESS: AGE_SECONDS,
        START_UP: 16.0,
        "compile": 1.0,
        "train": 10.0,
        "checkpoint": 4.0,
    }


def test_change_of_the_phase_is_a_beat_and_a_look_at_the_clock_is_none(clock: Clock) -> None:
    phases = Phases()
    with phases("train"):
        clock.pass_seconds(8.0)
        assert phases.seconds["train"] == phases.seconds_since_beat == 8.0
        phases.beat()
        clock.pass_seconds(1.0)
        assert phases.seconds_since_beat == 1.0
        with phases("evaluate"):
            assert phases.seconds_since_beat == 0.0
            clock.pass_seconds(4.0)
        assert phases.seconds_since_beat == 0.0


def test_exception_ends_its_phases(clock: Clock) -> None:
    phases = Phases()
    with pytest.raises(ValueError, match="inside"), phases("train"):  # noqa: PT012 - what is inside is the point
        clock.pass_seconds(1.0)
        with phases("evaluate"):
            clock.pass_seconds(2.0)
            raise ValueError("inside")
    clock.pass_seconds(4.0)
    assert phases.seconds == {PROCESS: AGE_SECONDS, START_UP: 4.0, "train": 1.0, "evaluate": 2.0}


def test_json_is_rounded_to_the_millisecond(clock: Clock) -> None:
    phases = Phases()
    clock.pass_seconds(1 / 1024)
    assert phases.to_json() == {PROCESS: AGE_SECONDS, START_UP: 0.001}


def test_phases_add_up_to_the_elapsed_time_of_a_real_clock() -> None:
    phases = Phases()
    before = time.monotonic()
    first = sum(phases.seconds.values())
    after = time.monotonic()
    for number in range(20):
        with phases(PHASES[number % 3]):
            time.sleep(0.001)
            with phases("compile"):
                time.sleep(0.001)
    at_least = time.monotonic() - after
    counted = sum(phases.seconds.values()) - first
    at_most = time.monotonic() - before
    assert at_least - 1e-6 <= counted <= at_most + 1e-6
    assert phases.seconds["compile"] >= 0.02 - 1e-6


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells the age of a process")
def test_phases_begin_with_the_process() -> None:
    at_least = seconds_since_process_start()
    counted = sum(Phases().seconds.values())
    at_most = seconds_since_process_start()
    tick = 0.03  # the kernel's own resolution is 0.01
    assert 0 < at_least - tick <= counted <= at_most + tick
