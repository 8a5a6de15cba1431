"""The page `index.html` of a model: a curve of accuracy by night, and its runs in a table.

A pure function of plain values. The page needs nothing from elsewhere, runs no script, and is built as a tree of elements, so
that no text can become markup. Its links are relative: they work in a folder and in a bucket that is served over HTTP.
"""

import math
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from job import clock
from job.commands.report.charts import linear_ticks
from job.commands.report.elements import STYLE, Element, element, row_of, say_share, to_page
from job.texts import count_of, one_line, say_duration

_TO_ROOT = "../../"
"""From `models/<name>/` to where keys begin."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 600, 190, 62, 10, 12, 26
_MAX_REASON_CHARACTERS = 300
_DAY_SECONDS = 86400.0
_STYLE = (
    STYLE
    + """
a { color: var(--blue) } svg.curve { display: block; width: 100%; height: auto; margin-top: 1em }
svg.curve text { font-size: 9px }
svg .champion { fill: none; stroke: var(--blue); stroke-width: 1.5; stroke-dasharray: 5 4 }
svg .promoted { fill: var(--good); stroke: var(--good) } svg .refused { fill: none; stroke: var(--bad); stroke-width: 2 }
svg .other { fill: var(--soft); stroke: var(--soft) } .good { color: var(--good) } .bad { color: var(--bad) }
ul.key { list-style: none; padding: 0; margin: .3em 0 1.5em; display: flex; flex-wrap: wrap; gap: .2em 1.5em }
ul.key svg { width: 1.6em; height: .8em; margin-right: .4em }
table { width: 100% } thead th { border-bottom: 2px solid var(--line) } td { border-bottom: 1px solid var(--line) }
th, td { padding: .3em .9em .3em 0 } td.run { min-width: 9em } td.state { width: 40%; min-width: 14em }
.number { text-align: right; white-space: nowrap }
td.time { white-space: nowrap } tr.now td { background: var(--box) } small { color: var(--soft) }
@media (max-width: 640px) {
  body { margin: 1em auto } svg.curve text { font-size: 15px } svg.curve circle { r: 5px } thead { display: none }
  tr { display: flex; flex-wrap: wrap; gap: 0 1em; padding: .5em 0; border-bottom: 1px solid var(--line) }
  tr.now { background: var(--box) } td, td.run, td.state { border: 0; padding: 0; min-width: 0 } .number { text-align: left }
  td.time, td.run, td.state { flex-basis: 100% }
  td.number::before { content: attr(data-name) " "; color: var(--soft) } }
@media print { a { color: inherit } }
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One run of the page.

    Attributes:
        ended_seconds: of a result, when it was committed: its dot is there, and the champion moves about then.
        duration_seconds: wall time of all attempts.
        accuracy: on the test split; None without a result.
        verdict: the gate's; empty when it was not asked.
        why: the gate's reason.
        report: key of its report.
        code: without a result, the exit code of the last attempt that said one.
        last_sign_seconds: without a result, when something of it was last written.
    """

    run: str
    started_seconds: float
    ended_seconds: float = 0.0
    num_attempts: int
    duration_seconds: float | None = None
    accuracy: float | None = None
    verdict: str = ""
    why: str = ""
    report: str | None = None
    code: int | None = None
    last_sign_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One move of the champion."""

    run: str
    version: int
    accuracy: float
    when: float
    by: str


def make_page(
    model: str, nights: Sequence[Night], promotions: Sequence[Promotion], *, num_left_out: int, made_seconds: float
) -> bytes:
    """The page.

    Args:
        nights: newest first.
        promotions: newest first; the first is the champion.
        num_left_out: older runs in the store, which may be this model's.
    """
    title = f"Runs of {one_line(model)}"
    return to_page(
        title,
        element("h1", title),
        _headline(nights, promotions),
        *_curve(nights, promotions),
        _runs(nights, promotions),
        element("p", *_footnote(nights, num_left_out=num_left_out, made_seconds=made_seconds), class_="soft"),
        style=_STYLE,
    )


