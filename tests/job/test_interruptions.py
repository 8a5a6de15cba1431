"""Signals where an exception does not come through: in C code, behind a COMMIT, in last words, in commands and their children."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import QUICK, RunJob, job_command, job_environment

# Calls the command line with one function replaced by one that is asked to stop.
_ASKED_IN = """
import os, signal, sys
import {module} as place
{target} = lambda *given, **named: stop()
def stop():
    try: os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error: raise ImportError("initialization failed") from error
from job.__main__ import main
main()
"""


def _call_asked(folder: Path, *arguments: str, module: str, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _ASKED_IN.format(module=module, target=target), *arguments],
        cwd=folder,
        env=job_environment({"PYTHONPATH": str(Path.cwd())}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@contextmanager
def _started(folder: Path, *arguments: str, stdout: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    command, env = job_command(arguments), job_environment({"PYTHONPATH": str(Path.cwd()), **env})
    with subprocess.Popen(command, cwd=folder, env=env, stdout=stdout, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.tf
def test_a_signal_while_the_linker_loads_tensorflow_ends_with_75(tmp_path: Path) -> None:
    """TensorFlow then says its two lines: a callback of C code is the first Python code that a signal finds."""
    with _started(tmp_path, "run", *QUICK, stdout=subprocess.DEVNULL) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        deadline = time.monotonic() + 120
        while "libtensorflow_framework" not in maps.read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (75, b"mnist-job: error 75: SIGTERM received; start the same run again\n")


@pytest.mark.tf
def test_a_gate_that_was_interrupted_decides_in_the_next_attempt(run_job: RunJob, tmp_path: Path) -> None:
    flags = ("run", *QUICK, "--run.id=r")
    stopped = _call_asked(tmp_path, *flags, module="job.registry.gate", target="place.Gate.settle")
    assert stopped.returncode == 75, stopped.stderr
    assert (tmp_path / "out/runs/r/COMMIT.json").exists()
    assert not (tmp_path / "out/runs/r/gate.json").exists()
    assert run_job(*flags).code == 0
    assert (tmp_path / "out/runs/r/gate.json").exists()


@pytest.mark.tf
def test_a_rollback_that_was_interrupted_says_what_it_did(run_job: RunJob, tmp_path: Path) -> None:
    for run, epochs in (("a", 1), ("b", 3)):
        made = run_job("run", *QUICK, f"--run.id={run}", f"--train.epochs={epochs}")
        assert made.event("gate.decided")["verdict"] == "promoted", made.stdout
    stopped = _call_asked(tmp_path, "rollback", module="job.registry.serving", target="place.finish_layout")
    assert (stopped.returncode, stopped.stderr) == (75, "mnist-job: error 75: SIGTERM received\n")
    first, *_, last = stopped.stdout.splitlines()
    assert first == "champion of digits: run a, version 3"
    assert last == "  layout    not finished; the next run or fetch does that: do not repeat this command"


def test_last_words_that_nobody_takes_do_not_keep_an_interrupted_command(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with _started(tmp_path, "config", "schema", stdout=writer) as process:
        os.read(reader, 1)  # the rest is more than the pipe holds
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    os.close(reader)
    os.close(writer)


@pytest.mark.tf
def test_reproduce_takes_its_training_and_its_folder_with_it(run_job: RunJob, tmp_path: Path) -> None:
    assert run_job("run", *QUICK, "--run.id=r", "--train.epochs=300").code == 0
    (tmp_path / "tmp").mkdir()
    with _started(tmp_path, "reproduce", "r", stdout=subprocess.DEVNULL, TMPDIR=str(tmp_path / "tmp")) as process:
        assert process.stderr
        for line in process.stderr:
            if b"train.start" in line:
                break
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        process.wait(60)
    assert process.returncode == 75, said
    assert said.splitlines()[-1] == b"mnist-job: error 75: SIGTERM received"
    assert list((tmp_path / "tmp").rglob("*")) == []
