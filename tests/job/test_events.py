"""The table of events: every place that logs says what is in it, and nothing else."""

import ast
import json
import logging
import math
from collections.abc import Iterator

import pytest

from job import logs
from job.contract import Event
from job.events import COMMON_FIELDS, KINDS, say
from tests.conftest import REPOSITORY
from tests.log_events import find_breaches

_LEVELS = {"emit": "info", "warn": "warning", "error": "error"}
_NAMED_ELSEWHERE = {"after_commit", "_tolerated"}
"""Functions that are given the name of a warning, and log it with `reason` and perhaps `stack`."""


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, name of the function, call) of everything that may log in `job/`."""
    for path in sorted((REPOSITORY / "job").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)) and node.args:
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", name, node


def _event_of(call: ast.Call) -> str:
    """Empty for a name that is not known before the program runs."""
    first = call.args[0]
    if isinstance(first, ast.Attribute) and first.attr in Event.__members__:
        return Event[first.attr].value
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def test_every_place_that_logs_keeps_to_the_table() -> None:
    wrong = []
    for place, name, call in _calls():
        event = _event_of(call)
        if not event or name not in (*_LEVELS, *_NAMED_ELSEWHERE):
            continue
        kind = KINDS.get(event)
        unknown = (
            {keyword.arg for keyword in call.keywords} - {None, "fatal"} - {own for own, _, _ in kind.fields()}
            if kind
            else event
        )
        if unknown or (kind and _LEVELS.get(name, "warning") != kind.level):
            wrong.append(f"{place}: {event} {unknown}")
    assert wrong == []


def test_every_event_of_the_table_is_logged_somewhere() -> None:
    logged = {_event_of(call) for _, name, call in _calls() if name in (*_LEVELS, *_NAMED_ELSEWHERE)}
    assert set(KINDS) - logged == set()
    assert {event.value for event in Event} <= set(KINDS)


@pytest.mark.parametrize("event", KINDS)
def test_a_sentence_names_fields_of_its_event_and_no_field_hides_a_common_one(event: str) -> None:
    own = [name for name, _, _ in KINDS[event].fields()]
    assert set(own) & set(COMMON_FIELDS) == set()
    text = say(event, dict.fromkeys(own, "VALUE") | {"run": "r"})
    assert not set("{}[]") & set(text)
    assert not text.startswith(event), "the table has no sentence that can be said"


def test_a_sentence_leaves_out_what_is_not_known() -> None:
    ended = {"epoch": 3, "loss": 0.123456, "accuracy": math.nan, "test_accuracy": None}
    assert say("epoch.end", ended) == "Epoch 3 ended: loss 0.1235, accuracy not finite"


def test_an_event_outside_of_the_table_is_said_with_its_first_plain_fields() -> None:
    assert (
        say("of.a.newer.version", {"run": "r", "step": 3, "many": [1], "reason": "why"})
        == "of.a.newer.version step=3 reason=why"
    )
    assert say("checkpoint.saved", {"step": 3}) == "checkpoint.saved step=3"
    assert len(say("error", {"code": 1, "reason": "x" * 5000})) == 1000


def test_every_line_that_the_job_can_write_passes_the_schema_and_others_do_not() -> None:
    formatter = logs.json_formatter(run="r", attempt="a")
    values = {"string": "s", "integer": 1, "number": math.inf, "boolean": True, "object": {}, "array": []}
    written = []
    for event, kind in KINDS.items():
        fields = {name: values.get(type_) for name, type_, _ in kind.fields()}
        record = logging.makeLogRecord({"msg": event, "levelname": kind.level.upper(), "fields": fields})
        written.append(json.loads(formatter.format(record)))
    assert [breach for line in written for breach in find_breaches(line)] == []
    start = written[0]
    assert find_breaches(start | {"more": 1}) != []
    assert find_breaches(start | {"severity": "WARNING"}) != []
    assert find_breaches(start | {"event": "no.such"}) != []
    assert find_breaches({name: value for name, value in start.items() if name != "version"}) != []
