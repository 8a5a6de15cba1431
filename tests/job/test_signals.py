"""SIGTERM, SIGINT and SIGHUP, with real signals to this very process."""

import os
import signal
from collections.abc import Iterator

import pytest

from job.signals import StopRequested, StopSignal

# PT012 is off where the statement at which the exception is raised is the very point.
ALL = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    installed = StopSignal()
    installed.install()
    yield installed
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@ALL
def test_first_signal_interrupts_where_the_thread_stands(number: signal.Signals, stop: StopSignal) -> None:
    reached = []
    with pytest.raises(StopRequested, match=rf"^{number.name}$"):  # noqa: PT012
        send(number)
        reached.append("the next statement")
    assert reached == []
    assert stop.requested == number.name


@ALL
def test_second_signal_does_not_interrupt_the_way_out(number: signal.Signals, stop: StopSignal) -> None:
    with pytest.raises(StopRequested):
        send(signal.SIGTERM)
    for _ in range(10):
        send(number)
    assert stop.requested == "SIGTERM"


def test_deferred_signal_is_raised_at_the_end_of_the_block(stop: StopSignal) -> None:
    reached = []
    with pytest.raises(StopRequested, match="SIGTERM"), stop.deferred():  # noqa: PT012
        assert stop.requested is None
        send(signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        send(signal.SIGINT)
        reached.append("end of block")
    assert reached == ["end of block"]


def test_deferred_block_may_look_and_leave_early(stop: StopSignal) -> None:
    with pytest.raises(StopRequested), stop.deferred():  # noqa: PT012
        stop.check()
        send(signal.SIGTERM)
        stop.check()
        pytest.fail("the check let it pass")


def test_deferred_block_without_a_signal_ends_quietly_and_restores_interruption(stop: StopSignal) -> None:
    with stop.deferred():
        pass
    stop.check()
    with pytest.raises(StopRequested):
        send(signal.SIGTERM)


def test_error_inside_a_deferred_block_is_not_hidden_by_a_signal(stop: StopSignal) -> None:
    with pytest.raises(ZeroDivisionError), stop.deferred():  # noqa: PT012
        send(signal.SIGTERM)
        raise ZeroDivisionError
    assert stop.requested == "SIGTERM"
    stop.raise_again()  # and is none itself


def test_what_became_of_an_interruption_is_one_until_signals_are_ignored(stop: StopSignal) -> None:
    with pytest.raises(ImportError):  # noqa: PT012
        try:
            send(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("initialization failed") from error
    with pytest.raises(StopRequested, match="SIGTERM"):
        stop.raise_again()
    stop.ignore()
    stop.raise_again()


def test_request_is_not_caught_by_what_catches_errors(stop: StopSignal) -> None:
    with pytest.raises(StopRequested):  # noqa: PT012
        try:
            send(signal.SIGTERM)
        except Exception:  # noqa: BLE001
            pytest.fail("the request to stop was swallowed")


def test_sighup_that_nohup_keeps_away_stays_away(stop: StopSignal) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop.install()
    send(signal.SIGHUP)
    assert stop.requested is None


def test_a_signal_on_the_way_out_changes_nothing() -> None:
    stop = StopSignal()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    stop.install()
    try:
        stop.ignore()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
