"""stdout and stderr in every state in which a process may be given them: what cannot be written is lost, and nothing else."""

import contextlib
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


_HOSTILE = b"\x1b]52;c;eA==\x07\x1b[31m \xe2\x80\xae\xc2\x9b \x9b\xff\r a\n"


def _output(redirection: str, command: str) -> bytes:
    """What a script writes to a pipe, or to a terminal of its own."""
    script = f"import sys; from job import streams; streams.protect(); {command}; sys.stdout.flush()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8", "TERM": "xterm"}
    if redirection == "pipe":
        return subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        ).stdout
    master, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", script], env=environment, stdout=terminal, stderr=terminal, check=True)
    os.close(terminal)
    data = b""
    with open(master, "rb", buffering=0) as reader, contextlib.suppress(OSError):  # the end of a terminal is an error
        while piece := reader.read(4096):
            data += piece
    return data


@pytest.mark.security("S11")
@pytest.mark.parametrize("where", ["pipe", "terminal"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_printed_steers_no_terminal(where: str, stream: str) -> None:
    text = _HOSTILE.decode(errors="surrogateescape")
    command = f"print({text!r}, file=sys.{stream}, flush=True)"
    shown = _output(where, command).replace(b"\r\n", b"\n")
    assert shown == rb"\u001b]52;c;eA==\u0007\u001b[31m \u202e\u009b \udc9b\udcff\r a" + b"\n\n"


@pytest.mark.security("S11")
def test_what_is_passed_on_is_exact_in_a_pipe_and_visible_on_a_terminal() -> None:
    command = f"streams.pass_on({_HOSTILE!r})"
    assert _output("pipe", command) == _HOSTILE
    shown = _output("terminal", command).replace(b"\r\n", b"\n")
    assert shown == rb"\u001b]52;c;eA==\u0007\u001b[31m \u202e\u009b \x9b\xff\r a" + b"\n"


@pytest.mark.security("S11")
def test_the_progress_display_obeys_nothing_that_is_printed_beside_it() -> None:
    command = (
        "from job.observe.progress import Display; d = Display('text'); d.start(num_steps=1, done_steps=0, num_epochs=1); "
        "d.write('[red]x[/red] :smile: \\x1b]0;own\\x07'); print('\\x1b]8;;http://x\\x07link'); d.stop()"
    )
    shown = _output("terminal", command)
    assert b"[red]x[/red] :smile: \\u001b]0;own\\u0007" in shown
    assert b"\\u001b]8;;http://x\\u0007link" in shown
    assert b"\x1b]" not in shown
    assert b"\x1b[" in shown, "the bar itself is drawn"
