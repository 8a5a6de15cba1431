"""A campaign: many trials of one promise, each replayable from (name, seed, index), and the table that sums them up."""

import logging
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from job.logs import LOGGER_NAME
from tests.torture.checks import TrialFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one trial is given.

    Attributes:
        random: seeded by name, seed and index; everything that a trial chooses comes from it.
        folder: empty, its own, deleted afterwards unless the trial fails.
    """

    index: int
    random: random.Random
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a trial went: a line for people, and figures for the table."""

    note: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One row of the proof.

    Attributes:
        name: its number in the proof, such as R1.
        promise: what is shown, in a few words.
        trial: raises TrialFailed when the promise is broken.
        num_full, num_quick: trials in the full and in the short version.
        count: for enumerations, how many trials cover everything; overrides `num_full`.
        is_quiet: its figures are times, so nothing else should run beside it.
        limits: largest value that a figure may have, by the figure's name in the table.
    """

    name: str
    promise: str
    trial: Callable[[Trial], Result]
    num_full: int
    num_quick: int
    count: Callable[[], int] | None = None
    is_quiet: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One finished trial; `error` is None when the promise held."""

    index: int
    note: str
    seconds: float
    error: str | None
    figures: Mapping[str, float]


def run_campaign(campaign: Campaign, *, seed: int, indices: Sequence[int], num_workers: int) -> Iterator[Finished]:
    """Run the trials in fresh processes, yielding each as it ends."""
    workers = 1 if campaign.is_quiet else num_workers
    if len(indices) == 1:
        yield run_trial(campaign, seed, indices[0])
        return
    # Fresh processes: trials fork, which a process with threads, such as a pool's owner, must not.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker) as pool:
        try:
            for future in [pool.submit(run_trial, campaign, seed, index) for index in indices]:
                yield future.result()
        finally:  # whoever has seen enough waits for the trials that run, not for all
            pool.shutdown(cancel_futures=True)


def run_trial(campaign: Campaign, seed: int, index: int) -> Finished:
    """One trial, from its name, seed and index alone."""
    folder = Path(tempfile.mkdtemp(prefix=f"torture-{campaign.name}-{index}-", dir=fast_folder()))
    started, result, error = time.monotonic(), Result(note=""), None
    try:
        result = campaign.trial(
            Trial(index=index, random=random.Random(f"{campaign.name} {seed} {index}"), folder=folder)
        )
    except TrialFailed as failure:
        error = f"{failure} (left in {folder})"
    except Exception as failure:  # noqa: BLE001 - what was left could not even be read
        error = f"{type(failure).__name__}: {failure} (left in {folder})"
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return Finished(
        index=index, note=result.note, seconds=time.monotonic() - started, error=error, figures=result.figures
    )


def fast_folder() -> Path:
    """Memory where there is some: fsync then costs nothing, and thousands of trials fit into minutes."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def figures_of(finished: Sequence[Finished]) -> dict[str, float]:
    """Median and 99th percentile of the trials' times, which end in `_seconds`, and the sum of every other figure."""
    values: dict[str, list[float]] = {}
    for trial in finished:
        for name, value in trial.figures.items():
            values.setdefault(name, []).append(value)
    summed: dict[str, float] = {}
    for name, found in values.items():
        if name.endswith("_seconds"):
            summed[f"{name} p50"] = statistics.median(found)
            summed[f"{name} p99"] = percentile(found, 0.99)
        else:
            summed[name] = sum(found)
    return summed


def table(rows: Sequence[tuple[Campaign, Sequence[Finished]]]) -> str:
    """The closing table, as Markdown."""
    lines = [
        "| # | promise | held | rate of failure, 95 % bound | s a trial | figures |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for campaign, finished in rows:
        num_held = sum(trial.error is None for trial in finished)
        bound = f"< {3 / len(finished):.2%}" if num_held == len(finished) else "-"
        if campaign.count:
            bound = "every point" if len(finished) == campaign.count() else bound
        figures = ", ".join(f"{name} {value:.3g}" for name, value in figures_of(finished).items())
        seconds = statistics.mean(trial.seconds for trial in finished)
        lines.append(
            f"| {campaign.name} | {campaign.promise} | {num_held} of {len(finished)} | {bound} | {seconds:.2f} | {figures} |"
        )
    return "\n".join(lines)


def broken_limits(campaign: Campaign, finished: Sequence[Finished], *, patience: float) -> list[str]:
    """The figures that are larger than so many times what is promised."""
    figures = figures_of(finished)
    return [
        f"{name} is {figures[name]:.3g}, promised is at most {patience * limit:g}"
        for name, limit in campaign.limits.items()
        if figures.get(name, 0.0) > patience * limit
    ]


def _prepare_worker() -> None:
    logging.getLogger(LOGGER_NAME).addHandler(logging.NullHandler())
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no threads of numpy's before a fork
