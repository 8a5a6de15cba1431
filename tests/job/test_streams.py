"""stdout and stderr in every state in which a process may be given them: what cannot be written is lost, and nothing else."""

import fcntl
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Says how it ended into a file, since its streams may be of no use.
SCRIPT = """
import json, sys, time
from job import streams
streams.protect()
{change}
for number in range({lines}):
    print(json.dumps({{"number": number, "text": "gr\\u00f6\\u00dfe \\U0001f600"}}, ensure_ascii=False))
print("an error", file=sys.stderr)
sys.stdout.flush(); sys.stderr.flush()
with open({result!r}, "w") as file:
    json.dump({{"loss": streams.loss_of(sys.stdout), "file": file.fileno()}}, file)
"""


def run(
    folder: Path, redirection: str, *, lines: int = 3, change: str = "", env: dict[str, str] | None = None
) -> dict[str, object]:
    """What the script says at its end."""
    result = folder / "result"
    script = SCRIPT.format(lines=lines, change=change, result=str(result))
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | (env or {}),
        cwd=folder,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    found: dict[str, object] = json.loads(result.read_text())
    return found


@pytest.mark.parametrize(
    ("redirection", "loss"),
    [
        (">out", ""),
        (">&-", "it is closed"),
        (">&- 2>&-", "it is closed"),
        ("<&- >&- 2>&-", "it is closed"),
        ("2>&- >out", ""),
        (">/dev/full", "No space left on device"),
        (">/dev/full 2>&1", "No space left on device"),
        ("2>/dev/full >out", ""),
        ("| true", ""),  # a reader that leaves is no loss
    ],
)
def test_a_stream_that_takes_nothing_ends_nothing(tmp_path: Path, redirection: str, loss: str) -> None:
    found = run(tmp_path, redirection)
    assert found["loss"] == loss
    assert int(str(found["file"])) > 2, "a file of the program must not be in the place of a stream that was closed"


def test_a_file_that_may_not_grow_is_a_loss(tmp_path: Path) -> None:
    found = run(tmp_path, ">out", change="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))")
    assert found["loss"] == "File too large"


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp437:strict"},
    ],
)
def test_json_stays_json_in_every_encoding(tmp_path: Path, env: dict[str, str]) -> None:
    assert run(tmp_path, ">out", env=env)["loss"] == ""
    encoding = env.get("PYTHONIOENCODING", "ascii" if "PYTHONUTF8" in env else "utf-8").partition(":")[0]
    lines = (tmp_path / "out").read_bytes().decode(encoding).splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["größe 😀"] * 3


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_slow_reader_gets_every_line_whole(tmp_path: Path, is_blocking: bool) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    if not is_blocking:
        fcntl.fcntl(write, fcntl.F_SETFL, os.O_NONBLOCK)
    script = SCRIPT.format(lines=5000, change="", result=str(tmp_path / "result"))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=write, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    os.close(write)
    with open(read, encoding="utf-8") as reader:
        time.sleep(1.0)
        numbers = [json.loads(line)["number"] for line in reader]
    assert process.wait(timeout=60) == 0
    assert numbers == list(range(5000))
    assert json.loads((tmp_path / "result").read_text())["loss"] == ""


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_reader_that_takes_nothing_holds_nobody_up(tmp_path: Path, is_blocking: bool) -> None:
    read, write = os.pipe()
    if not is_blocking:
        fcntl.fcntl(write, fcntl.F_SETFL, os.O_NONBLOCK)
    script = SCRIPT.format(lines=5000, change="streams.give_up_after(0.2)", result=str(tmp_path / "result"))
    subprocess.run(
        [sys.executable, "-c", script],
        stdout=write,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=True,
    )
    os.close(write)
    os.close(read)
    assert json.loads((tmp_path / "result").read_text())["loss"] == "its reader takes nothing"


@pytest.mark.parametrize("how", ["gone", "stopped"])
def test_a_terminal_that_is_gone_or_stopped_ends_nothing(tmp_path: Path, how: str) -> None:
    """EIO after a hang-up; ^S."""
    master, terminal = pty.openpty()
    change = "streams.give_up_after(0.2); sys.stdin.readline()"
    script = SCRIPT.format(lines=5000, change=change, result=str(tmp_path / "result"))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=terminal, stderr=terminal,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    os.close(terminal)
    if how == "gone":
        os.close(master)
    assert process.stdin
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    loss = json.loads((tmp_path / "result").read_text())["loss"]
    assert loss == ("Input/output error" if how == "gone" else "its reader takes nothing")
