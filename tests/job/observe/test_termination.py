"""The termination message: always whole JSON, at most what the kubelet keeps."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from job.__main__ import _describe, _report
from job.contract import TERMINATION_MESSAGE_MAX_BYTES, ExitCode
from job.observe.termination import KUBELET_PATH, Status, choose_path, find_path

FIELDS = [
    "run",
    "attempt",
    "outcome",
    "code",
    "reason",
    "step",
    "epoch",
    "accuracy",
    "verdict",
    "promoted",
    "commit",
    "seconds",
]


def read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    assert len(data) <= TERMINATION_MESSAGE_MAX_BYTES
    content = json.loads(data)
    assert isinstance(content, dict)
    return content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "termination-log"


class _NoTextError(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (MemoryError(), 1, "MemoryError: "),
        (RecursionError("too deep"), 1, "RecursionError: too deep"),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt: "),
        (SystemExit(0), 1, "SystemExit: 0"),
        (GeneratorExit(), 1, "GeneratorExit: "),
        (_NoTextError(), 1, "_NoTextError"),
        (AssertionError("ours"), 70, "AssertionError: ours"),
        (BrokenPipeError("a socket"), 1, "BrokenPipeError: a socket"),
    ],
)
def test_what_nobody_raised_on_purpose_has_a_code_and_a_reason(error: BaseException, code: int, reason: str) -> None:
    assert _describe(error) == (code, reason)


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    status = Status(path=tmp_path / "pipe")
    status.write()
    assert "No such device" in status.failure


@pytest.mark.parametrize("path", ["missing/message", "a\0b", "/dev/full", "/", "x" * 300])
def test_a_message_that_cannot_be_written_is_known_and_ends_nothing(path: str, tmp_path: Path) -> None:
    status = Status(path=tmp_path / path)
    status.end(outcome="committed", code=ExitCode.OK)
    assert status.failure


def test_limit_is_that_of_the_kubelet() -> None:
    assert TERMINATION_MESSAGE_MAX_BYTES == 4096


def test_message_says_how_far_a_running_attempt_is(path: Path) -> None:
    status = Status(run="r", attempt="a", path=path, step=7, epoch=2, accuracy=0.5)
    status.write()
    content = read(path)
    assert list(content) == FIELDS
    assert content.pop("seconds") >= 0
    assert content == {
        "run": "r",
        "attempt": "a",
        "outcome": "running",
        "code": None,
        "reason": "",
        "step": 7,
        "epoch": 2,
        "accuracy": 0.5,
        "verdict": None,
        "promoted": None,
        "commit": None,
    }


def test_message_is_rewritten_not_added_to(path: Path) -> None:
    status = Status(path=path, reason="x" * 1000)
    status.write()
    status.reason = ""
    status.write()
    assert read(path)["reason"] == ""


def test_end_writes_the_outcome_before_it_is_logged(path: Path) -> None:
    seen: list[dict[str, Any]] = []
    status = Status(path=path, on_end=lambda: seen.append(read(path)))
    status.end(outcome="failed", code=ExitCode.INTEGRITY, reason="bad data")
    assert len(seen) == 1
    assert (seen[0]["outcome"], seen[0]["code"], seen[0]["reason"]) == ("failed", 65, "bad data")


HUGE = ["x" * 10**6, "\U0001f600" * 50_000, "ü" * 3000, '"\\\n' * 5000, "\x00\x1f" * 5000, "ab\u2028" * 3000]


@pytest.mark.parametrize("reason", HUGE, ids=[ascii(reason[:4]) for reason in HUGE])
def test_huge_reason_is_cut_and_the_rest_kept(reason: str, path: Path) -> None:
    Status(run="r", attempt="a", path=path, step=3).end(outcome="failed", code=ExitCode.UNKNOWN, reason=reason)
    content = read(path)
    assert (content["run"], content["attempt"], content["step"], content["code"]) == ("r", "a", 3, 1)
    assert content["reason"].endswith(" ...")
    assert reason.startswith(content["reason"].removesuffix(" ..."))


def test_moderately_long_reason_keeps_most_of_its_text(path: Path) -> None:
    Status(path=path).end(outcome="failed", code=ExitCode.UNKNOWN, reason="word " * 1000)
    assert len(read(path)["reason"]) > 1500


@given(reason=st.text(st.characters(codec="utf-8")), factor=st.integers(1, 3000), run=st.text(max_size=253))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(reason="\udcff is what a file name that is not UTF-8 becomes", factor=1, run="r")
def test_any_reason_gives_whole_json(reason: str, factor: int, run: str, path: Path) -> None:
    Status(run=run, path=path).end(outcome="failed", code=ExitCode.UNKNOWN, reason=reason * factor)
    assert read(path)["run"] == run


def test_path_that_cannot_be_written_does_not_hurt(tmp_path: Path) -> None:
    seen: list[str] = []
    status = Status(path=tmp_path / "absent" / "log", on_end=lambda: seen.append("logged"))
    status.end(outcome="committed", code=ExitCode.OK)
    assert (seen, list(tmp_path.iterdir())) == (["logged"], [])


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Status().end(outcome="committed", code=ExitCode.OK)
    assert list(tmp_path.iterdir()) == []


def test_configured_path_is_preferred_to_the_kubelets(path: Path) -> None:
    assert choose_path(path) == path
    assert choose_path(None) == (KUBELET_PATH if KUBELET_PATH.exists() else None)


def test_a_fault_in_what_is_said_at_the_end_keeps_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def break_down() -> None:
        raise RuntimeError("in the log of the end")

    status = Status(on_end=break_down)
    assert _report(status, ExitCode.NOT_FOUND, "the bucket does not exist") == 66
    said = capsys.readouterr().err
    assert "mnist-job: error 66: the bucket does not exist" in said
    assert "RuntimeError: in the log of the end" in said


@pytest.mark.security("S5")
@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_settings_without_end_are_not_waited_for(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert find_path(["run", f"--config={tmp_path / place}"], {}) == choose_path(None)


def test_settings_in_a_pipe_are_left_to_their_one_reader() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"train: {epochs: 3}")
        os.close(writer)
        assert find_path(["run", f"--config=/dev/fd/{reader}"], {}) == choose_path(None)
        assert os.read(reader, 100) == b"train: {epochs: 3}"
    finally:
        os.close(reader)
