"""The tree of elements that a page is, so that no text can become markup; its style; numbers as people read them."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeGuard

from job.texts import visible

_MAX_NAME_CHARACTERS = 60
_MAX_TEXT_CHARACTERS = 1000

Element = ET.Element

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --page: #fff; --box: #f6f8fa; --line: #d1d9e0;
  --blue: #1f6feb; --orange: #c2410c; --good: #1a7f37; --bad: #cf222e; --mark: #fff3bf }
@media (prefers-color-scheme: dark) { :root {
  --text: #e6edf3; --soft: #9da7b3; --page: #0d1117; --box: #161b22; --line: #3d444d;
  --blue: #58a6ff; --orange: #f0883e; --good: #3fb950; --bad: #ff7b72; --mark: #4d3d00 } }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --page: #fff; --box: #fff; --line: #999;
  --blue: #1f6feb; --orange: #c2410c; --good: #1a7f37; --bad: #cf222e; --mark: #fff3bf }
  body { font-size: 11px; margin: 0 } .scroll { overflow: visible } h2 { break-after: avoid }
  svg, figure, tr, .tile { break-inside: avoid } }
* { box-sizing: border-box; -webkit-print-color-adjust: exact; print-color-adjust: exact }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5em auto; max-width: 64em; padding: 0 1em; color: var(--text);
  background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.5em; margin: .3em 0 } h2 { font-size: 1.15em; margin: 1.8em 0 .4em; border-bottom: 1px solid var(--line) }
.scroll { overflow-x: auto; margin: .5em 0 1em }
table { border-collapse: collapse }
th, td { text-align: left; padding: .15em .8em .15em 0; vertical-align: top }
.scroll th, .scroll td { overflow-wrap: normal } table.counts { white-space: nowrap } table.texts td { min-width: 6em }
table.texts td:has(.swatch) { min-width: 0 } .scroll td.text { overflow-wrap: anywhere; min-width: 10em }
table.counts th, table.counts td { text-align: right; padding: .15em .5em }
table.counts th:first-child, table.counts td:first-child { text-align: left }
.verdict { border-left: .4em solid var(--soft); background: var(--box); padding: .5em 1em; margin: .8em 0 }
.verdict.promoted { border-color: var(--good) } .verdict.refused { border-color: var(--bad) }
.note, .soft, figcaption { color: var(--soft) } .note { font-style: italic }
.tiles, .pictures { display: flex; flex-wrap: wrap; gap: .6em; margin: .8em 0 }
.tile { background: var(--box); border: 1px solid var(--line); border-radius: .4em; padding: .4em .8em; flex: 1 1 9em }
.tile b { display: block; font-size: 1.25em } .tile span { color: var(--soft); font-size: .85em }
figure { margin: 0; width: 9.5em; font-size: .85em } figure img { image-rendering: pixelated; border: 1px solid var(--line) }
.bar { display: flex; height: 1.6em; border-radius: .3em; overflow: hidden; margin: .6em 0 } .bar span { min-width: 1px }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em }
mark { background: var(--mark); color: inherit }
pre { background: var(--box); padding: .6em; white-space: pre-wrap; margin: .3em 0 1em }
.charts { display: flex; flex-wrap: wrap; gap: 1em }
.charts svg { flex: 1 1 20em; max-width: 32em; min-width: 0; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) } svg .axis { stroke: var(--line); stroke-width: 1 }
svg .first { stroke: var(--blue) } svg .second { stroke: var(--orange) } svg .level { stroke: var(--good); stroke-dasharray: 5 4 }
svg circle.first { fill: var(--blue) } svg circle.second { fill: var(--orange) }
svg text.title { fill: var(--text); font-weight: 600 }
svg text.first { fill: var(--blue); stroke: none } svg text.second { fill: var(--orange); stroke: none }
svg text.level { fill: var(--good); stroke: none }
"""


def element(tag: str, *children: Element | str, **attributes: str) -> Element:
    """One element. A `_` in the name of an attribute is a `-`; `class_` is `class`."""
    made = Element(tag, {name.strip("_").replace("_", "-"): visible(text) for name, text in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            continue
        text = visible(child, keep="\n")
        if len(made):
            made[-1].tail = (made[-1].tail or "") + text
        else:
            made.text = (made.text or "") + text
    return made


def to_page(title: str, *content: Element, style: str = STYLE) -> bytes:
    """A page that needs nothing from elsewhere and runs no script."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    page = element("html", head, element("body", *content), lang="en")
    return f"<!doctype html>\n{ET.tostring(page, encoding='unicode', method='html')}\n".encode()


def pairs(rows: Iterable[tuple[str, str | Element]]) -> Element:
    """A table of names and values."""
    made = [element("tr", element("th", name), element("td", value, class_="text")) for name, value in rows]
    return element("div", element("table", *made), class_="scroll")


def table(heading: Sequence[str], rows: Iterable[Sequence[str | Element]], *, kind: str = "counts") -> Element:
    """A table that scrolls in a box of its own where the screen is narrow; `kind`: counts stand at the right, `texts` do not."""
    made = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element("div", element("table", row_of("th", heading), *made, class_=kind), class_="scroll")


def row_of(kind: str, cells: Iterable[str]) -> Element:
    """A row of cells of one kind: `td` or `th`."""
    return element("tr", *(element(kind, cell) for cell in cells))


def cut(text: object, *, limit: int = _MAX_TEXT_CHARACTERS) -> str:
    """A text that somebody else may have written, at a length that leaves room for the rest of the page."""
    shown = str(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


def name_of(text: object) -> str:
    """A name that somebody else chose."""
    return cut(text, limit=_MAX_NAME_CHARACTERS)


def say_share(value: object) -> str:
    """Such as `97.50 %`; a text when it is no number."""
    return f"{100 * float(value):.2f} %" if is_number(value) else cut(value, limit=_MAX_NAME_CHARACTERS)


def say_chance(value: object) -> str:
    """A probability: what is too small for two digits is not said to be impossible."""
    return "less than 0.01 %" if is_number(value) and 0 < value < 5e-5 else say_share(value)


def say_number(value: object) -> str:
    """Four digits behind the point, or six in all for what is very large or small; a text when it is no number."""
    if isinstance(value, int) or not is_number(value):
        return cut(value, limit=_MAX_NAME_CHARACTERS)
    number = float(value)
    return f"{number:.4f}" if number == 0 or 1e-3 <= abs(number) < 1e6 else f"{number:.3g}"


def say_time(text: object) -> str:
    """A stored time, such as `2026-11-24 00:00 UTC`."""
    try:
        when = datetime.fromisoformat(str(text))
        return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return cut(text, limit=_MAX_NAME_CHARACTERS) or "unknown"


def is_number(value: object) -> TypeGuard[float]:
    """Whether it can be calculated with: no text, no truth value, not NaN, not infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
