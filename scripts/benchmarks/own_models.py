"""Own models under the job and under Keras `fit`, with and without XLA: `scripts/bench --own-models` calls this. Prints a table.

Each program is a process of its own, and a round runs all of them in turns. Wall time shows what else the machine does; the
processor's time, which is read when an epoch ends, shows it less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

_LEARNING_RATE = 0.001
_TIME_LIMIT_SECONDS = 900.0
_REFUSED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A function of `sample_models` for the model and one for its data."""

    name: str
    model: str
    data: str
    batch_size: int
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The quietest epoch of one process after the first, which traces or compiles.

    Attributes:
        wall_seconds: of the training part.
        cpu_seconds: of all threads, evaluation of 64 images included.
        compiled: `xla` or `graph`; empty for `fit`.
    """

    wall_seconds: float
    cpu_seconds: float
    compiled: str


TASKS = (
    Task(name="dense, 784-512-512-10", model="dense", data="grey_28", batch_size=128, epochs=6),
    Task(name="dense with BatchNormalization", model="dense_normalized", data="grey_28", batch_size=128, epochs=6),
    Task(
        name="dense with LayerNormalization", model="dense_layer_normalized", data="grey_28", batch_size=128, epochs=6
    ),
    Task(name="convnet of docs/own-model.md", model="convnet", data="grey_28", batch_size=128, epochs=4),
    Task(name="the same with augmentation", model="augmented_convnet", data="grey_28", batch_size=128, epochs=4),
    Task(name="ResNet-20, 32x32x3", model="resnet20", data="colour_32", batch_size=128, epochs=3),
    Task(name="MobileNet, 96x96x3", model="mobilenet", data="colour_96", batch_size=32, epochs=3),
)
DEFAULT, GRAPH, XLA, FIT, FIT_XLA = "job, default", "job, graph", "job, xla", "`fit`", "`fit`, jit_compile"
PROGRAMS = (DEFAULT, GRAPH, XLA, FIT, FIT_XLA)


def measure(task: Task, program: str) -> Sample | None:
    """Train once; None when the program refuses the model.

    Raises:
        RuntimeError: it ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="bench-own-") as folder:
        command = _fit_command(task, program) if program in (FIT, FIT_XLA) else _job_command(task, program, folder)
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("MNIST_", "TF_"))}
        with open(Path(folder) / "stderr", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
            events, cpu_seconds = _follow(process)
            log.seek(0)
            if process.returncode == _REFUSED:
                return None
            if process.returncode:
                raise RuntimeError(
                    f"bench: {program}, {task.name} ended with {process.returncode}: {log.read()[-2000:]}"
                )
    return Sample(
        wall_seconds=min(event["seconds"] for event in events if event["event"] == "epoch.end" and event["epoch"] > 1),
        cpu_seconds=min(after - before for before, after in pairwise(cpu_seconds)),
        compiled=next((event["compile"] for event in events if event["event"] == "train.start"), ""),
    )


def _follow(process: "subprocess.Popen[str]") -> tuple[list[dict[str, Any]], list[float]]:
    """Its events, and the processor time that it had taken at the end of each epoch."""
    assert process.stdout is not None
    events, cpu_seconds, started = [], [], time.monotonic()
    for line in process.stdout:
        if line.startswith("{"):
            events.append(json.loads(line))
            if events[-1]["event"] == "epoch.end":
                cpu_seconds.append(_cpu_seconds(process.pid))
        if time.monotonic() - started > _TIME_LIMIT_SECONDS:
            process.kill()
    process.wait()
    return events, cpu_seconds


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fit_command(task: Task, program: str) -> list[str]:
    what = (task.model, task.data, str(task.batch_size), str(task.epochs), str(_LEARNING_RATE))
    return [sys.executable, "-m", "benchmarks.own_models_fit", *what, *(["--jit"] if program == FIT_XLA else [])]


def _job_command(task: Task, program: str, folder: str) -> list[str]:
    compile_with = {DEFAULT: "auto", GRAPH: "graph", XLA: "xla"}[program]
    flags = {
        "model.build": f"benchmarks.sample_models:{task.model}",
        "data.source": f"benchmarks.sample_models:{task.data}",
        "train.global_batch_size": task.batch_size,
        "train.epochs": task.epochs,
        "train.optimizer": "adam",
        "train.learning_rate": _LEARNING_RATE,
        "train.compile": compile_with,
        "store.uri": f"file:{folder}/store",
        "observe.metrics_port": 0,
        "observe.log_format": "json",
        "promotion.enabled": "false",
    }
    return [sys.executable, "-P", "-m", "job", "run", *(f"--{name}={value}" for name, value in flags.items())]


def main() -> int:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench --own-models", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each program runs, in turns (3)")
    parser.add_argument(
        "--only", nargs="+", default=[task.model for task in TASKS], help="functions of sample_models.py"
    )
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS, help="default: all")
    flags = parser.parse_args()
    tasks = [task for task in TASKS if task.model in flags.only]
    machine = dict(describe_machine())
    samples: dict[tuple[str, str], list[Sample | None]] = {}
    for number in range(flags.rounds):
        for task in tasks:
            for program in flags.programs:
                sample = measure(task, program)
                samples.setdefault((task.name, program), []).append(sample)
                figures = f"{sample.wall_seconds:8.3f} s, {sample.cpu_seconds:8.3f} CPU s" if sample else "refused"
                print(
                    f"round {number + 1}/{flags.rounds}  {task.name:<30} {program:<18} {figures} an epoch",
                    file=sys.stderr,
                    flush=True,
                )
    print(
        "; ".join(f"{name}: {machine[name]}" for name in ("Date", "Processor", "Cores usable", "Load before the run"))
    )
    print(_render(samples, tasks, flags.programs, lambda sample: sample.wall_seconds, "Seconds an epoch"))
    print(_render(samples, tasks, flags.programs, lambda sample: sample.cpu_seconds, "CPU seconds an epoch"))
    return 0


def _render(
    samples: dict[tuple[str, str], list[Sample | None]],
    tasks: Sequence[Task],
    programs: Sequence[str],
    figure: Callable[[Sample], float],
    title: str,
) -> str:
    rows = [f"\n| {title} | {' | '.join(programs)} |", "| --- |" + " --- |" * len(programs)]
    for task in tasks:
        cells = [_cell(samples[task.name, program], figure, is_default=program == DEFAULT) for program in programs]
        rows.append(f"| {task.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(samples: Sequence[Sample | None], figure: Callable[[Sample], float], *, is_default: bool) -> str:
    made = [sample for sample in samples if sample]
    if not made:
        return "refused"
    values = [figure(sample) for sample in made]
    choice = f"{made[0].compiled}: " if is_default else ""
    return f"{choice}{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
