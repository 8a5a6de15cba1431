"""Turns samples into the generated part of docs/benchmarks.md, and leaves the text around it alone."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks import cases
from benchmarks.cases import Mode, scaling_name
from benchmarks.figures import (
    LOSS_TOLERANCE,
    Spread,
    epoch_losses,
    final_test_accuracy,
    largest_difference,
    phase_medians,
    spread,
    warm_epoch_seconds,
)
from benchmarks.measure import Sample
from benchmarks.task import BATCH_SIZE, WIDTHS

BEGIN = "<!-- scripts/bench writes from here -->"
END = "<!-- to here -->"
_NEW_FILE = f"# Benchmarks\n\n{BEGIN}\n{END}\n"

_LABELS = {
    cases.GEMM_ONEDNN: "Limit: the 8 matrix products of every step, oneDNN",
    cases.GEMM_OPENBLAS: "Limit: the same, OpenBLAS",
    cases.JOB: "**This job**",
    cases.JAX: "JAX, `scan` + `jit`",
    cases.PYTORCH: "PyTorch, eager",
    cases.REFERENCE: "Reference program: Keras `fit` on numpy arrays",
}
_SAME_MATHS = (cases.JOB, cases.PYTORCH, cases.JAX)
_SHOWN_EPOCHS = (1, 2, 3, 5, 10, 15, 20)

Samples = dict[str, list[Sample]]


def splice(path: Path, generated: str) -> None:
    """Replace what stands between the two markers, in a new file if there is none.

    Raises:
        ValueError: the file exists without the markers.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else _NEW_FILE
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} must contain the lines {BEGIN!r} and {END!r}; add them where the figures belong")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n\n{generated}\n{end}{after}", encoding="utf-8")


def losses_agree(samples: Sequence[Sample]) -> bool:
    """Whether job, PyTorch and JAX computed the same."""
    return _loss_difference(_by_case(samples)) <= LOSS_TOLERANCE


def render(samples: Sequence[Sample], *, mode: Mode, machine: Sequence[tuple[str, str]], command: str) -> str:
    """The whole generated part."""
    grouped = _by_case(samples)
    parts = [
        _table(["Measured on", ""], [*machine, ("Command", f"`{command}`")]),
        _HOW.format(rounds=mode.rounds),
        _epoch_section(grouped),
        _process_section(grouped, mode),
        _loss_section(grouped),
        _phase_section(grouped, mode),
        _pipeline_section(grouped),
        *([_scaling_section(grouped, mode)] if mode.batch_sizes else []),
    ]
    return "\n\n".join(parts) + "\n"


_HOW = """\
Every figure is the median over {rounds} rounds, with the smallest and largest in brackets. A round runs
every program once, in a process of its own, and each round starts with another one. All may use all cores;
thread counts are each framework's defaults (for the job: its own), nothing is pinned, and settings such as
`OMP_NUM_THREADS` are not inherited. PyTorch and JAX start from the job's first weights and see its batches,
the last of an epoch holding the remainder; Keras `fit` starts from the same weights and shuffles by itself.
All read the four IDX `.gz` files; only the job also verifies and sorts them, which is in its whole-process
time."""


def _epoch_section(grouped: Samples) -> str:
    epochs = {name: spread([warm_epoch_seconds(sample) for sample in grouped[name]]) for name in _LABELS}
    work = 2 * cases.TRAIN_EXAMPLES * _multiplications_per_example()
    jax = epochs[cases.JAX].median
    rows = [
        (_LABELS[name], _show(figure), f"{figure.median / jax:.2f}", f"{work / figure.median / 1e9:.0f}")
        for name, figure in epochs.items()
    ]
    return _section(
        "Seconds per epoch",
        "Training part only; of each process the median epoch, without the first, which traces or compiles.",
        _table(["", "Seconds", "Ratio to JAX", "GFLOP/s"], rows),
    )


def _multiplications_per_example() -> int:
    """Forward and the kernels' gradients for every layer, the input's gradient for all but the first."""
    products = [inputs * outputs for inputs, outputs in pairwise(WIDTHS)]
    return 3 * sum(products) - products[0]


