"""`mnist-job run` on a real terminal: an error is told once, and ^C leaves the command that goes on."""

import contextlib
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from job.commands.summary import print_way_on
from job.config import Config, RunSection
from job.observe.termination import Status
from tests.conftest import QUICK, REPOSITORY


def _run(*arguments: str, folder: Path, stop_at: str = "") -> tuple[int, str]:
    """Exit code and all that the terminal was given; ^C is typed when it shows `stop_at`."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "job", "run", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509 - it becomes the terminal that types ^C
    )
    os.close(terminal)
    data, is_stopped = b"", False
    with open(master, "r+b", buffering=0) as screen, contextlib.suppress(OSError):
        while piece := screen.read(4096):
            data += piece
            if stop_at and not is_stopped and stop_at.encode() in data:
                is_stopped = True
                screen.write(b"\x03")
    return process.wait(timeout=120), data.decode().replace("\r\n", "\n")


@pytest.mark.tf
def test_interrupt_is_told_once_with_the_command_that_goes_on(tmp_path: Path) -> None:
    arguments = [*QUICK[:-1], "--train.epochs=200", f"--store.uri=file:{tmp_path}/it's mine"]
    code, said = _run(*arguments, folder=tmp_path, stop_at="compiling")
    assert code == 75, said
    assert said.count("mnist-job: error 75: SIGINT received") == said.count("SIGINT received") == 1
    assert "run.interrupted" not in said
    [command] = re.findall(
        r"^Stopped (?:at step \d+, which is saved|before its first step)\. To go on:\n  (.*)$", said, re.M
    )
    assert shlex.split(command) == ["mnist-job", "run", *arguments]


def test_error_is_told_once(tmp_path: Path) -> None:
    code, said = _run("--data.source=idx", "--data.uri=/nowhere", "--observe.metrics_port=0", folder=tmp_path)
    assert (code, said.count("mnist-job: error 66: ")) == (66, 1), said
    reason = re.findall(r"mnist-job: error 66: (.*)", said)[0]
    assert said.count(reason[:60]) == 1
    assert re.search(r"run\.end +failed, exit code 66, after .*", said)


@pytest.mark.security("S11")
def test_command_that_goes_on_names_a_run_that_is_new_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(run=RunSection(seed="random"))
    print_way_on(config, Status(run="local.x-1", step=30), arguments=["run", "--data.uri=a b\x1b[2J"])
    assert capsys.readouterr().out == (
        "\nStopped at step 30, which is saved. To go on:\n  mnist-job run '--data.uri=a b\\u001b[2J' --run.id=local.x-1\n"
    )