def _headline(nights: Sequence[Night], promotions: Sequence[Promotion]) -> Element:
    if not promotions:
        return element("p", "No run was promoted yet.")
    newest = promotions[0]
    reports = {night.run: night.report for night in nights}
    return element(
        "p",
        element("strong", f"Champion: version {newest.version}"),
        ", run ",
        _link(newest.run, reports.get(newest.run)),
        f", accuracy {say_share(newest.accuracy)}, since {_time(newest.when)}",
        f" ({one_line(newest.by, limit=20)})" if newest.by != "gate" else "",
    )


def _footnote(nights: Sequence[Night], *, num_left_out: int, made_seconds: float) -> Iterable[str]:
    yield f"{count_of(len(nights), 'run')}, newest first; times in UTC. "
    yield f"Made {_time(made_seconds)}; each run makes this page again."
    if num_left_out:
        yield f" {num_left_out} older runs of the store are left out."


def _runs(nights: Sequence[Night], promotions: Sequence[Promotion]) -> Element:
    versions: dict[str, list[int]] = {}
    for made in promotions:
        versions.setdefault(made.run, []).append(made.version)
    champion = promotions[0].run if promotions else None
    heading = row_of("th", ("started", "run", "result", "accuracy", "duration", "attempts"))
    for cell in list(heading)[3:]:
        cell.set("class", "number")
    body = element("tbody")
    for night in nights:
        body.append(_run(night, versions.get(night.run, []), is_champion=night.run == champion))
    return element("table", element("thead", heading), body)


def _run(night: Night, versions: Sequence[int], *, is_champion: bool) -> Element:
    row = element(
        "tr",
        element("td", _time(night.started_seconds), class_="time"),
        element("td", _link(night.run, night.report), class_="run"),
        _result(night, versions, is_champion=is_champion),
        _number("accuracy", "-" if night.accuracy is None else say_share(night.accuracy)),
        _number("took", say_duration(night.duration_seconds)),
        _number("attempts", str(night.num_attempts)),
    )
    if is_champion:
        row.set("class", "now")
    return row


def _number(name: str, text: str) -> Element:
    return element("td", text, class_="number", data_name=name)


def _result(night: Night, versions: Sequence[int], *, is_champion: bool) -> Element:
    """The verdict of the gate, or what became of a run without a result; the reason in small letters below."""
    said, kind = _say_result(night)
    names = ", ".join(f"version {number}" for number in sorted(versions))
    said = f"{said}: {names}" if names else said
    cell = element("td", element("span", said, class_=kind), class_="state")
    if is_champion:
        cell.append(element("strong", " champion"))
    why = one_line(night.why[: 2 * _MAX_REASON_CHARACTERS], limit=_MAX_REASON_CHARACTERS)
    if why and night.verdict != "promoted":
        cell.extend((element("br"), element("small", why)))
    return cell


def _say_result(night: Night) -> tuple[str, str]:
    if night.accuracy is not None:
        return night.verdict or "committed", {"promoted": "good", "refused": "bad"}.get(night.verdict, "")
    if night.code:
        return f"failed ({night.code})" if night.code != _INTERRUPTED else "interrupted", "bad"
    return f"no result; last written {_time(night.last_sign_seconds or night.started_seconds)}", "soft"


_INTERRUPTED = 75


def _curve(nights: Sequence[Night], promotions: Sequence[Promotion]) -> Iterable[Element]:
    """Accuracy by end of the run: a dot each, and the champion's as a line; nothing without a result."""
    scored = [(night, night.accuracy) for night in nights if night.accuracy is not None]
    if not scored:
        return
    times = [night.ended_seconds for night, _ in scored]
    marks = _marks(
        min(times), max(times), scores=[*(score for _, score in scored), *(made.accuracy for made in promotions)]
    )
    svg = element("svg", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label="accuracy by night", class_="curve")
    svg.extend(marks.axes())
    if promotions:
        svg.append(element("polyline", points=marks.steps(promotions), class_="champion"))
    for night, score in reversed(scored):
        kind = night.verdict if night.verdict in ("promoted", "refused") else "other"
        dot = element("circle", cx=marks.x(night.ended_seconds), cy=marks.y(score), r="3", class_=kind)
        dot.append(
            element("title", f"{_time(night.started_seconds)}: {say_share(score)}, {night.verdict or 'committed'}")
        )
        svg.append(dot)
    yield svg
    yield _key(has_champion=bool(promotions))


