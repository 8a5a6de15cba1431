"""Where the time went, which settings were changed, the commands that go on from here, what the run was made of."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from job.commands.report.elements import Element, cut, element, name_of, pairs, say_share, table
from job.commands.report.facts import Facts
from job.config import Config, StoreSection
from job.masking import masked
from job.texts import quoted, say_duration, say_placement

_WORDS = {
    "train": ("training steps that count", "#1a7f37"),
    "lost": ("work that an end without a checkpoint undid", "#cf222e"),
    "start_up": ("starting, store, building, restoring", "#8250df"),
    "data": ("reading the data", "#bf8700"),
    "compile": ("compiling the training step", "#0969da"),
    "evaluate": ("scoring after epochs and at the end", "#1b7c83"),
    "checkpoint": ("waiting for checkpoints", "#bc4c00"),
    "publish": ("export, commit, gate, cleaning up", "#6e7781"),
    "wait_for_workers": ("waiting for the other workers", "#9a6700"),
}
_OTHER_COLOURS = ("#bf3989", "#57606a", "#0550ae", "#7d4e00")
_NOT_COMPARED = {("run", "id"), ("run", "suffix")}
_DECIDES_NOTHING = ("store", "observe")
_MAX_ROWS, _MAX_SECTIONS = 30, 12
_MAX_VALUE_CHARACTERS, _MAX_SECTION_CHARACTERS = 120, 1000


def time(facts: Facts) -> Iterable[Element]:
    """A bar, and its parts in words."""
    goodput = facts.metrics["goodput"]
    wall_seconds, parts = goodput["wall_seconds"], goodput["seconds"]
    known = sorted(parts.items(), key=lambda part: -part[1])[:_MAX_ROWS]
    coloured = [(name, seconds, *_words_for(name, number)) for number, (name, seconds) in enumerate(known)]
    yield element("h2", "Time")
    yield element(
        "p",
        element("b", f"{say_share(goodput['ratio'])} goodput"),
        f": the share of {say_duration(wall_seconds)} that went into training steps that count.",
    )
    yield element("div", *_bar(coloured), class_="bar", role="img", aria_label="where the time went")
    whole = sum(max(0.0, seconds) for _, seconds in known) or 1.0
    yield table(
        ("", "part", "what it is", "time", "share"),
        (
            (_swatch(colour), name_of(name), words, say_duration(seconds), say_share(seconds / whole))
            for name, seconds, words, colour in coloured
        ),
        kind="texts",
    )
    down = goodput.get("down_seconds")
    if isinstance(down, int | float) and down > 0:
        yield element("p", f"Between attempts no attempt ran for {say_duration(down)}; the bar leaves that out.")
    yield from _attempts(facts)


def _bar(parts: Iterable[tuple[str, float, str, str]]) -> Iterator[Element]:
    for name, seconds, _, colour in parts:
        if seconds > 0:
            style = f"flex: {seconds:.6g} 0 0; background: {colour}"
            yield element("span", style=style, title=f"{name_of(name)}: {say_duration(seconds)}")


def _swatch(colour: str) -> Element:
    return element("span", class_="swatch", style=f"background: {colour}")


def _words_for(name: str, number: int) -> tuple[str, str]:
    return _WORDS.get(name, ("", _OTHER_COLOURS[number % len(_OTHER_COLOURS)]))


def _attempts(facts: Facts) -> Iterator[Element]:
    """Which attempts made the steps, when there were several."""
    chain = facts.committed.record.get("chain")
    links = [link for link in chain if isinstance(link, Mapping)] if isinstance(chain, list) else []
    if len(links) < 2:
        return
    items = [
        element("li", f"attempt {name_of(link.get('attempt'))}: from step {name_of(link.get('from_step'))} on")
        for link in links[:_MAX_ROWS]
    ]
    yield element("p", "The steps were made by:")
    yield element("ul", *items)


def changed_settings(facts: Facts) -> Iterable[Element]:
    """What differs from the defaults, or from the champion's run."""
    theirs = _config_of(facts.rival.committed.record) if facts.rival and facts.rival.committed else {}
    rows = list(_changes(_config_of(facts.committed.record), theirs))
    yield element("h2", "Changed settings")
    if not rows:
        yield element("p", "None: all that decide something are at their defaults.")
        return
    heading = ("setting", "this run", "default", *(("champion's run",) if theirs else ()))
    yield table(heading, rows[:_MAX_ROWS], kind="texts")
    if theirs:
        yield element("p", "Marked: other than in the champion's run.", class_="soft")
    if len(rows) > _MAX_ROWS:
        yield element("p", f"{_MAX_ROWS} of {len(rows)}; the COMMIT has all.", class_="soft")


