"""Several workers on this machine against one process: `scripts/bench --workers` calls this. Prints two tables.

Real runs on MNIST. Each worker has one core of its own (taskset) and one thread, so two workers need two cores.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_workers import free_addresses, tf_config

_BATCHES = (128, 512, 1024, 4096)
_EXAMPLES = 24_576  # full batches of each size
_EPOCHS = 4
_GOAL_BATCH, _GOAL = 4096, 1.3
_TIME_LIMIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Who trains: processes, each with its cores, and the settings."""

    name: str
    cores: tuple[str, ...]
    flags: tuple[str, ...]


_ONE_THREAD = ("--cluster.intra_op_threads=1", "--cluster.inter_op_threads=1", "--train.compile=graph")
ONE = Setup(name="1 worker x 1 core", cores=("0",), flags=_ONE_THREAD)
TWO = Setup(name="2 workers x 1 core", cores=("0", "1"), flags=_ONE_THREAD)
BOTH = Setup(name="1 process x 2 cores, XLA", cores=("0,1",), flags=("--train.compile=xla",))
SETUPS = (ONE, TWO, BOTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run: its quietest epoch after the first, which compiles, and the time from its start to step 1."""

    epoch_seconds: float
    first_step_seconds: float


def measure(setup: Setup, *, batch: int, data_dir: Path) -> Sample:
    """Train once; raises RuntimeError when a process does not end with 0."""
    folder = Path(tempfile.mkdtemp(prefix="bench-workers-"))
    addresses = free_addresses(len(setup.cores))
    processes = []
    for index, cores in enumerate(setup.cores):
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("MNIST_", "TF_"))}
        if len(addresses) > 1:
            environ["TF_CONFIG"] = tf_config(addresses, index)
        command = [
            "taskset",
            "--cpu-list",
            cores,
            sys.executable,
            "-P",
            "-m",
            "job",
            "run",
            *_flags(folder, batch, data_dir),
        ]
        command += [*setup.flags, f"--cluster.workers={len(addresses)}"]
        log = open(folder / f"{index}.log", "w+", encoding="utf-8")  # noqa: SIM115 - open as long as its process
        processes.append((subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.DEVNULL), log))
    codes = [process.wait(_TIME_LIMIT_SECONDS) for process, _ in processes]
    if any(codes):
        raise RuntimeError(f"bench: {setup.name}, batch {batch} ended with {codes}; logs in {folder}")
    processes[0][1].seek(0)
    events = [json.loads(line) for line in processes[0][1]]
    for _, log in processes:
        log.close()
    shutil.rmtree(folder)
    epochs = [event["seconds"] for event in events if event["event"] == "epoch.end"]
    [end] = [event for event in events if event["event"] == "run.end"]
    return Sample(epoch_seconds=min(epochs[1:]), first_step_seconds=end["goodput"]["first_step_seconds"])


def _flags(folder: Path, batch: int, data_dir: Path) -> list[str]:
    return [
        "--run.id=bench",
        f"--store.uri=file:{folder}/store",
        "--data.source=idx",
        f"--data.uri={data_dir}",
        f"--data.cache_dir={folder}/cache",
        f"--data.train_examples={_EXAMPLES}",
        "--data.test_examples=1000",
        f"--train.epochs={_EPOCHS}",
        f"--train.global_batch_size={batch}",
        "--observe.metrics_port=0",
        "--observe.log_format=json",
        "--promotion.enabled=false",
    ]


def main() -> int:
    """Measure in turns, print, and say 1 when the goal is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench --workers", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST IDX .gz files")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs, in turns (5)")
    parser.add_argument("--batches", type=int, nargs="+", default=list(_BATCHES), help="global batch sizes")
    flags = parser.parse_args()
    if _GOAL_BATCH not in flags.batches:
        parser.error(f"--batches must hold {_GOAL_BATCH}, for which there is a goal")
    samples: dict[tuple[str, int], list[Sample]] = {}
    for number in range(flags.rounds):
        for batch in flags.batches:
            for setup in SETUPS:
                sample = measure(setup, batch=batch, data_dir=flags.data.resolve())
                samples.setdefault((setup.name, batch), []).append(sample)
                line = f"round {number + 1}/{flags.rounds}  batch {batch:<5} {setup.name:<26} {sample.epoch_seconds:6.2f} s/epoch"
                print(line, file=sys.stderr, flush=True)
    print(_render(samples))
    ratio = statistics.median(_ratios(samples, TWO.name, _GOAL_BATCH))
    start = statistics.median(_extra_start(samples))
    print(
        f"\ngoal: 2 workers at batch {_GOAL_BATCH}: {ratio:.2f} (at least {_GOAL}); start: {start:+.2f} s (at most 3)"
    )
    return 0 if ratio >= _GOAL and start <= 3 else 1


def _ratios(samples: dict[tuple[str, int], list[Sample]], name: str, batch: int) -> list[float]:
    """How many times as fast as one worker with one core, round by round."""
    pairs = zip(samples[ONE.name, batch], samples[name, batch], strict=True)
    return [one.epoch_seconds / other.epoch_seconds for one, other in pairs]


def _extra_start(samples: dict[tuple[str, int], list[Sample]]) -> list[float]:
    return [
        two.first_step_seconds - one.first_step_seconds
        for name, batch in samples
        if name == ONE.name
        for one, two in zip(samples[name, batch], samples[TWO.name, batch], strict=True)
    ]


def _render(samples: dict[tuple[str, int], list[Sample]]) -> str:
    rows = [f"| global batch | {ONE.name}: s/epoch | {TWO.name} | {BOTH.name} |", "| --- | --- | --- | --- |"]
    for batch in _batches(samples):
        seconds = [sample.epoch_seconds for sample in samples[ONE.name, batch]]
        cells = [_figure(seconds), *(_figure(_ratios(samples, setup.name, batch)) for setup in (TWO, BOTH))]
        rows.append(f"| {batch} | {' | '.join(cells)} |")
    rows += ["", "| from start to step 1 | seconds |", "| --- | --- |"]
    for setup in SETUPS:
        seconds = [sample.first_step_seconds for batch in _batches(samples) for sample in samples[setup.name, batch]]
        rows.append(f"| {setup.name} | {_figure(seconds)} |")
    return "\n".join(rows)


def _batches(samples: dict[tuple[str, int], list[Sample]]) -> list[int]:
    return [batch for name, batch in samples if name == ONE.name]


def _figure(values: Sequence[Any]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