def _key(*, has_champion: bool) -> Element:
    shapes = [
        (name, element("circle", cx="8", cy="5", r="4", class_=kind))
        for name, kind in (("promoted", "promoted"), ("refused", "refused"), ("the same, or not asked", "other"))
    ]
    if has_champion:
        shapes.append(("champion", element("line", x1="0", x2="20", y1="5", y2="5", class_="champion")))
    items = (
        element("li", element("svg", shape, viewBox="0 0 20 10", aria_hidden="true"), name) for name, shape in shapes
    )
    return element("ul", *items, class_="key")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """Where times and accuracies lie on the curve."""

    first_seconds: float
    last_seconds: float
    scores: Sequence[float]
    """Ticks of the accuracy, ascending: the first is the lower edge."""

    def x(self, seconds: float) -> str:
        """A time, held to the edges."""
        span = (self.last_seconds - self.first_seconds) or 1.0
        share = min(max((seconds - self.first_seconds) / span, 0.0), 1.0)
        return f"{_LEFT + share * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def y(self, score: float) -> str:
        """An accuracy."""
        low, high = self.scores[0], self.scores[-1]
        return f"{_HEIGHT - _BOTTOM - (score - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    def steps(self, promotions: Sequence[Promotion]) -> str:
        """The champion's accuracy from each move to the next."""
        points: list[str] = []
        for made in sorted(promotions, key=lambda made: made.version):
            points += [f"{self.x(made.when)},{points[-1].partition(',')[2]}"] if points else []
            points.append(f"{self.x(made.when)},{self.y(made.accuracy)}")
        return " ".join([*points, f"{self.x(math.inf)},{points[-1].partition(',')[2]}"])

    def axes(self) -> Iterable[Element]:
        """Lines and numbers."""
        decimals = max(0, -math.floor(math.log10(self.scores[1] - self.scores[0]) + 1e-9) - 2)
        for score in self.scores:
            y = self.y(score)
            yield element("line", x1=str(_LEFT), x2=str(_WIDTH - _RIGHT), y1=y, y2=y, class_="axis")
            yield element(
                "text",
                f"{100 * score:.{decimals}f} %",
                x=str(_LEFT - 6),
                y=y,
                text_anchor="end",
                dominant_baseline="middle",
            )
        y = str(_HEIGHT - 6)
        yield element("text", _day(self.first_seconds), x=str(_LEFT), y=y)
        if self.last_seconds - self.first_seconds >= _DAY_SECONDS:
            yield element("text", _day(self.last_seconds), x=str(_WIDTH - _RIGHT), y=y, text_anchor="end")


def _marks(first_seconds: float, last_seconds: float, *, scores: Sequence[float]) -> _Marks:
    """With ticks at round numbers, around all accuracies."""
    ticks = [tick for tick in linear_ticks(min(scores), max(scores), most=5) if -1e-9 <= tick <= 1 + 1e-9]
    return _Marks(first_seconds=first_seconds, last_seconds=last_seconds, scores=ticks)


def _link(run: str, report: str | None) -> Element:
    name = one_line(run)
    if report is None:
        return element("span", name)
    return element("a", name, href=_TO_ROOT + urllib.parse.quote(report))


def _time(seconds: float) -> str:
    return clock.timestamp(seconds)[:16].replace("T", " ")


def _day(seconds: float) -> str:
    return clock.timestamp(seconds)[:10]
