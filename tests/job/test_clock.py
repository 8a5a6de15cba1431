"""The one seam for time, sleep and random tokens."""

import time

import pytest

from job import clock


def test_timestamp_is_utc_to_the_millisecond() -> None:
    assert clock.timestamp(0.25) == "1970-01-01T00:00:00.250+00:00"
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
