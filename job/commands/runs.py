"""The commands that look at the runs of a store: runs, report."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from job import clock, contract, logs
from job.commands.cli import CommandLine
from job.commands.lookup import configured_store, find_committed
from job.config_sources import LoadedConfig
from job.errors import ConfigError, IntegrityError, NotFoundError
from job.registry import champion
from job.registry.champion import Move
from job.registry.gate import read_gate
from job.registry.rules import GateRecord
from job.runs import read
from job.runs.read import CommittedRun
from job.runs.state import OpenRun, read_open_run
from job.store.store import Store
from job.texts import say_duration, say_minute, to_table


def list_runs(line: CommandLine, loaded: LoadedConfig) -> int:
    """Table of the runs, in the order in which they started."""
    store = configured_store(loaded)
    moves = moves_by_run(store)
    names = [name for name in store.list_folders(contract.RUNS_PREFIX) if contract.is_run_id(name)]
    found = [look_at(store, run_id, moves.get(run_id, [])) for run_id in names]
    chosen = [row for row in found if row and (line.options.all or row.state != "retired")]
    chosen.sort(key=lambda row: to_seconds(row.started) if row.started else -math.inf)
    last = chosen[-line.options.last :] if line.options.last else chosen
    rows = [{name: value(row) for name, value in _VALUES.items()} for row in (_with_gate(store, row) for row in last)]
    if line.options.output == "json":
        print(json.dumps(rows, indent=2))
    else:
        cells = [[to_cell(row) for to_cell in _COLUMNS.values()] for row in rows]
        print(to_table([[name.upper() for name in _COLUMNS], *cells]))
    return contract.ExitCode.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of the table.

    Attributes:
        record: its COMMIT; empty when it has none.
        served: the moves that make it a champion now.
        started: when its first attempt began, ISO 8601 in UTC; empty when that is not known.
        ended: when it was committed, or its newest attempt gave its last sign of life.
        code: how its newest attempt ended; None when that is not known.
        retired: when retention removed it; empty when it did not.
        open: how it stands without a COMMIT.
    """

    run: str
    state: str
    record: Mapping[str, Any] = field(default_factory=dict)
    gate: GateRecord | None = None
    served: list[Move]
    started: str = ""
    ended: str = ""
    code: int | None = None
    retired: str = ""
    open: OpenRun | None = None

    @property
    def seconds(self) -> float | None:
        """From the start of the first attempt to the end of the last, by the calendar; None when one is not known."""
        if not (self.started and self.ended) or self.state == "skipped":
            return None
        return max(0.0, round(to_seconds(self.ended) - to_seconds(self.started), 3))


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _to_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _say_state(row: Mapping[str, Any]) -> str:
    """The word, and since when for a run of which nothing is heard."""
    state = str(row["state"])
    return f"{state} since {say_minute(row['last_sign_of_life'])}" if state == "no sign of life" else state


_VALUES: Mapping[str, Callable[[Row], Any]] = {
    "run": lambda row: row.run,
    "state": lambda row: row.state,
    "dataset": lambda row: row.record.get("dataset", {}).get("name"),
    "accuracy": lambda row: row.record.get("metrics", {}).get("test_accuracy"),
    "loss": lambda row: row.record.get("metrics", {}).get("test_loss"),
    "gate": lambda row: f"{row.gate.verdict} ({row.gate.rule})" if row.gate else None,
    "champion": lambda row: ", ".join(f"{m.model} {m.version} since {m.when[:16]}" for m in row.served) or None,
    "attempts": lambda row: row.open.num_attempts if row.open else row.record.get("counters", {}).get("attempts"),
    "seconds": lambda row: read.wall_seconds_of(row.record),
    "committed": lambda row: row.record.get("committed"),
    "started": lambda row: row.started or None,
    "duration_seconds": lambda row: row.seconds,
    "code": lambda row: row.code,
    "verdict": lambda row: row.gate.verdict if row.gate else None,
    "last_sign_of_life": lambda row: row.open.last_sign if row.open else None,
}
"""Key of `-o json` -> what a run has to say under it; scripts read them: none goes."""

