"""The verdict, and the numbers that the gate measured, in words."""

from collections.abc import Iterable, Mapping
from typing import Any

from job.commands.report.elements import (
    Element,
    cut,
    element,
    is_number,
    name_of,
    pairs,
    say_chance,
    say_number,
    say_share,
    say_time,
    table,
)
from job.commands.report.facts import Facts, Rival
from job.measures import ACCURACY, is_measure
from job.registry.comparison import key_of
from job.registry.rules import GateRecord
from job.texts import count_of

_KNOWN = {"accuracy", "examples", "metric", "lowest_recall", "lowest_recall_class", "constant", "constant_p_value"} | {
    *("champion_accuracy", "only_champion_right", "only_candidate_right", "p_value", "gain_p_value"),
    *("anchor_p_value", "anchor_gain_p_value", "is_new_anchor"),
}
_MAX_OTHER = 20


def verdict(facts: Facts) -> Element:
    """The first thing that a reader looks for."""
    gate = facts.gate
    if gate is None:
        text = "The gate was not asked: promotion.enabled was false, or no attempt has come as far."
        return element("div", element("strong", "No verdict"), f". {text}", class_="verdict")
    said = {
        "promoted": f"Promoted to version {gate.version} of {gate.model}",
        "same": f"Same as the champion of {gate.model}",
        "refused": f"Refused as champion of {gate.model}",
    }[gate.verdict]
    return element("div", element("strong", said), f": {cut(gate.reason)}.", class_=f"verdict {gate.verdict}")


def comparison(facts: Facts) -> Iterable[Element]:
    """With whom the gate compared, what it measured, and what it asks for."""
    gate = facts.gate
    if gate is None:
        return
    yield element("h2", "What the gate measured")
    yield element("p", *_say_rival(gate, facts.rival))
    yield table(("measured", "this run", "compared with", "difference", "asked for"), _rows(facts, gate), kind="texts")
    yield element("ul", *(element("li", sentence) for sentence in _sentences(facts, gate)))
    metric = key_of(_metric(gate))
    other = [name for name in gate.numbers if name not in _KNOWN | {metric, f"champion_{metric}", f"anchor_{metric}"}]
    if other:
        yield pairs((name_of(name), say_number(gate.numbers[name])) for name in other[:_MAX_OTHER])


def _say_rival(gate: GateRecord, rival: Rival | None) -> Iterable[Element | str]:
    if rival is None:
        yield f"There was no champion of {gate.model} at {say_time(gate.decided)}, when the gate decided."
        return
    yield f"At {say_time(gate.decided)} the champion of {gate.model} was version {rival.version}, run "
    yield element("b", name_of(rival.run))
    if rival.move:
        hows = {"gate": "by the gate", "promote": "by hand (promote)", "rollback": "by hand (rollback)"}
        how = hows.get(rival.move.by, f"by {name_of(rival.move.by)}")
        yield f", champion since {say_time(rival.move.when)}, {how}"
    yield "." if rival.committed else ". Its run is not in the store any more."


def _rows(facts: Facts, gate: GateRecord) -> Iterable[tuple[str, str, str, str, str]]:
    """Each thing that was measured beside what it is held against."""
    numbers, metric = gate.numbers, _metric(gate)
    key, limits = key_of(metric), _limits(facts)
    if metric != ACCURACY:
        asked = "not worse beyond chance (promotion.metric)"
        yield _row(metric, numbers, key, "champion", f"champion_{key}", asked)
    floor = f"at least {say_share(limits['min_accuracy'])} (promotion.min_accuracy)"
    yield _row(ACCURACY, numbers, "accuracy", "champion", "champion_accuracy", floor)
    if f"anchor_{key}" in numbers:
        drop = _say(limits["max_accuracy_drop"], metric)
        asked = f"at most {drop} below it, or more by chance (promotion.max_accuracy_drop)"
        yield _row(metric, numbers, key, "yardstick", f"anchor_{key}", asked)
    if "constant" in numbers:
        yield _row(metric, numbers, key, "always the most frequent class", "constant", "above it beyond chance")
    if "lowest_recall" in numbers:
        floor = f"at least {say_share(limits['min_class_recall'])} (promotion.min_class_recall)"
        yield (
            f"recall of its worst class, {_class_name(facts, numbers)}",
            say_share(numbers["lowest_recall"]),
            "",
            "",
            floor,
        )


