"""Lines of the log beside schemas/log-event.json, which outsiders read."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_SCHEMA = Path(__file__).parent.parent / "schemas" / "log-event.json"


def find_breaches(line: Mapping[str, Any]) -> list[str]:
    """What the schema refuses about a line of the log."""
    return [
        f"{line.get('event')}: {error.message}" for error in _validator_of(str(line.get("event"))).iter_errors(line)
    ]


@cache
def _validator_of(event: str) -> Any:
    """Without the clauses of other events, which would take 50 times as long."""
    schema = json.loads(_SCHEMA.read_text())
    own = [clause for clause in schema["allOf"] if clause["if"]["properties"]["event"]["const"] == event]
    return Draft202012Validator(schema | {"allOf": own or [True]})
