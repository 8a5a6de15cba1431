"""Starts N workers of one run as processes of this machine, each with its TF_CONFIG. Called by scripts/workers."""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, TextIO

AGAIN = (75, 76)
"""Exit codes after which a worker is started again: a worker was interrupted or lost, and the run goes on."""

_RESTART_SECONDS = 1.0
_POLL_SECONDS = 0.05


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker and its process, which may be a second or third one."""

    index: int
    num_restarts: int = 0
    code: int | None = None
    process: "subprocess.Popen[str] | None" = None
    again_seconds: float = 0.0
    num_told: int = 0
    """Signals that its process has been sent."""
    printers: list[threading.Thread] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Run all workers to their end; returns 0, or the exit code of the first that was given up."""
    given, settings = _split(arguments)
    parser = argparse.ArgumentParser(
        prog="scripts/workers", usage="%(prog)s N [--restarts R] -- [--section.field=VALUE ...]"
    )
    parser.add_argument("workers", type=int, metavar="N", help="how many workers, 1 to 64")
    parser.add_argument(
        "--restarts",
        type=int,
        default=3,
        metavar="R",
        help="how often a worker that ends with 75 or 76 starts again (3)",
    )
    options = parser.parse_args(given)
    if not 1 <= options.workers <= 64:
        parser.error(f"N must be 1 to 64, received {options.workers}")
    if any(setting.startswith("--cluster.workers") for setting in settings):
        parser.error("N is the number of workers: leave --cluster.workers out")
    return Group(options.workers, settings, restarts=options.restarts).run()


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before and after `--`; without it, settings begin at the first one."""
    items = list(arguments)
    at = items.index("--") if "--" in items else next((i for i, item in enumerate(items) if "." in item), len(items))
    return items[:at], [item for item in items[at:] if item != "--"]


class Group:
    """The workers of one run."""

    def __init__(self, count: int, settings: Sequence[str], *, restarts: int) -> None:
        self._workers = [Worker(index=index) for index in range(count)]
        self._settings, self._restarts = [f"--cluster.workers={count}", *settings], restarts
        self._addresses = free_addresses(count)
        self._signal, self._num_signals = 0, 0
        self._code = 0
        """That of the first worker that was given up."""

    def run(self) -> int:
        """Start all, start again what may be started again, and wait for the end."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        while any(worker.code is None for worker in self._workers):
            for worker in self._workers:
                self._look_at(worker)
            time.sleep(_POLL_SECONDS)
        return self._code

    def _start(self, worker: Worker) -> None:
        environ = dict(os.environ, TF_CONFIG=tf_config(self._addresses, worker.index))
        if sys.stdout.isatty():  # the workers themselves write into a pipe
            environ.setdefault("MNIST_OBSERVE__LOG_FORMAT", "text")
        if worker.index:  # one port for metrics cannot be shared
            environ.setdefault("MNIST_OBSERVE__METRICS_PORT", "0")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "job", "run", *self._settings],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes to this process, which forwards it once
        )
        worker.process, worker.num_told = process, 0
        _say(f"[{worker.index}] process {process.pid}")
        assert process.stdout and process.stderr
        worker.printers = [
            threading.Thread(target=_print_lines, args=(worker.index, source, target), daemon=True)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for printer in worker.printers:
            printer.start()

    def _look_at(self, worker: Worker) -> None:
        if worker.process is None:
            if worker.code is None and self._num_signals:
                self._give_up(worker, AGAIN[0])
            elif worker.code is None and time.monotonic() >= worker.again_seconds:
                self._start(worker)
            return
        code = worker.process.poll()
        if code is None:
            if worker.num_told < self._num_signals:  # the second Ctrl-C ends what does not listen
                worker.process.send_signal(self._signal if self._num_signals == 1 else signal.SIGKILL)
                worker.num_told = self._num_signals
            return
        for printer in worker.printers:
            printer.join()
        worker.process = None
        self._take_end(worker, code)

    def _take_end(self, worker: Worker, code: int) -> None:
        """Start a worker again, or give up: then no other can go on alone."""
        how = f"ended with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        if (code in AGAIN or code < 0) and not self._num_signals and worker.num_restarts < self._restarts:
            worker.num_restarts += 1
            worker.again_seconds = time.monotonic() + _RESTART_SECONDS
            _say(f"[{worker.index}] {how}; starts again, {worker.num_restarts} of {self._restarts}")
            return
        _say(f"[{worker.index}] {how}")
        self._give_up(worker, code if code >= 0 else 128 - code)

    def _give_up(self, worker: Worker, code: int) -> None:
        worker.code = code
        self._code = self._code or code
        if code and not self._num_signals:
            _say(f"scripts/workers: worker {worker.index} is given up; all stop")
            self._on_signal(signal.SIGTERM, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Only note it: a process may be in the middle of its start. `_look_at` sends it on."""
        self._signal, self._num_signals = number, self._num_signals + 1


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _print_lines(index: int, source: IO[str], target: TextIO) -> None:
    """Each line of one worker with its index in front."""
    for line in source:
        with contextlib.suppress(OSError):  # its reader has gone; the worker must not wait for one
            target.write(f"[{index}] {line}")
            target.flush()


def tf_config(addresses: Sequence[str], index: int) -> str:
    """TF_CONFIG of one worker, as the chart sets it."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def free_addresses(count: int) -> list[str]:
    """`host:port` of this machine on which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