_COLUMNS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "run": lambda row: row["run"],
    "state": _say_state,
    "started": lambda row: say_minute(row["started"]),
    "duration": lambda row: say_duration(row["duration_seconds"]),
    "code": lambda row: _or_dash(row["code"]),
    "dataset": lambda row: _or_dash(row["dataset"]),
    "accuracy": lambda row: _to_digits(row["accuracy"]),
    "loss": lambda row: _to_digits(row["loss"]),
    "verdict": lambda row: _or_dash(row["gate"]),
    "champion": lambda row: _or_dash(row["champion"]),
    "attempts": lambda row: _or_dash(row["attempts"]),
    "committed": lambda row: say_minute(row["committed"]),
}
"""Heading -> cell of a row of `_VALUES`."""


def to_seconds(when: str) -> float:
    """A time of a record in seconds since the epoch; what is not known comes after everything."""
    return clock.seconds_of(when) if when else math.inf


def look_at(store: Store, run_id: str, moves: list[tuple[Move, bool]]) -> Row | None:
    """One run without what the gate says of it; None for a foreign folder. Seven requests at most."""
    served = [made for made, is_now in moves if is_now]
    try:
        recorded = read.read_run(store, run_id)
        if recorded is None:
            found = read_open_run(store, run_id)
            return _of_open(found, served) if found else None
    except IntegrityError as error:
        logs.warn("commit.damaged", run_of_commit=run_id, reason=str(error))
        return Row(run=run_id, state="damaged", served=served)
    if isinstance(recorded, CommittedRun):
        return Row(
            run=run_id,
            state="committed",
            record=recorded.record,
            served=served,
            started=started_at(store, recorded),
            ended=recorded.record.get("committed") or "",
        )
    retired = recorded.closed if recorded.is_removed else ""
    return Row(
        run=run_id,
        state="retired" if retired else "abandoned",
        served=served,
        started=_begun_at(store, run_id),
        retired=retired,
    )


def _of_open(found: OpenRun, served: list[Move]) -> Row:
    return Row(
        run=found.run,
        state=found.state,
        served=served,
        started=found.started,
        ended=found.last_sign,
        code=found.code,
        open=found,
    )


def started_at(store: Store, run: CommittedRun) -> str:
    """When its first attempt began; of a run with one attempt the COMMIT says so.

    The records of a start are written when data and devices are there. The COMMIT knows how long all of it took.
    """
    record = run.record
    own, committed = str(record.get("lineage", {}).get("started") or ""), str(record.get("committed") or "")
    is_one = record.get("counters", {}).get("attempts") == 1
    recorded = own if is_one and own else _begun_at(store, run.run) or own or committed
    if not committed or read.wall_seconds_of(record) is None:
        return recorded
    return clock.timestamp(read.start_seconds(record, recorded=to_seconds(recorded), committed=to_seconds(committed)))


def _begun_at(store: Store, run_id: str) -> str:
    try:
        return str(read.read_begun(store, run_id).get("created") or "")
    except IntegrityError:  # of a run whose result, or whose end, is known
        return ""


def _with_gate(store: Store, row: Row) -> Row:
    """The same run with what the gate has decided, and with the exit code that follows from it."""
    if row.state != "committed":
        return row
    try:
        gate = read_gate(store, row.run)
    except IntegrityError as error:
        logs.warn("commit.damaged", run_of_commit=row.run, reason=str(error))
        return replace(row, state="damaged")
    return replace(row, gate=gate, code=code_of(row.record, gate))


def code_of(record: Mapping[str, Any], gate: GateRecord | None) -> int | None:
    """The exit code of a committed run; None while the gate has not decided."""
    rules = record.get("config", {}).get("promotion", {})
    if gate is None:
        return None if rules.get("enabled", True) else contract.ExitCode.OK
    is_failure = gate.verdict == "refused" and rules.get("refused_is_failure") is True
    return contract.ExitCode.GATE_REFUSED if is_failure else contract.ExitCode.OK


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
