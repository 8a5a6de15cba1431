"""Log lines: one JSON object each with keys in a fixed order, or one line of text."""

import io
import json
import logging
import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from job import logs


@pytest.fixture(autouse=True)
def _restored_logger() -> Iterator[None]:
    logger = logging.getLogger(logs.LOGGER_NAME)
    before = (logger.handlers, logger.propagate, logger.level)
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture
def lines() -> list[str]:
    return []


def only(lines: list[str]) -> str:
    assert len(lines) == 1
    return lines[0]


class TestJson:
    def test_keys_come_in_a_fixed_order(self, lines: list[str]) -> None:
        logs.configure("json", run="my-run", attempt="a1", write=lines.append)
        logs.emit("train.progress", step=3, epoch=1, loss=0.5, accuracy=0.25, examples_per_second=9.5, eta_seconds=2.0)
        content = json.loads(only(lines))
        fixed = ["time", "level", "severity", "event", "message", "run", "attempt", "worker"]
        own = ["step", "epoch", "loss", "accuracy", "examples_per_second", "eta_seconds"]
        assert list(content) == [*fixed, *own]
        assert {name: value for name, value in content.items() if name != "time"} == {
            "level": "info",
            "severity": "INFO",
            "event": "train.progress",
            "message": "Step 3, epoch 1: loss 0.5, accuracy 0.25, 2 s left",
            "run": "my-run",
            "attempt": "a1",
            "worker": 0,
            "step": 3,
            "epoch": 1,
            "loss": 0.5,
            "accuracy": 0.25,
            "examples_per_second": 9.5,
            "eta_seconds": 2.0,
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content["time"])
        assert abs(datetime.fromisoformat(content["time"]).timestamp() - datetime.now().timestamp()) < 60

    @pytest.mark.parametrize(("call", "level"), [(logs.emit, "info"), (logs.warn, "warning"), (logs.error, "error")])
    def test_level_is_named(self, call: object, level: str, lines: list[str]) -> None:
        logs.configure("json", write=lines.append)
        assert callable(call)
        call("some.event")
        content = json.loads(only(lines))
        assert (content["level"], content["severity"]) == (level, level.upper())

    @pytest.mark.parametrize("text", ['a "quoted" line\nand another', "größe 数字", "\x00\x1b[31m", "\u2028"])
    def test_any_text_stays_on_one_line(self, text: str, lines: list[str]) -> None:
        logs.configure("json", write=lines.append)
        logs.warn("some.event", reason=text, path=Path("/a"))
        assert "\n" not in only(lines)
        assert json.loads(only(lines))["reason"] == text
        assert json.loads(only(lines))["path"] == "/a"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_number_that_json_does_not_have_does_not_break_the_line(self, value: float, lines: list[str]) -> None:
        """jq, Loki and Fluent Bit refuse a bare NaN."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        logs.configure("json", write=lines.append)
        logs.emit("train.progress", loss=value)
        json.loads(only(lines), parse_constant=refuse)

    def test_events_go_to_stdout_and_nowhere_else(
        self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        logs.configure("json")
        logs.emit("some.event")
        output = capsys.readouterr()
        assert json.loads(output.out)["event"] == "some.event"
        assert (output.out.count("\n"), output.err) == (1, "")
        assert caplog.records == [], "the root logger, which TensorFlow's libraries use, must not repeat it"

    def test_second_configuration_replaces_the_first(self, lines: list[str]) -> None:
        logs.configure("json", write=pytest.fail)
        logs.configure("json", run="later", write=lines.append)
        logs.emit("some.event")
        assert json.loads(only(lines))["run"] == "later"


class TestText:
    def test_line_is_short(self, lines: list[str]) -> None:
        logs.configure("text", run="my-run", attempt="a1", write=lines.append)
        logs.emit("epoch.end", epoch=1, loss=0.123456789, reason="two words", sizes=[1, 2])
        assert re.fullmatch(
            r'\d\d:\d\d:\d\d epoch\.end      epoch=1 loss=0\.1235 reason="two words" sizes="\[1, 2\]"', only(lines)
        )

    def test_warning_and_error_are_marked(self, lines: list[str]) -> None:
        logs.configure("text", write=lines.append)
        logs.warn("store.retry")
        logs.error("error")
        assert [line.split(maxsplit=1)[1] for line in lines] == ["WARNING store.retry", "ERROR error"]

    @pytest.mark.parametrize("text", ["one\ntwo", "one two\nthree", "a\r\nb", "\x1b[2J"])
    def test_any_text_stays_on_one_line(self, text: str, lines: list[str]) -> None:
        """A line break in an error of a server would else pass for an event of ours."""
        logs.configure("text", write=lines.append)
        logs.warn("store.retry", reason=text)
        assert re.search(r"[\x00-\x1f]", only(lines)) is None


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("configured", "stream", "expected"),
    [
        ("auto", _Terminal(), "text"),
        ("auto", io.StringIO(), "json"),
        ("json", _Terminal(), "json"),
        ("text", io.StringIO(), "text"),
    ],
)
def test_format_is_text_on_a_terminal_and_json_elsewhere(configured: str, stream: io.StringIO, expected: str) -> None:
    assert logs.choose_format(configured, stream=stream) == expected