def _changes(
    ours: Mapping[tuple[str, str], Any], theirs: Mapping[tuple[str, str], Any]
) -> Iterator[tuple[str | Element, ...]]:
    defaults = _flat(Config().model_dump(mode="json"))
    for key, value in ours.items():
        default, champions = defaults.get(key, "unknown to this version"), theirs.get(key, defaults.get(key))
        is_other = bool(theirs) and value != champions
        if key in _NOT_COMPARED or key[0] in _DECIDES_NOTHING or (value == default and not is_other):
            continue
        shown = element("mark", _show(value)) if is_other else _show(value)
        yield (".".join(map(name_of, key)), shown, _show(default), *((_show(champions),) if theirs else ()))


def _config_of(record: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    return _flat(record.get("config", {}))


def _flat(sections: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    return {
        (section, name): value
        for section, fields in sections.items()
        if isinstance(fields, Mapping)
        for name, value in fields.items()
    }


def _show(value: object) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value), limit=_MAX_VALUE_CHARACTERS)


def commands(facts: Facts) -> Iterable[Element]:
    """What to type to go on from here."""
    run, store = quoted(facts.committed.run), _store_options(facts.store)
    yield element("h2", "Commands")
    yield element("p", "The address of the store is that of the program that wrote this page.", class_="soft")
    lines = [
        ("Check every file of the result, and that its model predicts what it should:", f"verify --run {run}"),
        ("Train it again, and compare the digests:", f"reproduce {run}"),
        ("Everything that is recorded about it; its log:", f"show {run}"),
    ]
    if facts.gate and facts.gate.verdict == "promoted":
        name = quoted(facts.gate.model)
        asked = f"fetch --to models --promotion.model_name={name}"
        lines.append(("Bring the present champion of this name, verified, to where you are:", asked))
    for words, command in lines:
        yield element("p", words)
        yield element("pre", f"mnist-job {command}{store}")


def _store_options(settings: StoreSection) -> str:
    """What a command needs to reach the same store."""
    changed = {"uri": settings.uri} | settings.model_dump(mode="json", exclude_defaults=True)
    return "".join(
        f" {quoted(masked(f'--store.{name}={value}'))}"
        for name, value in changed.items()
        if not name.endswith("_seconds")
    )


def origin(facts: Facts) -> Iterable[Element]:
    """Digests, code and machine, and all settings."""
    yield element("h2", "Made of")
    yield pairs(_origin(facts))


def _origin(facts: Facts) -> Iterator[tuple[str, str]]:
    committed = facts.committed
    lineage = committed.record.get("lineage", {})
    for name in ("revision", "image", "chart_version", "version", "python"):
        if lineage.get(name):
            yield name.replace("_", " "), cut(lineage[name])
    devices = lineage.get("devices", [])
    if devices:
        yield "trained on", say_placement(num_workers=lineage.get("workers", 1), num_replicas=len(devices))
    yield "packages", cut(", ".join(f"{name} {version}" for name, version in lineage.get("packages", {}).items()))
    yield "dataset digest", cut(committed.dataset.digest)
    yield "weights digest", cut(committed.weights_digest)
    yield "result digest", cut(committed.result_digest)
    for section, fields in list(committed.record.get("config", {}).items())[:_MAX_SECTIONS]:
        yield (
            name_of(section),
            cut(
                ", ".join(f"{name}={json.dumps(value)}" for name, value in fields.items()),
                limit=_MAX_SECTION_CHARACTERS,
            ),
        )
