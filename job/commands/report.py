"""report.html: what a run came to, on one page for people.

Derived from COMMIT, metrics.json and gate.json, and made again at any time. The page needs nothing from elsewhere and runs no
script. It is built as a tree of elements, so that no text can become markup.
"""

import errno
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from job.commands.summary import say_weights
from job.errors import NotFoundError, UnavailableError
from job.registry.rules import GateRecord
from job.runs.read import CommittedRun, more_metrics
from job.store.faults import of_errno
from job.store.folder import check_way
from job.texts import say_placement
from job.training.evaluation import most_confused

_WIDTH, _HEIGHT, _MARGIN = 460, 220, 44
_COLOURS = ("#1f6feb", "#d1470c")
_MAX_WRONG = 20
_MAX_CLASSES = 30
"""Of a table of classes: those with the most mistakes. A confusion table of 1,000 classes would be 19 MB."""
_MAX_POINTS = 500
"""Of a line in a chart, which is 460 pixels wide."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 64em; padding: 0 1em; color: #1f2328 }
table { border-collapse: collapse; margin: .5em 0 1.5em }
th, td { text-align: left; padding: .15em .8em .15em 0; vertical-align: top }
table.counts td, table.counts th { text-align: right; padding: .15em .5em } td { overflow-wrap: anywhere }
svg { margin-right: 1em } svg text { font: 12px system-ui, sans-serif; fill: #59636e }
"""


def make_report(committed: CommittedRun, metrics: Mapping[str, Any], gate: GateRecord | None) -> bytes:
    """The page.

    Args:
        metrics: the run's metrics.json.
        gate: its gate.json; None when it was not asked.
    """
    test, history = metrics["test"], metrics["history"]
    scored = "val" if any(epoch.get("val_loss") is not None for epoch in history) else "test"
    page = _element(
        "html",
        _element(
            "head",
            _element("meta", charset="utf-8"),
            _element("title", f"Run {committed.run}"),
            _element("style", _STYLE),
        ),
        _element(
            "body",
            _element("h1", f"Run {committed.run}"),
            _pairs(_summary(committed)),
            _element("h2", "Gate"),
            *_gate(gate),
            _element("h2", "Epochs"),
            _chart("loss", history, ("loss", f"{scored}_loss")),
            _chart("accuracy", history, ("accuracy", f"{scored}_accuracy")),
            _element("h2", "Classes"),
            *_classes(test["classes"]),
            _element("h2", "Confusion: rows are true classes, columns predicted ones"),
            *_confusion(test),
            _element("h2", "Most confidently wrong"),
            _wrong(test),
            _element("h2", "Time"),
            _pairs(_goodput(metrics["goodput"])),
            _element("h2", "Made of"),
            _pairs(_origin(committed)),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{ET.tostring(page, encoding='unicode', method='html')}\n".encode()


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


def _summary(committed: CommittedRun) -> Iterable[tuple[str, str]]:
    metrics = committed.record["metrics"]
    yield "committed", str(committed.record.get("committed", ""))
    yield "dataset", committed.dataset.name
    yield "test accuracy", f"{committed.test_accuracy:.4f}"
    for name in ("test_loss", "test_examples"):
        if metrics.get(name) is not None:
            yield name.replace("_", " "), _score(metrics[name])
    for name, value in more_metrics(metrics).items():
        yield f"test {name}", f"{value:.4f}"
    yield from _validation(committed)
    yield "weights digest", committed.weights_digest


def _validation(committed: CommittedRun) -> Iterable[tuple[str, str]]:
    """What the validation split decided; nothing without one."""
    metrics = committed.record["metrics"]
    if metrics.get("val_loss") is not None:
        yield "validation accuracy", f"{metrics['val_accuracy']:.4f}"
        yield "validation loss", f"{metrics['val_loss']:.4f}"
        yield "validation examples", str(metrics["val_examples"])
        yield "weights", say_weights(committed.record)


def _gate(gate: GateRecord | None) -> Iterable[ET.Element]:
    if gate is None:
        yield _element("p", "Not asked.")
        return
    verdict = f"promoted to version {gate.version} of {gate.model}" if gate.version else gate.verdict
    yield _element("p", _element("strong", verdict), f": {gate.reason}")
    yield _pairs((name, _number(value)) for name, value in gate.numbers.items())


def _goodput(goodput: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "goodput", f"{goodput['ratio']:.1%} of {goodput['wall_seconds']:.1f} s"
    for name, seconds in goodput["seconds"].items():
        yield name, f"{seconds:.1f} s"


def _origin(committed: CommittedRun) -> Iterable[tuple[str, str]]:
    lineage = committed.record.get("lineage", {})
    for name in ("revision", "image", "chart_version", "version", "python"):
        if lineage.get(name):
            yield name, str(lineage[name])
    devices = lineage.get("devices", [])
    if devices:
        yield "trained on", say_placement(num_workers=lineage.get("workers", 1), num_replicas=len(devices))
    yield "packages", ", ".join(f"{name} {version}" for name, version in lineage.get("packages", {}).items())
    yield "dataset digest", str(committed.dataset.digest)
    yield "result digest", committed.result_digest
    for section, fields in committed.record.get("config", {}).items():
        yield section, ", ".join(f"{name}={json.dumps(value)}" for name, value in fields.items())


def _chart(name: str, history: Sequence[Mapping[str, float]], series: Sequence[str]) -> ET.Element:
    """A line for each series over the epochs that have it: the first of the training examples, the second of what was scored."""
    known = [
        _thin([(index, float(value)) for index, epoch in enumerate(history) if (value := epoch.get(key)) is not None])
        for key in series
    ]
    values = [value for line in known for _, value in line]
    low, high = min(values, default=0.0), max(values, default=1.0)
    span, steps = (high - low) or 1.0, max(len(history) - 1, 1)

    def point(index: int, value: float) -> str:
        x = _MARGIN + index / steps * (_WIDTH - 2 * _MARGIN)
        return f"{x:.1f},{_HEIGHT - _MARGIN - (value - low) / span * (_HEIGHT - 2 * _MARGIN):.1f}"

    lines = []
    for line, colour, key, place in zip(known, _COLOURS, series, (0, 1), strict=True):
        points = [point(index, value) for index, value in line]
        lines.append(_element("polyline", points=" ".join(points), fill="none", stroke=colour, stroke_width="2"))
        x = _MARGIN + place * 150
        last = f"{key} {line[-1][1]:.4f}" if line else key
        lines.append(_element("text", last, x=str(x), y=str(_HEIGHT - 8), style=f"fill: {colour}"))
    labels = [
        _element("text", name, x=str(_MARGIN), y="20"),
        _element("text", f"{high:.3g}", x="4", y=str(_MARGIN)),
        _element("text", f"{low:.3g}", x="4", y=str(_HEIGHT - _MARGIN)),
        _element("text", f"epoch {len(history)}", x=str(_WIDTH - _MARGIN - 20), y=str(_HEIGHT - _MARGIN + 16)),
    ]
    return _element(
        "svg",
        *labels,
        *lines,
        width=str(_WIDTH),
        height=str(_HEIGHT),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{name} by epoch",
    )


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many points as a line needs, the last one among them."""
    return [*points[: -1 : -(-len(points) // _MAX_POINTS) or 1], *points[-1:]]


def _classes(classes: Sequence[Mapping[str, Any]]) -> Iterable[ET.Element]:
    """All of them in their order, or those that are recalled least."""
    shown = sorted(classes, key=lambda one: float(one["recall"]))[:_MAX_CLASSES]
    if len(classes) > _MAX_CLASSES:
        yield _element(
            "p", f"The {_MAX_CLASSES} of {len(classes)} classes that are recalled least; metrics.json has all."
        )
    rows = [
        (str(one["name"]), str(one["num_examples"]), f"{one['recall']:.4f}", f"{one['precision']:.4f}")
        for one in (shown if len(classes) > _MAX_CLASSES else classes)
    ]
    yield _table(("class", "examples", "recall", "precision"), rows)


def _confusion(test: Mapping[str, Any]) -> Iterable[ET.Element]:
    """Mistakes are shaded by their share of the row. Of many classes those with the most mistakes, as true or as predicted."""
    classes, confusion = test["classes"], test["confusion"]
    labels = test.get("confusion_classes") or range(len(classes))
    places = most_confused(np.asarray(confusion), most=_MAX_CLASSES).tolist()
    if len(places) < len(classes):
        yield _element("p", f"The {len(places)} of {len(classes)} classes with the most mistakes.")
    names = [str(classes[labels[place]]["name"]) for place in places]
    table = _element("table", _row("th", ("", *names)), **{"class": "counts"})
    for place, name in zip(places, names, strict=True):
        row, num_true = ET.SubElement(table, "tr"), max(classes[labels[place]]["num_examples"], 1)
        row.append(_element("th", name))
        for column in places:
            count = confusion[place][column]
            share = min(1.0, 8 * count / num_true) if column != place else 0.0
            row.append(_element("td", str(count), style=f"background: rgba(209, 71, 12, {share:.2f})"))
    yield table


def _wrong(test: Mapping[str, Any]) -> ET.Element:
    names = [str(one["name"]) for one in test["classes"]]
    rows = [
        (str(one["position"]), names[one["label"]], names[one["predicted"]], f"{one['probability']:.4f}")
        for one in test["wrong"][:_MAX_WRONG]
    ]
    return _table(("test example", "true", "predicted", "probability"), rows)


def _score(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pairs(rows: Iterable[tuple[str, str]]) -> ET.Element:
    table = _element("table")
    for name, value in rows:
        table.append(_element("tr", _element("th", name), _element("td", value)))
    return table


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> ET.Element:
    return _element("table", _row("th", heading), *(_row("td", row) for row in rows), **{"class": "counts"})


def _row(kind: str, cells: Iterable[str]) -> ET.Element:
    return _element("tr", *(_element(kind, cell) for cell in cells))


def _element(tag: str, *children: ET.Element | str, **attributes: str) -> ET.Element:
    element = ET.Element(tag, {name.replace("_", "-"): value for name, value in attributes.items()})
    for child in children:
        if isinstance(child, ET.Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    return element
