"""What `run --help` prints, the tables of docs/reference.md and docs/environment.md, and the schema of the log."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from generators.splice import splice, to_rows
from job.ambient import TABLE
from job.config import describe_fields
from job.contract import ExitCode, commit_key
from job.events import KINDS, make_schema
from job.observe.metrics import Champion, Metrics
from job.observe.phases import Phases
from job.observe.termination import Status

_HELP, _REFERENCE, _ENVIRONMENT = "job/settings.txt", "docs/reference.md", "docs/environment.md"
_LOG_SCHEMA = "schemas/log-event.json"


def make_files(root: Path) -> dict[str, str]:
    """Path -> content."""
    text = None
    pieces = {
        "settings": make_settings(),
        "exit codes": make_exit_codes(),
        "events": make_events(),
        "series": make_series(),
    }
    for name, piece in pieces.items():
        text = splice(root / _REFERENCE, name, piece, text=text)
    assert text is not None
    environment = splice(root / _ENVIRONMENT, "environment", make_environment())
    return {_HELP: make_help(), _REFERENCE: text, _ENVIRONMENT: environment, _LOG_SCHEMA: make_log_schema()}


def make_help() -> str:
    """Every setting as a flag with its default."""
    lines = [f"  --{name + '=' + default:<46} {description}" for name, default, description in describe_fields()]
    return "\n".join(["settings (flag > MNIST_SECTION__FIELD > --config FILE > default):", *lines]) + "\n"


def make_settings() -> str:
    """A row for each setting."""
    rows = ((f"`{name}`", f"`{default}`", description) for name, default, description in describe_fields())
    return to_rows(("setting", "default", "meaning"), *rows)


def make_environment() -> str:
    """A row for each variable, or family of them, that a library reads."""
    order = ["refused", "set", "removed", "default", "recorded, bits", "recorded", "for the store", "no effect"]
    ordered = sorted(TABLE, key=lambda row: order.index(row.treatment))
    rows = ((_code(row.names), row.read_by, row.treatment, row.why) for row in ordered)
    return to_rows(("variables and files", "read by", "here", "why"), *rows)


def _code(names: str) -> str:
    return " ".join(f"`{name}`" for name in names.split())


def make_exit_codes() -> str:
    """A row for each exit code, and one for those that the kernel makes."""
    rows = ((str(code.value), code.meaning, code.again) for code in ExitCode)
    killed = ("137, 139", "killed from outside, out of memory, crashed in native code", "yes")
    return to_rows(("code", "meaning", "start it again?"), *rows, killed)


def make_log_schema() -> str:
    """JSON Schema of one line of the log, with a line for each event."""
    schema = make_schema()
    kinds = ",\n    ".join(json.dumps(kind) for kind in schema["allOf"])
    return json.dumps(schema | {"allOf": []}, indent=2).replace('"allOf": []', f'"allOf": [\n    {kinds}\n  ]') + "\n"


def make_events() -> str:
    """A row for each event: its level, its sentence and its own fields with their types."""
    rows = ((f"`{event}`", kind.level, kind.says, _to_cell(kind.own)) for event, kind in KINDS.items())
    return to_rows(("event", "level", "`message`", "own fields"), *rows)


def _to_cell(own: str) -> str:
    """Such as "`step` integer, `loss` number?"."""
    parts = (part.partition(":") for part in own.split())
    return ", ".join(f"`{name}` {kind.replace('|', ' or ')}" for name, _, kind in parts)


def make_series() -> str:
    """A row for each series of /metrics, then those that are known at the exit alone."""
    metrics = _metrics_with_everything()
    running = [*_describe(metrics.running())]
    at_exit = [(name, f"{kind}, at exit", text) for name, kind, text in _describe(metrics.outcome())]
    known = {name for name, _, _ in running}
    return to_rows(("series", "type", "meaning"), *running, *(row for row in at_exit if row[0] not in known))


def _metrics_with_everything() -> Metrics:
    status = Status(run="r", code=ExitCode.OK, outcome="committed", accuracy=0.0, commit=commit_key("r"))
    metrics = Metrics(status=status, phases=Phases(), memory_limit_bytes=1, verdict="promoted", dataset_digest="0")
    metrics.champion = Champion(accuracy=0.0, version=1, when="2026-01-01T00:00:00+00:00")
    metrics.restored(dict.fromkeys(metrics.counters(), 0))
    metrics.set(**dict.fromkeys(metrics.gauges(), 0.0))
    metrics.set_goodput({"ratio": 0.0, "seconds": {"train": 0.0}})
    metrics.set_recalls({"0": 0.0})
    metrics.set_metrics({"auc": 0.0})
    metrics.warnings.by_event["checkpoint.failed"] += 1
    return metrics


def _describe(families: Iterable[Any]) -> Iterable[tuple[str, str, str]]:
    for family in families:
        labels = ",".join(family.samples[0].labels) if family.type != "histogram" else ""
        name = family.name + ("_total" if family.type == "counter" else "")
        yield f"`{name}{f'{{{labels}}}' if labels else ''}`", family.type, family.documentation
