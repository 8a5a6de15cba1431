"""Runs programs as child processes and takes their wall time, peak memory and the events they print.

Owns the processes; knows nothing about what they compute.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Settings of the caller's shell that would give one framework other threads or another start than the rest.
_NOT_INHERITED = ("OMP_", "MKL_", "OPENBLAS_", "TF_", "XLA_", "JAX_", "KERAS_", "TORCH_", "MNIST_", "MALLOC_")
_TIME_LIMIT_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One program that is measured once in every round. `{output}` in its command becomes a fresh folder."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One process: what it took and what it printed."""

    case: str
    wall_seconds: float
    peak_rss_bytes: int
    events: list[dict[str, Any]]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of that name, in order."""
        return [line for line in self.events if line.get("event") == event]


class ProgramFailedError(Exception):
    """A measured program did not end with 0; no figures are made up for it."""


def run_rounds(cases: list[Case], *, rounds: int, save_to: Path) -> list[Sample]:
    """Run every case once a round, each round starting one case later, and save all samples after each round.

    The machine's noise comes in stretches: measured in turns, it meets all cases alike.
    """
    samples: list[Sample] = []
    for number in range(rounds):
        shift = number * max(1, len(cases) // rounds) % len(cases)
        for case in cases[shift:] + cases[:shift]:
            sample = run_case(case)
            line = f"round {number + 1}/{rounds}  {case.name:<44} {sample.wall_seconds:7.2f} s"
            print(line, file=sys.stderr, flush=True)
            samples.append(sample)
        save_to.parent.mkdir(parents=True, exist_ok=True)
        save_to.write_text(json.dumps([to_json(sample) for sample in samples]))
    return samples


def to_json(sample: Sample) -> dict[str, Any]:
    """A sample as plain values."""
    return {name: getattr(sample, name) for name in Sample.__slots__}


def run_case(case: Case) -> Sample:
    """Run one process to its end.

    Raises:
        ProgramFailedError: it did not end with 0; its last lines are in the message.
    """
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        return _run_in(folder, case)
    finally:
        shutil.rmtree(folder)


def _run_in(folder: Path, case: Case) -> Sample:
    output = folder / "output"
    output.mkdir()
    command = [part.replace("{output}", str(output)) for part in case.command]
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=_environment(case)
        )
        limit = threading.Timer(_TIME_LIMIT_SECONDS, process.kill)
        limit.start()
        # wait4 gives this child's own resources; it includes children that it waited for.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        limit.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last_lines = "\n".join((folder / "stderr").read_text(errors="replace").splitlines()[-15:])
        raise ProgramFailedError(f"{case.name}: {' '.join(command)} ended with {process.returncode}\n{last_lines}")
    return Sample(
        case=case.name,
        wall_seconds=seconds,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        events=_parse_events((folder / "stdout").read_text()),
    )


def _environment(case: Case) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return inherited | dict(case.environment)


def _parse_events(text: str) -> list[dict[str, Any]]:
    """Take the lines that are JSON objects; Keras prints others between them."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
