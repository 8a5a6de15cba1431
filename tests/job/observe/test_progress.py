"""The progress bar on real terminals: 80 and 20 columns, dumb ones, ASCII, without colours."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from typing import Any

import pytest

from tests.conftest import REPOSITORY

_START = "d = Display('text'); d.start(num_steps=100, done_steps=45, num_epochs=10); "
_UPDATE = (
    "d.update(step=50, epoch=5, loss={loss}, accuracy=0.875, rate=12345.6, eta_seconds={eta}); d._progress.refresh(); "
)
_CHUNK = _UPDATE.format(loss="0.25", eta="12.0")


def _shown(command: str, *, columns: int, **environment: str) -> str:
    """What a script with a display writes to a terminal of so many columns."""
    script = (
        "from job import streams; streams.protect(); from job.observe.progress import Display; "
        f"{command}d.write('an event'); d.stop()"
    )
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    base = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    base |= {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=base | environment,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    data = b""
    with open(master, "rb", buffering=0) as reader, contextlib.suppress(OSError):  # the end of a terminal is an error
        while piece := reader.read(4096):
            data += piece
    assert process.wait(timeout=60) == 0, data
    return data.decode()


def _lines(text: str) -> list[str]:
    """What was drawn, line by line, without colours and movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize(
    ("columns", "compiling", "training"),
    [
        (
            120,
            "epoch 5/10  45%  compiling",
            "epoch 5/10  50%  loss 0.2500  accuracy 0.8750  ETA 12 s  12,346 images/s",
        ),
        (80, "epoch 5/10  45%  compiling", "epoch 5/10  50%  loss 0.2500  accuracy 0.8750  ETA 12 s"),
        (40, "epoch 5/10  45%  compiling", "epoch 5/10  50%  loss 0.2500  ETA 12 s"),
        (20, "epoch 5/10  45%", "epoch 5/10  50%"),
    ],
)
def test_bar_says_compiling_and_the_restored_epoch_and_stays_on_one_line(
    columns: int, compiling: str, training: str
) -> None:
    lines = _lines(_shown(_START + _CHUNK, columns=columns))
    assert any(line.endswith(compiling) for line in lines), lines
    assert any(line.endswith(training) for line in lines), lines
    assert max(map(len, lines)) < columns
    assert "an event" in lines


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_terminal_that_cannot_move_its_cursor_gets_events_alone(term: str) -> None:
    assert _shown(_START, columns=80, TERM=term) == "an event\r\n"


def test_bar_is_ascii_where_nothing_else_can_be_shown() -> None:
    shown = _shown(_START + _CHUNK, columns=80, PYTHONIOENCODING="ascii", LANG="C")
    assert shown.isascii()
    assert "\\u" not in shown
    assert any(line.startswith("----") for line in _lines(shown))


def test_bar_has_no_colours_where_none_are_wanted() -> None:
    shown = _shown(_START + _CHUNK, columns=80, NO_COLOR="1")
    colours = [code for code in re.findall(r"\x1b\[([0-9;]*)m", shown) if re.search(r"(^|;)(3[0-8]|4[0-8]|9\d)", code)]
    assert colours == []


def test_numbers_that_are_none_are_shown_as_such() -> None:
    lines = _lines(_shown(_START + _UPDATE.format(loss="float('nan')", eta="float('inf')"), columns=80))
    assert any("loss nan  accuracy 0.8750  ETA inf s" in line for line in lines), lines


@pytest.mark.parametrize(
    "done",
    [{"num_steps": 100, "done_steps": 100, "num_epochs": 10}, {"num_steps": 1, "done_steps": 0, "num_epochs": 1}],
)
def test_bar_of_a_run_that_is_at_its_end_or_its_start(done: Mapping[str, Any]) -> None:
    epoch, share = (10, 100) if done["done_steps"] else (1, 0)
    lines = _lines(_shown(f"d = Display('text'); d.start(**{dict(done)}); ", columns=80))
    assert any(f"epoch {epoch}/{done['num_epochs']} {share:3}%  compiling" in line for line in lines), lines