def _row(
    metric: str, numbers: Mapping[str, Any], key: str, whose: str, other: str, asked: str
) -> tuple[str, str, str, str, str]:
    ours, theirs, difference = numbers.get(key), numbers.get(other), ""
    if is_number(ours) and is_number(theirs):
        change = ours - theirs
        difference = f"{100 * change:+.2f} points" if is_measure(metric) else f"{change:+.4g}"
    beside = "" if theirs is None else f"{whose}: {_say(theirs, metric)}"
    return name_of(metric), _say(ours, metric), beside, difference, asked


def _sentences(facts: Facts, gate: GateRecord) -> Iterable[str]:
    """What the numbers mean."""
    numbers, level = gate.numbers, _limits(facts)["significance"]
    examples = numbers.get("examples")
    won, lost = numbers.get("only_candidate_right"), numbers.get("only_champion_right")
    if isinstance(examples, int) and examples > 0:
        yield f"There are {examples:,} test examples: one of them is {100 / examples:.2g} points of accuracy."
    if isinstance(won, int) and isinstance(lost, int):
        yield (
            f"{count_of(won, 'example')} won (only this run is right), {lost:,} lost (only the champion is right); of the "
            "others both are right, or both are wrong."
        )
    if is_number(numbers.get("p_value")):
        yield (
            "If both were equally good, the champion would be ahead by so much, or more, in "
            f"{say_chance(numbers['p_value'])} of all comparisons (p_value). The gate takes it for chance from "
            f"{say_share(level)} on (promotion.significance), or from half of that where champion and yardstick are two models."
        )
    if is_number(numbers.get("gain_p_value")):
        yield f"This run would be ahead by so much, or more, in {say_chance(numbers['gain_p_value'])} (gain_p_value)."
    if any(name.startswith("anchor_") for name in numbers):
        yield (
            "The yardstick (anchor) is the champion that all later ones on these test examples are measured by, so that small "
            "losses do not add up night after night."
        )
    if is_number(numbers.get("anchor_p_value")):
        yield (
            f"Beside the yardstick chance alone would lose so much in {say_chance(numbers['anchor_p_value'])} (anchor_p_value), "
            f"and win so much in {say_chance(numbers.get('anchor_gain_p_value', 'an unknown share'))} (anchor_gain_p_value)."
        )
    if is_number(numbers.get("constant_p_value")):
        yield (
            "Whoever always says the most frequent class would score so high by chance in "
            f"{say_chance(numbers['constant_p_value'])} (constant_p_value)."
        )
    if numbers.get("is_new_anchor") is True:
        yield "This run becomes the new yardstick."


def _metric(gate: GateRecord) -> str:
    return str(gate.numbers.get("metric", ACCURACY))


def _say(value: object, metric: str) -> str:
    return say_share(value) if is_measure(metric) else say_number(value)


def _limits(facts: Facts) -> Mapping[str, Any]:
    """The gate's settings, as the run's COMMIT records them."""
    unknown = dict.fromkeys(("min_accuracy", "max_accuracy_drop", "min_class_recall", "significance"), "unknown")
    return unknown | dict(facts.committed.record.get("config", {}).get("promotion", {}))


def _class_name(facts: Facts, numbers: Mapping[str, Any]) -> str:
    classes, label = facts.metrics["test"]["classes"], numbers.get("lowest_recall_class")
    is_known = isinstance(label, int) and 0 <= label < len(classes)
    return name_of(classes[label]["name"] if is_known else label)
