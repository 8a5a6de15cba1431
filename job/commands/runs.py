"""The commands that look at the runs of a store: runs, show, report."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job import contract, logs
from job.commands.cli import CommandLine
from job.commands.lookup import checked_run_id, configured_store, find_committed
from job.config_sources import LoadedConfig
from job.errors import ConfigError, IntegrityError, NotFoundError
from job.registry import champion
from job.registry.champion import Move
from job.registry.gate import read_gate, read_gate_json
from job.registry.rules import GateRecord
from job.runs import read
from job.runs.read import ClosedRun, CommittedRun
from job.store.store import Store
from job.texts import to_table


def list_runs(line: CommandLine, loaded: LoadedConfig) -> int:
    """Table of the runs, oldest first."""
    store = configured_store(loaded)
    moves = moves_by_run(store)
    names = [name for name in store.list_folders(contract.RUNS_PREFIX) if contract.is_run_id(name)]
    found = (_look_at(store, run_id, moves.get(run_id, [])) for run_id in names)
    chosen = (row for row in found if row and (line.options.all or row.state != "retired"))
    sorted_rows = sorted(chosen, key=lambda row: str(row.retired or row.record.get("committed") or "~"))
    rows = [{name: value(row) for name, value in _COLUMNS.items()} for row in sorted_rows]
    rows = rows[-line.options.last :] if line.options.last else rows
    if line.options.output == "json":
        print(json.dumps(rows, indent=2))
    else:
        cells = [[_to_cell(name, value) for name, value in row.items()] for row in rows]
        print(to_table([[name.upper() for name in _COLUMNS], *cells]))
    return contract.ExitCode.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One run of the table.

    Attributes:
        record: its COMMIT; empty when it has none.
        served: the moves that make it a champion now.
        retired: when retention removed it; empty when it did not.
    """

    run: str
    state: str
    record: Mapping[str, Any]
    gate: GateRecord | None
    served: list[Move]
    retired: str = ""


_COLUMNS: Mapping[str, Callable[[_Row], Any]] = {
    "run": lambda row: row.run,
    "state": lambda row: row.state,
    "dataset": lambda row: row.record.get("dataset", {}).get("name"),
    "accuracy": lambda row: row.record.get("metrics", {}).get("test_accuracy"),
    "loss": lambda row: row.record.get("metrics", {}).get("test_loss"),
    "gate": lambda row: f"{row.gate.verdict} ({row.gate.rule})" if row.gate else None,
    "champion": lambda row: ", ".join(f"{m.model} {m.version} since {m.when[:16]}" for m in row.served) or None,
    "attempts": lambda row: row.record.get("counters", {}).get("attempts"),
    "seconds": lambda row: _seconds(row.record),
    "committed": lambda row: row.record.get("committed"),
}
"""Heading -> what a run has to say under it; None is a dash in the table."""


def _seconds(record: Mapping[str, Any]) -> float | None:
    """Wall time of all attempts. Older versions took it from the calendar: a step back made it negative."""
    seconds = record.get("goodput", {}).get("wall_seconds")
    return max(0.0, seconds) if isinstance(seconds, int | float) else None


def _look_at(store: Store, run_id: str, moves: list[tuple[Move, bool]]) -> _Row | None:
    """One run; None for a foreign folder."""
    state, recorded, gate = "unfinished", None, None
    try:
        recorded = read.read_run(store, run_id)
        if recorded is not None:
            state = _state_of(recorded)
            gate = read_gate(store, run_id)
        elif read.get_record(store, contract.run_key(run_id)) is None:
            if not any(contract.run_of_key(entry.key) for entry in store.list_objects(contract.run_prefix(run_id))):
                return None
            state = "not started"
    except IntegrityError as error:
        state = "damaged"
        logs.warn("commit.damaged", run_of_commit=run_id, reason=str(error))
    record = recorded.record if isinstance(recorded, CommittedRun) else {}
    served = [made for made, is_now in moves if is_now]
    retired = recorded.closed if isinstance(recorded, ClosedRun) and recorded.is_removed else ""
    return _Row(run=run_id, state=state, record=record, gate=gate, served=served, retired=retired)


def _state_of(recorded: CommittedRun | ClosedRun) -> str:
    if isinstance(recorded, CommittedRun):
        return "committed"
    return "retired" if recorded.is_removed else "abandoned"


def _to_cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    return (f"{value:.1f}" if name == "seconds" else f"{value:.4f}") if isinstance(value, float) else str(value)


def show(line: CommandLine, loaded: LoadedConfig) -> int:
    """Everything that is known about a committed run, as JSON; of a retired one, what retention has left."""
    store = configured_store(loaded)
    recorded = read.read_run(store, checked_run_id(line.options.run))
    if isinstance(recorded, ClosedRun) and recorded.is_removed:
        known = {
            **read.read_begun(store, recorded.run),
            "run": recorded.run,
            "state": "retired",
            "retired": recorded.closed,
        }
    else:
        committed = find_committed(store, line.options.run)
        known = {**committed.record, "gate": read_gate_json(store, committed.run)}
    known["champion"] = _describe_moves(store, line.options.run)
    print(json.dumps(known, indent=2, sort_keys=True))
    return contract.ExitCode.OK


def _describe_moves(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Every time that the run became champion, newest first."""
    return [
        {
            "model": made.model,
            "version": made.version,
            "is_champion": is_champion,
            "when": made.when,
            "by": made.by,
            "who": made.who,
            "why": made.why,
            "forced": made.forced,
        }
        for made, is_champion in moves_by_run(store).get(run_id, [])
    ]


def moves_by_run(store: Store) -> dict[str, list[tuple[Move, bool]]]:
    """Every run that was ever champion: its moves, newest first, each with whether it is the champion now.

    A move that cannot be read is left out, and a warning names it.
    """
    found: dict[str, list[tuple[Move, bool]]] = {}
    for model in champion.list_models(store):
        newest = champion.list_versions(store, model)[-1]
        for made in champion.readable_history(store, model):
            found.setdefault(made.run, []).append((made, made.version == newest))
    return found


def report(line: CommandLine, loaded: LoadedConfig) -> int:
    """Write the report of a committed run again."""
    from job.commands.report import report_on, write_report

    if line.options.index:
        return _report_index(line, loaded)
    store = configured_store(loaded)
    committed = find_committed(store, line.options.run)
    page = report_on(store, committed, read_gate(store, committed.run), settings=loaded.config.store)
    path = line.options.to or Path(contract.REPORT_FILE)
    write_report(path, page)
    print(path)
    return contract.ExitCode.OK


def _report_index(line: CommandLine, loaded: LoadedConfig) -> int:
    """Write the index.html of a model again, in the store.

    Raises:
        NotFoundError: no run of it has begun.
    """
    from job.commands.index import write_index

    if line.options.to:
        raise ConfigError("--to: must be left out with --index, which writes index.html into the store")
    store, model = configured_store(loaded), champion.model_name(loaded.config, dataset=loaded.config.data.name)
    key = write_index(store, model)
    if key is None:
        raise NotFoundError(f"store {store.uri}: model {model} has no run; name another with --promotion.model_name")
    print(store.location(key))
    return contract.ExitCode.OK
