"""Runs as text for people."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from job import texts
from k8s.shapes import parse_time
from k8s.status import RunStatus, WorkerStatus
from k8s.workers import FOLLOWS

_HEADINGS = ("RUN", "PHASE", "REASON", "PROGRESS", "ACCURACY", "GATE", "AGE", "ATTEMPTS", "SETTINGS")
_WORKERS_COLUMN = 3


def to_table(runs: Sequence[RunStatus], *, now: datetime | None = None) -> str:
    """One line for each run, under headings; how many workers run, where a run has several."""
    rows = [_HEADINGS, *(_row(run, now or datetime.now(UTC)) for run in runs)]
    if any(run.workers for run in runs):
        workers = ("WORKERS", *(_workers(run) or "1" for run in runs))
        rows = [(*row[:_WORKERS_COLUMN], text, *row[_WORKERS_COLUMN:]) for row, text in zip(rows, workers, strict=True)]
    return texts.to_table(rows)


def describe(run: RunStatus, *, now: datetime | None = None) -> str:
    """One run in full: what is known, a line each."""
    reason = f"{run.reason}: {run.message}" if run.message else run.reason
    lines = [
        ("run", run.run),
        ("job", run.job + (f", pod {run.pod}" if run.pod else "")),
        ("phase", run.phase),
        ("reason", reason),
        ("do", run.action),
        ("workers", _workers(run) + ("" if run.is_finished or not run.workers else " running")),
        *((f"worker {worker.index}", _in_words(worker)) for worker in run.workers if _is_worth_a_line(worker, run)),
        ("settings", run.settings),
        ("progress", _long_progress(run)),
        ("accuracy", _accuracy(run) if run.accuracy is not None else ""),
        ("gate", run.verdict or ""),
        ("attempts", str(run.attempts)),
        ("age", _age(run, now or datetime.now(UTC))),
        ("exit code", "" if run.exit_code is None else str(run.exit_code)),
        ("commit", run.commit or ""),
    ]
    return "\n".join(f"{name:<10} {texts.visible(text)}" for name, text in lines if text)


def resume_command(run: RunStatus) -> str:
    """What goes on with a run whose Job, and with it its settings, is gone: without them it would end with 73."""
    settings = re.split(r", (?=[a-z_]+\.[a-z_]+=)", run.settings) if run.settings else []
    if run.may_promote and not any(setting.startswith("promotion.enabled=") for setting in settings):
        settings.append("promotion.enabled=true")  # a run that is made by hand has it off
    words = ["mnist-k8s resume", texts.quoted(run.run), *(f"--set {texts.quoted(setting)}" for setting in settings)]
    return " ".join(words)


def _row(run: RunStatus, now: datetime) -> tuple[str, ...]:
    settings = run.settings or "-"
    return (
        run.run or run.job,
        run.phase,
        run.reason,
        _progress(run),
        _accuracy(run),
        run.verdict or "-",
        _age(run, now),
        str(run.attempts),
        settings,
    )


def _progress(run: RunStatus) -> str:
    if run.phase == "Succeeded":
        return "100%" if run.epoch is None else f"{run.epoch}/{run.epochs}"
    return "-" if run.epoch is None else f"{run.epoch}/{run.epochs}"


def _long_progress(run: RunStatus) -> str:
    if run.epoch is None and run.step is None:
        return ""
    parts = [f"epoch {run.epoch} of {run.epochs}" if run.epoch is not None else "", f"step {run.step}"]
    if run.eta_seconds is not None and not run.is_finished:
        parts.append(f"{run.eta_seconds:.0f} s to go")
    return ", ".join(filter(None, parts))


def _accuracy(run: RunStatus) -> str:
    return "-" if run.accuracy is None else f"{run.accuracy:.4f}"


def _workers(run: RunStatus) -> str:
    """How many run, of how many; nothing for a run of one worker."""
    total = len(run.workers)
    return "" if not total else str(total) if run.is_finished else f"{run.num_running}/{total}"


def _is_worth_a_line(worker: WorkerStatus, run: RunStatus) -> bool:
    """What is neither as it should be, nor said already, nor follows from another worker's end."""
    is_well = worker.phase == "Succeeded" or (worker.phase == "Running" and not worker.action)
    is_stopped = worker.reason in ("Stopped", "Suspended")
    return not (is_well or is_stopped or worker.reason in FOLLOWS or worker.message in run.message)


def _in_words(worker: WorkerStatus) -> str:
    text = f"{worker.phase}, {worker.reason}: {worker.message}"
    return f"{text}; {worker.action}" if worker.action else text


def _age(run: RunStatus, now: datetime) -> str:
    """Since it was made, or how long it took."""
    start, end = parse_time(run.created), parse_time(run.finished) if run.finished else now
    if start is None or end is None:
        return "-"
    seconds = max(0, int((end - start).total_seconds()))
    for size, unit, below in ((1, "s", 120), (60, "m", 120 * 60), (3600, "h", 48 * 3600)):
        if seconds < below:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86400}d"