def _process_section(grouped: Samples, mode: Mode) -> str:
    def row(name: str) -> tuple[str, ...]:
        samples = grouped[name]
        seconds = spread([sample.wall_seconds for sample in samples])
        mebibytes = spread([sample.peak_rss_bytes / 2**20 for sample in samples])
        accuracy = spread([final_test_accuracy(sample) for sample in samples])
        return _LABELS[name], _show(seconds), _show(mebibytes, digits=0), _show(accuracy, digits=4)

    return _section(
        f"Whole process, {mode.epochs} epochs",
        "From start to exit: imports, data, compiling, training, evaluation, saving. The reference program "
        "evaluates once, at its end; PyTorch and JAX after every epoch.",
        _table(
            ["", "Seconds", "Peak memory, MiB", "Test accuracy at the end"],
            [row(name) for name in (cases.JOB, cases.JAX, cases.PYTORCH, cases.REFERENCE)],
        ),
    )


def _loss_difference(grouped: Samples) -> float:
    return largest_difference([epoch_losses(sample) for name in _SAME_MATHS for sample in grouped[name]])


def _loss_section(grouped: Samples) -> str:
    columns = [epoch_losses(grouped[name][0]) for name in _SAME_MATHS]
    shown = [epoch for epoch in _SHOWN_EPOCHS if epoch <= len(columns[0])]
    difference = _loss_difference(grouped)
    verdict = "agree" if difference <= LOSS_TOLERANCE else "DO NOT agree"
    return _section(
        "Same maths",
        f"Mean training loss of an epoch. The three {verdict} within {LOSS_TOLERANCE:.0e}: over all epochs "
        f"and rounds the largest relative difference is {difference:.1e}.",
        _table(
            ["Epoch", *[_LABELS[name] for name in _SAME_MATHS]],
            [(str(epoch), *[f"{column[epoch - 1]:.7f}" for column in columns]) for epoch in shown],
        ),
    )


def _phase_section(grouped: Samples, mode: Mode) -> str:
    rows = [(name, f"{seconds:.2f}") for name, seconds in phase_medians(grouped[cases.JOB]).items()]
    return _section(f"The job by phase, {mode.epochs} epochs", _table(["Phase", "Seconds"], rows))


def _pipeline_section(grouped: Samples) -> str:
    def row(label: str, name: str) -> tuple[str, str]:
        events = [event for sample in grouped[cases.PIPELINE] for event in sample.of("pipeline.end")]
        speeds = [float(event["images_per_second"]) for event in events if event["pipeline"] == name]
        return label, _show(spread(speeds), digits=0)

    return _section(
        "Input pipeline alone",
        "Reshape, cast, divide, one-hot and batch, without training.",
        _table(
            ["", "Images per second"],
            [
                row("**This job**: chunks of steps", "job"),
                row("`shuffle`, `map` one example at a time, `batch`", "per_example"),
            ],
        ),
    )


def _scaling_section(grouped: Samples, mode: Mode) -> str:
    def row(shown: int, name: str, measure: Callable[[Sample], float]) -> tuple[str, str]:
        return f"{shown:,}", _show(spread([measure(sample) for sample in grouped[name]]))

    def extra(*, batch: int = BATCH_SIZE, examples: int = cases.TRAIN_EXAMPLES, epochs: int) -> str:
        return scaling_name(batch_size=batch, examples=examples, epochs=epochs)

    base, short, seconds = cases.JOB, mode.short_epochs, warm_epoch_seconds
    batches = [row(size, extra(batch=size, epochs=short), seconds) for size in mode.batch_sizes]
    examples = [row(count, extra(examples=count, epochs=short), seconds) for count in mode.example_counts]
    epochs = [row(count, extra(epochs=count), _wall_seconds) for count in mode.epoch_counts]
    return _section(
        "How the job grows",
        _table(["Global batch size", "Seconds per epoch"], [row(BATCH_SIZE, base, seconds), *batches]),
        _table(["Training examples", "Seconds per epoch"], [*examples, row(cases.TRAIN_EXAMPLES, base, seconds)]),
        _table(["Epochs", "Whole process, seconds"], [*epochs, row(mode.epochs, base, _wall_seconds)]),
    )


def _wall_seconds(sample: Sample) -> float:
    return sample.wall_seconds


def _section(title: str, *blocks: str) -> str:
    return "\n\n".join([f"### {title}", *blocks])


def _by_case(samples: Sequence[Sample]) -> Samples:
    grouped: Samples = defaultdict(list)
    for sample in samples:
        grouped[sample.case].append(sample)
    return dict(grouped)


def _show(figure: Spread, *, digits: int = 2) -> str:
    median, low, high = (f"{value:,.{digits}f}" for value in (figure.median, figure.minimum, figure.maximum))
    return f"{median} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
