"""Lines over the epochs, with axes and ticks, drawn as SVG. What is not finite is left out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from job.commands.report.elements import Element, element

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480, 260, 62, 14, 30, 56
_MAX_POINTS = 500
"""Of a line, in a chart that is 480 pixels wide."""
_MAX_DOTS = 40
"""A line of more points has none: they would touch."""
_LOG_RATIO = 20.0
"""From so many times the smallest value on, the end of a curve is a flat line on a linear axis."""
_LARGEST, _SMALLEST = 1e100, 1e-100
"""What is beyond is no value that a curve could show; what is below is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Values by epoch.

    Attributes:
        kind: its place in the style sheet: first, second or level.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Values low..high on a way of pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = (math.log10(each) for each in (low, high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def chart(title: str, lines: Sequence[Line], *, num_epochs: int, say: Callable[[float], str]) -> Element:
    """Lines over epochs 1 to `num_epochs`; `say` writes a value. The axis is logarithmic where a linear one hides the end."""
    known = [
        Line(
            name=line.name,
            kind=line.kind,
            points=_thin([(epoch, _drawn(value)) for epoch, value in line.points if is_drawable(value)]),
        )
        for line in lines
    ]
    values = [value for line in known for _, value in line.points]
    if not values:
        return element("p", f"No epoch recorded a finite {title}.", class_="note")
    low, high = min(values), max(values)
    is_log = low > 0 and high / low >= _LOG_RATIO
    ticks = _log_ticks(low, high) if is_log else linear_ticks(low, high)
    down = _Axis(low=min(low, ticks[0]), high=max(high, ticks[-1]), start=_HEIGHT - _BOTTOM, end=_TOP, is_log=is_log)
    across = _Axis(low=1, high=max(num_epochs, 1), start=_LEFT + 6, end=_WIDTH - _RIGHT - 6)
    return element(
        "svg",
        element("text", title + (" (logarithmic axis)" if is_log else ""), x="4", y="16", class_="title"),
        *_value_ticks(down, ticks, say=say),
        *_epoch_ticks(across, num_epochs=num_epochs),
        *(mark for line in known for mark in _draw(line, across, down)),
        *_legend(known, say=say),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title} by epoch",
    )


def is_drawable(value: float) -> bool:
    """Whether a curve can show it."""
    return math.isfinite(value) and abs(value) < _LARGEST


def _drawn(value: float) -> float:
    return value if abs(value) >= _SMALLEST else 0.0


def linear_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`: multiples of 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / (most - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = -(-(last - first) // 5)
    powers = [10.0**power for power in range(first, last + 1, stride)]
    between = [factor * 10.0**power for power in range(first, last) for factor in (2, 5)] if last - first <= 2 else []
    inside = [tick for tick in sorted([*powers, *between]) if low / 1.5 <= tick <= high * 1.5]
    return inside or [low, high]


def _value_ticks(axis: _Axis, ticks: Sequence[float], *, say: Callable[[float], str]) -> list[Element]:
    marks = []
    for tick in ticks:
        y = f"{axis.place(tick):.1f}"
        marks.append(element("line", x1=str(_LEFT), x2=str(_WIDTH - _RIGHT), y1=y, y2=y, class_="axis"))
        marks.append(element("text", say(tick), x=str(_LEFT - 6), y=f"{axis.place(tick) + 4:.1f}", text_anchor="end"))
    return marks


def _epoch_ticks(axis: _Axis, *, num_epochs: int) -> list[Element]:
    step = max(1, round(_round_step(max(num_epochs, 1) / 6)))
    epochs = sorted({1, *(tick for tick in range(step, num_epochs + 1, step) if tick - 1 >= step / 2 or step == 1)})
    bottom, marks = _HEIGHT - _BOTTOM, []
    for epoch in epochs:
        x = f"{axis.place(epoch):.1f}"
        marks.append(element("line", x1=x, x2=x, y1=str(bottom), y2=str(bottom + 4), class_="axis"))
        marks.append(element("text", str(epoch), x=x, y=str(bottom + 17), text_anchor="middle"))
    marks.append(element("text", "epoch", x="4", y=str(bottom + 17)))
    return marks


def _draw(line: Line, across: _Axis, down: _Axis) -> list[Element]:
    places = [(across.place(epoch), down.place(value)) for epoch, value in line.points]
    if line.kind == "level":  # one value, from edge to edge
        places = [(x, y) for _, y in places[:1] for x in (across.start, across.end)]
    marks = []
    if len(places) > 1:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        marks.append(element("polyline", points=points, fill="none", stroke_width="2", class_=line.kind))
    if line.kind != "level" and len(places) <= _MAX_DOTS:
        marks += [element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.5", class_=line.kind) for x, y in places]
    return marks


def _legend(lines: Sequence[Line], *, say: Callable[[float], str]) -> list[Element]:
    """The name of each line and its last value."""
    width = (_WIDTH - 8) // max(len(lines), 1)
    return [
        element(
            "text",
            f"{line.name} {say(line.points[-1][1])}" if line.points else f"{line.name}: no value",
            x=str(4 + number * width),
            y=str(_HEIGHT - 12),
            class_=line.kind,
        )
        for number, line in enumerate(lines)
    ]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points as a line needs, the last one among them."""
    return [*points[: -1 : -(-len(points) // _MAX_POINTS) or 1], *points[-1:]]
