"""`show`: everything that is known about one run, as a page for people or as JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from job import contract
from job.commands.cli import CommandLine
from job.commands.lookup import checked_run_id, configured_store, find_committed
from job.commands.runs import code_of, moves_by_run, started_at, to_seconds
from job.commands.summary import say_scores, store_flags
from job.config import Config
from job.config_sources import LoadedConfig
from job.contract import ExitCode
from job.registry.champion import Move
from job.registry.gate import read_gate, read_gate_json
from job.registry.rules import GateRecord
from job.runs import read
from job.runs.read import ClosedRun, CommittedRun
from job.runs.state import OpenRun, read_open_run
from job.store.store import Store
from job.texts import count_of, one_line, quoted, say_duration, say_parts, say_seconds_at, visible

_SAID_ELSEWHERE = {"run.id", "store"}
"""Settings, and sections, that the page shows in another place."""

Lines = Iterator[tuple[str, str | None]]
"""(what it is, what is known), the first empty where a line goes on; or (heading, None)."""


def show(line: CommandLine, loaded: LoadedConfig) -> int:
    """What is known about a run; of a retired one, what retention has left.

    Raises:
        NotFoundError: the store has nothing of it.
        ConflictError: `gc` closed it.
    """
    store, run_id = configured_store(loaded), checked_run_id(line.options.run)
    recorded = read.read_run(store, run_id)
    found = read_open_run(store, run_id) if recorded is None else None
    if isinstance(recorded, ClosedRun) and recorded.is_removed:
        known, page = _of_retired(store, recorded)
    elif found:
        known, page = _of_open(found, flags=store_flags(loaded.config))
    else:
        committed = find_committed(store, run_id)
        known = {**committed.record, "gate": read_gate_json(store, run_id)}
        page = _of_committed(store, committed, flags=store_flags(loaded.config))
    if line.options.output == "json":
        known["champion"] = _describe_moves(store, run_id)
        print(json.dumps(known, indent=2, sort_keys=True))
    else:
        _print_page(page)
    return contract.ExitCode.OK


def _print_page(page: Lines) -> None:
    for number, (name, text) in enumerate(page):
        if text is None:
            print(f"\n{name}" if number else name)
        else:
            print(f"  {name:<9} {visible(text)}")


def _of_retired(store: Store, run: ClosedRun) -> tuple[dict[str, Any], Lines]:
    begun = read.read_begun(store, run.run)
    known = {**begun, "run": run.run, "state": "retired", "retired": run.closed}

    def page() -> Lines:
        yield f"Run {run.run} was committed, and removed by retention", None
        yield "started", say_seconds_at(begun.get("created"))
        yield "removed", say_seconds_at(run.closed)
        yield from _champion_lines(store, run.run)
        yield from _settings_lines(begun.get("config", {}))

    return known, page()


def _of_open(run: OpenRun, *, flags: str) -> tuple[dict[str, Any], Lines]:
    known = {
        **run.begun,
        "run": run.run,
        "state": run.state,
        "started": run.started,
        "last_sign_of_life": run.last_sign,
        "attempts": run.num_attempts,
        "code": run.code,
        "reason": run.reason,
        "checkpoint_step": run.step,
    }
    return known, _page_of_open(run, flags=flags)


def _page_of_open(run: OpenRun, *, flags: str) -> Lines:
    since = f" since {say_seconds_at(run.last_sign)}" if run.state == "no sign of life" else ""
    yield f"Run {run.run}: {run.state}{since}", None
    if run.code:
        yield "code", _say_code(run.code)
    if run.reason:
        yield "reason", one_line(run.reason)
    yield "started", say_seconds_at(run.started)
    if run.state != "skipped":
        seconds = to_seconds(run.last_sign) - to_seconds(run.started)
        yield (
            "ended" if run.has_ended else "last sign",
            f"{say_seconds_at(run.last_sign)}, after {say_duration(max(0.0, seconds))}",
        )
        yield "attempts", str(run.num_attempts)
        yield "goes on", "from the start" if run.step is None else f"from the checkpoint of step {run.step}"
    yield from _settings_lines(run.begun.get("config", {}))
    if run.state == "skipped":
        yield "why", "the champion came from the same inputs, image and code; nothing was trained"
    yield "To go on", None
    yield "log", f"mnist-job logs {quoted(run.run)}{flags}"
    if run.begun and run.state not in ("running", "skipped"):
        yield "again", _run_line(run, flags=flags)


def _say_code(code: int) -> str:
    try:
        known = ExitCode(code)
    except ValueError:
        return str(code)
    return f"{code} {known.word}: {known.meaning}"


def _run_line(run: OpenRun, *, flags: str) -> str:
    """What starts another attempt by hand, with the settings that the run began with."""
    changed = _changed_settings(run.begun.get("config", {}))
    settings = "".join(f" {quoted(f'--{name}={value}')}" for name, value in changed.items())
    return f"mnist-job run --run.id={quoted(run.run)}{settings}{flags}"


def _of_committed(store: Store, run: CommittedRun, *, flags: str) -> Lines:
    record, gate = run.record, read_gate(store, run.run)
    code = code_of(record, gate)
    yield f"Run {run.run}: committed" + ("" if code is None else f", exit code {int(code)}"), None
    yield from _time_lines(record, started=started_at(store, run))
    yield "dataset", run.dataset.name
    yield from say_scores(record)
    yield from _gate_lines(record, gate)
    yield from _champion_lines(store, run.run)
    prefix = contract.attempt_prefix(run.run, attempt_id=run.attempt)
    yield "model", store.location(prefix + read.MODEL_FOLDER.rstrip("/"))
    yield "digest", run.weights_digest
    yield "made by", _say_origin(record.get("lineage", {}))
    yield from _settings_lines(record.get("config", {}))
    yield "To go on", None
    for name, command in (("verify", "verify --run"), ("report", "report"), ("log", "logs"), ("again", "reproduce")):
        yield name, f"mnist-job {command} {quoted(run.run)}{flags}"
    if gate and gate.verdict == "refused":
        model = f" {quoted(f'--promotion.model_name={gate.model}')}"
        yield "promote", f"mnist-job promote {quoted(run.run)} --force --why TEXT{model}{flags}"


def _time_lines(record: Mapping[str, Any], *, started: str) -> Lines:
    ended, counters = record.get("committed"), record.get("counters", {})
    yield "started", say_seconds_at(started)
    seconds = max(0.0, to_seconds(ended) - to_seconds(started)) if ended and started else None
    yield "committed", say_seconds_at(ended) + (f", after {say_duration(seconds)}" if seconds is not None else "")
    told = [
        f"{count_of(counters[name], name.rstrip('s'))}" for name in ("attempts", "interruptions") if name in counters
    ]
    if told:
        yield "attempts", ", ".join(told)
    spent = say_parts(record.get("goodput", {}).get("seconds", {}))
    if spent:
        yield "time", spent


def _gate_lines(record: Mapping[str, Any], gate: GateRecord | None) -> Lines:
    if gate is None:
        enabled = record.get("config", {}).get("promotion", {}).get("enabled", True)
        yield "gate", "has not decided" if enabled else "not asked (promotion.enabled is false)"
        return
    before, accuracy = gate.compared_with or {}, gate.numbers.get("champion_accuracy")
    if isinstance(accuracy, int | float) and before:
        ours = record["metrics"]["test_accuracy"]
        yield (
            "against",
            (
                f"version {before.get('version')}, run {before.get('run')}, accuracy {accuracy:.4f} ({ours - accuracy:+.4f})"
            ),
        )
    yield "gate", f"{gate.verdict} ({gate.rule}): {gate.reason}"


def _champion_lines(store: Store, run_id: str) -> Lines:
    name = "champion"
    for made, is_champion in moves_by_run(store).get(run_id, []):
        forced = ", forced" if made.forced else ""
        why = f": {made.why}" if made.why and made.by != "gate" else ""  # the gate's reason stands on its own line
        word = "is" if is_champion else "was"
        yield (
            name,
            f"{word} version {made.version} of {made.model} since {say_seconds_at(made.when)} by {made.by}{forced}{why}",
        )
        name = ""


def _say_origin(lineage: Mapping[str, Any]) -> str:
    told = {"version": "version", "image": "image", "revision": "revision"}
    said = [f"{word} {lineage[name]}" for name, word in told.items() if lineage.get(name)]
    return ", ".join(said) or "-"


def _settings_lines(settings: Mapping[str, Any]) -> Lines:
    """Those that differ from the defaults."""
    changed = _changed_settings(settings)
    name = "settings"
    for setting, value in changed.items():
        yield name, f"{setting}={value}"
        name = ""
    if settings and not changed:
        yield name, "the defaults"


def _changed_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """`section.field` -> value, as a flag takes it; what the record does not say is as it is by default."""
    changed = {}
    for section, defaults in Config().model_dump(mode="json").items():
        values = settings.get(section)
        if section in _SAID_ELSEWHERE or not isinstance(values, Mapping):
            continue
        for name, default in defaults.items():
            value = values.get(name, default)
            if value != default and f"{section}.{name}" not in _SAID_ELSEWHERE:
                changed[f"{section}.{name}"] = value if isinstance(value, str) else json.dumps(value)
    return changed


def _describe_moves(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Every time that the run became champion, newest first."""
    return [_describe(made, is_champion=is_champion) for made, is_champion in moves_by_run(store).get(run_id, [])]


def _describe(made: Move, *, is_champion: bool) -> dict[str, Any]:
    return {
        "model": made.model,
        "version": made.version,
        "is_champion": is_champion,
        "when": made.when,
        "by": made.by,
        "who": made.who,
        "why": made.why,
        "forced": made.forced,
    }
