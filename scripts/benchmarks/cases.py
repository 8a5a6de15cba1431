"""Which programs a run measures, with which arguments. The names here are the ones the report looks for."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Case
from benchmarks.task import BATCH_SIZE

REFERENCE = "reference"
JOB = "job"
PYTORCH = "pytorch"
JAX = "jax"
GEMM_ONEDNN = "gemm onednn"
GEMM_OPENBLAS = "gemm openblas"
PIPELINE = "pipeline"
TRAIN_EXAMPLES = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How much one run measures.

    Attributes:
        epochs: of the four whole programs.
        short_epochs: of the runs that only show an epoch's time; the first one is never counted.
        epoch_counts, batch_sizes, example_counts: of the job's extra runs, which show how it grows.
    """

    rounds: int
    epochs: int
    short_epochs: int
    epoch_counts: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    example_counts: tuple[int, ...]


FULL = Mode(
    rounds=5,
    epochs=20,
    short_epochs=3,
    epoch_counts=(1, 5),
    batch_sizes=(512, 2048),
    example_counts=(15_000, 30_000),
)
QUICK = Mode(rounds=5, epochs=3, short_epochs=2, epoch_counts=(), batch_sizes=(), example_counts=())


def scaling_name(*, batch_size: int, examples: int, epochs: int) -> str:
    """Name of an extra run of the job."""
    return f"job batch={batch_size} examples={examples} epochs={epochs}"


def make_cases(mode: Mode, *, data_dir: Path, prepared_path: Path, torch_environment: Mapping[str, str]) -> list[Case]:
    """All programs of one round, in the order of the first round."""

    def program(name: str, module: str, epochs: int, environment: Mapping[str, str]) -> Case:
        inputs = (f"--data={data_dir}", f"--prepared={prepared_path}")
        command = (
            sys.executable,
            "-m",
            f"benchmarks.{module}",
            *inputs,
            "--output={output}",
            f"--epochs={epochs}",
        )
        return Case(name=name, command=command, environment=environment)

    return [
        program(REFERENCE, "reference_keras", mode.epochs, {}),
        job_case(JOB, data_dir=data_dir, epochs=mode.epochs),
        program(PYTORCH, "pytorch_eager", mode.epochs, torch_environment),
        program(JAX, "jax_scan", mode.epochs, {}),
        *[gemm_case(name, data_dir=data_dir, epochs=mode.short_epochs) for name in (GEMM_ONEDNN, GEMM_OPENBLAS)],
        Case(name=PIPELINE, command=(sys.executable, "-m", "benchmarks.input_pipeline", f"--data={data_dir}")),
        *scaling_cases(mode, data_dir=data_dir),
    ]


def scaling_cases(mode: Mode, *, data_dir: Path) -> list[Case]:
    """The job again, with one thing changed at a time."""
    changes = [
        *[(BATCH_SIZE, TRAIN_EXAMPLES, count) for count in mode.epoch_counts],
        *[(size, TRAIN_EXAMPLES, mode.short_epochs) for size in mode.batch_sizes],
        *[(BATCH_SIZE, count, mode.short_epochs) for count in mode.example_counts],
    ]
    return [
        job_case(
            scaling_name(batch_size=batch_size, examples=examples, epochs=epochs),
            f"--train.global_batch_size={batch_size}",
            f"--data.train_examples={examples}",
            data_dir=data_dir,
            epochs=epochs,
        )
        for batch_size, examples, epochs in changes
    ]


def job_case(name: str, *more: str, data_dir: Path, epochs: int) -> Case:
    """The job as shipped, with an empty store; the metrics port is closed, since another run may hold it."""
    flags = (
        "--data.source=idx",
        f"--data.uri={data_dir}",
        "--store.uri=file:{output}",
        "--observe.log_format=json",
        "--observe.metrics_port=0",
        f"--train.epochs={epochs}",
    )
    return Case(name=name, command=(sys.executable, "-P", "-m", "job", "run", *flags, *more))


def gemm_case(name: str, *, data_dir: Path, epochs: int) -> Case:
    """One library's matrix products, alone."""
    flags = (f"--data={data_dir}", f"--epochs={epochs}", name.removeprefix("gemm "))
    return Case(name=name, command=(sys.executable, "-m", "benchmarks.gemm_limit", *flags))
