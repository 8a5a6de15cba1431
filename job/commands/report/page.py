"""The page from top to bottom, and the local file that it is written to.

Derived from COMMIT, metrics.json, gate.json and predictions, and made again at any time. It needs nothing from elsewhere and
runs no script.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from job.commands.report.elements import (
    Element,
    cut,
    element,
    name_of,
    say_number,
    say_share,
    say_time,
    to_page,
)
from job.commands.report.facts import Facts, gather
from job.commands.report.gate import comparison, verdict
from job.commands.report.origin import changed_settings, commands, origin, time
from job.commands.report.results import classes, confusion, epochs, mistakes
from job.commands.summary import say_weights
from job.config import StoreSection
from job.errors import NotFoundError, UnavailableError
from job.registry.rules import GateRecord
from job.runs.read import CommittedRun, more_metrics
from job.store.faults import of_errno
from job.store.folder import check_way
from job.store.store import Store
from job.texts import count_of, say_duration

_MAX_MORE = 20
"""Metrics beside accuracy and loss."""


def report_on(store: Store, committed: CommittedRun, gate: GateRecord | None, *, settings: StoreSection) -> bytes:
    """The page of a run, from the store alone.

    Args:
        gate: its gate.json; None when it was not asked.
        settings: of the store, for the commands on the page.

    Raises:
        IntegrityError: its metrics.json is damaged.
        UnavailableError: the store is away.
    """
    return make_report(gather(store, committed, gate, settings=settings))


def make_report(facts: Facts) -> bytes:
    """The page."""
    said = facts.gate.verdict if facts.gate else "no verdict"
    title = f"Run {facts.committed.run}: {said}, {say_share(facts.committed.test_accuracy)}"
    return to_page(
        title,
        element("h1", f"Run {facts.committed.run}"),
        verdict(facts),
        *_notes(facts),
        element("div", *_tiles(facts), class_="tiles"),
        *comparison(facts),
        *mistakes(facts),
        *epochs(facts),
        *classes(facts),
        *confusion(facts),
        *time(facts),
        *changed_settings(facts),
        *commands(facts),
        *origin(facts),
    )


def _notes(facts: Facts) -> Iterator[Element]:
    data = facts.committed.record.get("config", {}).get("data", {})
    if facts.committed.dataset.name == "digits" and data.get("source", "digits") == "digits":
        yield element(
            "p",
            "These digits are not MNIST: they are 1,797 scanned digits of 8 x 8 pixels, which come with the program, scaled up. "
            "The scores say nothing about MNIST.",
            class_="note",
        )
    for line in facts.missing:
        yield element("p", f"Could not be read: {cut(line)}", class_="note")


def _tiles(facts: Facts) -> Iterator[Element]:
    """The headline: a value, and what it is."""
    record, metrics = facts.committed.record, facts.committed.record["metrics"]
    counters, goodput = record.get("counters", {}), facts.metrics["goodput"]
    yield _tile(say_share(facts.committed.test_accuracy), _say_right(facts))
    if metrics.get("test_loss") is not None:
        yield _tile(say_number(metrics["test_loss"]), "test loss (smaller is better)")
    for name, value in list(more_metrics(metrics).items())[:_MAX_MORE]:
        yield _tile(say_number(value), f"test {name_of(name)}")
    if metrics.get("val_loss") is not None:
        loss, examples = say_number(metrics["val_loss"]), count_of(metrics["val_examples"], "example")
        yield _tile(say_share(metrics["val_accuracy"]), f"validation accuracy, loss {loss}, {examples}")
        yield _tile("weights", say_weights(record))
    yield _tile(
        say_duration(goodput["wall_seconds"]), f"of work, {say_share(goodput['ratio'])} of it in training steps"
    )
    attempts, interruptions = counters.get("attempts"), counters.get("interruptions")
    if isinstance(attempts, int):
        stops = count_of(interruptions, "interruption") if isinstance(interruptions, int) else "interruptions unknown"
        yield _tile(count_of(attempts, "attempt"), stops)
    yield _tile(count_of(len(facts.metrics["history"]), "epoch"), f"on {name_of(facts.committed.dataset.name)}")
    yield _tile(say_time(record.get("committed", "")), "committed")


def _tile(value: str, name: str) -> Element:
    return element("div", element("b", value), element("span", name), class_="tile")


def _say_right(facts: Facts) -> str:
    examples = facts.committed.record["metrics"].get("test_examples")
    if not isinstance(examples, int):
        return "test accuracy"
    return f"test accuracy: {round(facts.committed.test_accuracy * examples):,} of {examples:,} are right"


def write_report(path: Path, page: bytes) -> None:
    """Put it into a local file; folders above it that are missing are made.

    Raises:
        JobError: it cannot be written there.
    """
    check_way(path.parent, name="--to")
    if path.is_symlink() and not path.exists():
        raise NotFoundError(f"--to: {path} is a link to {path.readlink()}, which leads nowhere; choose another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", opener=_open_at_once) as file:
            file.write(page)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise NotFoundError(f"--to: {path} is a pipe that nobody reads; choose another file") from error
        kind = of_errno(error.errno).error or UnavailableError
        raise kind(f"--to: {path} cannot be written: {error.strerror}; choose another file") from error


def _open_at_once(path: str, flags: int) -> int:
    """A pipe that nobody reads is refused; one that is read slowly is waited for."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor
