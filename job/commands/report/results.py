"""What the run came to: epochs, classes, confusion, mistakes."""

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.commands.report.charts import Line, chart, is_drawable
from job.commands.report.elements import (
    Element,
    element,
    is_number,
    name_of,
    row_of,
    say_number,
    say_share,
    table,
)
from job.commands.report.facts import Facts
from job.texts import say_duration
from job.training.evaluation import most_confused

_MAX_WRONG = 20
_MAX_CLASSES = 30
"""Of a table of classes: those with the most mistakes. A confusion table of 1,000 classes would be 19 MB."""
_MAX_EPOCH_ROWS = 10
_PICTURE_PIXELS = 112


def epochs(facts: Facts) -> Iterable[Element]:
    """Charts of loss, accuracy and of a learning rate that changes; some epochs as numbers."""
    history = facts.metrics["history"]
    yield element("h2", "Epochs")
    if not history:
        yield element("p", "No epoch was recorded.", class_="note")
        return
    scored = "val" if any(epoch.get("val_loss") is not None for epoch in history) else "test"
    draw = partial(_chart, history=history, scored={"val": "validation", "test": "test"}[scored])
    rates = {epoch.get("learning_rate") for epoch in history} - {None}
    yield element(
        "div",
        draw("loss", keys=("loss", f"{scored}_loss"), say=_say_tick),
        draw("accuracy", keys=("accuracy", f"{scored}_accuracy"), say=_say_percent, level=_champions_level(facts)),
        *([draw("learning rate", keys=("learning_rate",), say=_say_tick)] if len(rates) > 1 else []),
        class_="charts",
    )
    yield element(
        "p",
        "Loss is the mean error that training makes smaller; accuracy is the share that is classified correctly. Training values "
        "are means over an epoch in which the model changes, so they may be behind those scored at its end.",
        class_="soft",
    )
    yield from _epoch_rows(history, scored=scored)


def _chart(
    title: str,
    *,
    keys: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    scored: str,
    say: Callable[[float], str],
    level: float | None = None,
) -> Element:
    lines = [
        Line(
            name=name if len(keys) > 1 else "",
            kind=kind,
            points=[(float(number), value) for number, value in _values(history, key)],
        )
        for name, kind, key in zip(("training", scored), ("first", "second"), keys, strict=False)
    ]
    if level is not None:
        lines.append(Line(name="champion (test)", kind="level", points=[(1, level)]))
    return chart(title, lines, num_epochs=len(history), say=say)


def _values(history: Sequence[Mapping[str, Any]], key: str) -> Iterator[tuple[int, float]]:
    for number, epoch in enumerate(history, start=1):
        value = epoch.get(key)
        if is_number(value):
            yield number, value


def _champions_level(facts: Facts) -> float | None:
    rival = facts.rival
    return rival.committed.test_accuracy if rival and rival.committed and rival.metrics else None


def _say_tick(value: float) -> str:
    return f"{value:.3g}"


def _say_percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _epoch_rows(history: Sequence[Mapping[str, Any]], *, scored: str) -> Iterable[Element]:
    step = -(-len(history) // _MAX_EPOCH_ROWS)
    numbers = [number for number in range(1, len(history) + 1) if number == 1 or (len(history) - number) % step == 0]
    if len(numbers) < len(history):
        yield element("p", f"{len(numbers)} of {len(history):,} epochs; metrics.json has all.", class_="soft")
    names = {"val": "validation", "test": "test"}
    heading = ("epoch", "loss", "accuracy", f"{names[scored]} loss", f"{names[scored]} accuracy", "time")
    yield table(heading, (_epoch_row(number, history[number - 1], scored=scored) for number in numbers))


def _epoch_row(number: int, epoch: Mapping[str, Any], *, scored: str) -> tuple[str, ...]:
    def say(key: str, form: Callable[[object], str]) -> str:
        return form(epoch[key]) if is_number(epoch.get(key)) and is_drawable(epoch[key]) else "-"

    seconds = say_duration(epoch["seconds"]) if is_number(epoch.get("seconds")) else "-"
    return (
        str(number),
        say("loss", say_number),
        say("accuracy", say_share),
        say(f"{scored}_loss", say_number),
        say(f"{scored}_accuracy", say_share),
        seconds,
    )


def classes(facts: Facts) -> Iterable[Element]:
    """All of them in their order, or those that are recalled least; beside the champion's where it saw the same examples."""
    every = facts.metrics["test"]["classes"]
    theirs = _champions_recalls(facts)
    yield element("h2", "Classes")
    yield element(
        "p",
        "Recall: which share of a class was found. Precision: which share of what was called by its name was right.",
        class_="soft",
    )
    shown = every
    if len(every) > _MAX_CLASSES:
        yield element("p", f"The {_MAX_CLASSES} of {len(every)} classes that are recalled least; metrics.json has all.")
        shown = sorted(every, key=lambda one: float(one["recall"]))[:_MAX_CLASSES]
    heading = ("class", "examples", "recall", *(("champion's", "difference") if theirs else ()), "precision")
    yield table(heading, (_class_row(one, theirs) for one in shown))


def _class_row(one: Mapping[str, Any], theirs: Mapping[str, float]) -> tuple[str, ...]:
    beside: tuple[str, ...] = ()
    if theirs:
        before = theirs.get(one["name"])
        beside = ("-", "-") if before is None else (say_share(before), f"{100 * (one['recall'] - before):+.2f} points")
    numbers = (f"{one['num_examples']:,}", say_share(one["recall"]), *beside, say_share(one["precision"]))
    return (name_of(one["name"]), *numbers)


def _champions_recalls(facts: Facts) -> Mapping[str, float]:
    if facts.rival is None or facts.rival.metrics is None:
        return {}
    return {one["name"]: one["recall"] for one in facts.rival.metrics["test"]["classes"]}


def confusion(facts: Facts) -> Iterable[Element]:
    """Mistakes are shaded by their share of the row. Of many classes those with the most mistakes, as true or as predicted."""
    test = facts.metrics["test"]
    every, counts = test["classes"], test["confusion"]
    labels = test.get("confusion_classes") or range(len(every))
    places = most_confused(np.asarray(counts), most=_MAX_CLASSES).tolist() if counts else []
    yield element("h2", "Confusion")
    yield element(
        "p",
        "Each row is a true class, each column what the model said. The stronger the colour of a mistake, the more of the row.",
        class_="soft",
    )
    if len(places) < len(every):
        yield element("p", f"The {len(places)} of {len(every)} classes with the most mistakes.")
    names = [name_of(every[labels[place]]["name"]) for place in places]
    rows = element("table", row_of("th", ("true", *names)), class_="counts")
    for place, name in zip(places, names, strict=True):
        row, num_true = element("tr"), max(every[labels[place]]["num_examples"], 1)
        row.append(element("th", name))
        row.extend(_confusion_cell(counts[place][column], num_true, is_right=column == place) for column in places)
        rows.append(row)
    yield element("div", rows, class_="scroll")


def _confusion_cell(count: int, num_true: int, *, is_right: bool) -> Element:
    if is_right:
        return element("td", element("b", f"{count:,}"))
    share = min(1.0, 8 * count / num_true)
    return (
        element("td", f"{count:,}", style=f"background: #d1470c{round(255 * share):02x}")
        if count
        else element("td", "0")
    )


def mistakes(facts: Facts) -> Iterable[Element]:
    """The most confident ones: as pictures where the store has them, else as a table."""
    test = facts.metrics["test"]
    names = [name_of(one["name"]) for one in test["classes"]]
    wrong = test["wrong"][:_MAX_WRONG]
    yield element("h2", "Most confident mistakes")
    if not wrong:
        yield element("p", "The run made no mistake on the test examples.")
        return
    seen = [one for one in wrong if one["position"] in facts.pictures]
    if seen:
        figures = (_figure(one, facts.pictures[one["position"]], names) for one in seen)
        yield element("div", *figures, class_="pictures")
        return
    yield element(
        "p", "There are no pictures: the examples are none, or the run is of an older version.", class_="soft"
    )
    yield table(
        ("test example", "true class", "predicted", "probability"),
        (
            (f"{one['position']:,}", names[one["label"]], names[one["predicted"]], say_share(one["probability"]))
            for one in wrong
        ),
    )


def _figure(one: Mapping[str, Any], picture: NDArray[np.uint8], names: Sequence[str]) -> Element:
    true, said, sure = names[one["label"]], names[one["predicted"]], say_share(one["probability"])
    scale = _PICTURE_PIXELS / max(picture.shape[:2])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    image = element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(to_png(picture)).decode()}",
        width=str(width),
        height=str(height),
        alt=f"test example {one['position']}: {true}, taken for {said}",
    )
    caption = element("figcaption", "is ", element("b", true), ", taken for ", element("b", said))
    caption.append(element("br"))
    caption[-1].tail = f"{sure} sure, test example {one['position']:,}"
    return element("figure", image, caption)


def to_png(picture: NDArray[np.uint8]) -> bytes:
    """A PNG file of uint8 [h, w] or [h, w, 3] (W3C, Portable Network Graphics): no row is filtered."""
    height, width = picture.shape[:2]
    colour = 2 if picture.ndim == 3 else 0
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour, 0, 0, 0])
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
