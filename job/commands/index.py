"""index.html of a model: what its runs of every night came to, gathered from the store.

Derived, and read by nothing: each run writes it again, and the last writer wins. A run that ended at the same time may be missing
then: the next one adds it. `index_page.py` makes the page.

The requests are bounded: one listing of `runs/`, one of the model's moves, and of the newest runs alone COMMIT and gate.json, or
run.json and `metrics.prom`.
"""

import itertools
import math
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from job import clock, contract
from job.attempt import after_commit
from job.commands.index_page import Night, Promotion, make_page
from job.config import Config
from job.contract import ExitCode
from job.errors import IntegrityError
from job.logs import warn
from job.observe.termination import Status
from job.registry import champion
from job.registry.gate import read_gate
from job.runs import read
from job.runs.read import ClosedRun, CommittedRun
from job.store.backend import Entry
from job.store.open import open_store
from job.store.store import Store

_SECONDS = 20.0
"""How long an attempt that is over may take for the page."""
_READING_SECONDS = 12.0
"""Of these: then the page is made of the runs that were read, the newest."""
_WORTH_A_ROW = (
    *(ExitCode.OK, ExitCode.UNKNOWN, ExitCode.INTEGRITY),
    *(ExitCode.TRAINING_FAILED, ExitCode.GATE_REFUSED),
)
"""After other ends the time is short, the store may be away, the run is another's, or the next attempt goes on at once."""

MAX_RUNS = 200
"""Of the store, the newest: those of this model among them stand on the page."""
_MAX_MOVES = 20
_MAX_SERIES_BYTES = 1_000_000
_EXIT_CODE = re.compile(rb"^mnist_train_exit_code(?:\{[^\n]*\})? ([0-9]{1,3})(?:\.0)?$", re.MULTILINE)


def rewrite_index(config: Config, status: Status) -> None:
    """Write the page at the end of an attempt; what goes wrong is a warning, and it takes so many seconds at most."""
    if status.code not in _WORTH_A_ROW or status.outcome == "skipped":
        return

    def rewrite() -> None:
        with after_commit("index.failed"):
            store = open_store(config.store, environ=os.environ)
            write_index(store, _model_of(store, status.run, config=config), seconds=_READING_SECONDS)

    thread = threading.Thread(target=rewrite, daemon=True, name="index")
    thread.start()

    def has_ended(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    if not clock.wait(has_ended, seconds=_SECONDS):
        warn("index.failed", reason=f"it took more than {_SECONDS:g} s; mnist-job report --index writes it")


def _model_of(store: Store, run_id: str, *, config: Config) -> str:
    """As the run's COMMIT says, or without one the settings."""
    recorded = read.read_run(store, run_id)
    if isinstance(recorded, CommittedRun):
        return champion.model_of(recorded)
    return champion.model_name(config, dataset=config.data.name)


def write_index(store: Store, model: str, *, seconds: float = math.inf) -> str | None:
    """Write the page again; returns its key, or None where no run of the model has begun: then there is nothing to write."""
    page, key = index_of(store, model, seconds=seconds), contract.index_key(model)
    if page is None:
        return None
    store.put(key, page)
    return key


def index_of(store: Store, model: str, *, seconds: float = math.inf) -> bytes | None:
    """The page of a model; None without a run.

    Args:
        seconds: how long runs are read, the newest first.

    Raises:
        JobError: the store cannot be read. A record that cannot be read costs its own row alone.
    """
    until, found = clock.monotonic() + seconds, _list_runs(store)
    newest = sorted(found, key=lambda listed: listed.modified_seconds, reverse=True)[:MAX_RUNS]
    moves = itertools.islice(champion.readable_history(store, model), _MAX_MOVES)
    promotions = [
        Promotion(
            run=made.run, version=made.version, accuracy=made.to.accuracy, when=clock.seconds_of(made.when), by=made.by
        )
        for made in moves
    ]
    seen = [_look_at(store, listed, model=model) for listed in newest if clock.monotonic() < until]
    nights = [night for night in seen if night]
    if not nights:
        return None
    return make_page(
        model,
        sorted(nights, key=lambda night: (night.started_seconds, night.run), reverse=True),
        promotions,
        num_left_out=len(found) - len(seen),
        made_seconds=clock.now(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """A run that has begun, as the listing of the store shows it.

    Attributes:
        began_seconds: when its run.json was written, by the clock of the store.
        modified_seconds: when its COMMIT was written; without one, its newest object.
        reports: keys of its reports, the newest last.
        series: keys of what its attempts kept of their series, the newest last.
        has_commit: something stands in the place of its COMMIT.
    """

    run: str
    began_seconds: float
    modified_seconds: float
    num_attempts: int
    reports: tuple[str, ...]
    series: tuple[str, ...]
    has_commit: bool
    has_gate: bool


def _list_runs(store: Store) -> list[_Listed]:
    entries: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in store.list_objects(contract.RUNS_PREFIX):
        if run_id := contract.run_of_key(entry.key):
            entries[run_id][entry.key] = entry
    return [_listed(run_id, of_run) for run_id, of_run in entries.items() if contract.run_key(run_id) in of_run]


def _listed(run_id: str, entries: Mapping[str, Entry]) -> _Listed:
    commit = entries.get(contract.commit_key(run_id))
    in_time = sorted(entries.values(), key=lambda entry: entry.modified_seconds)
    return _Listed(
        run=run_id,
        began_seconds=entries[contract.run_key(run_id)].modified_seconds,
        modified_seconds=(commit or in_time[-1]).modified_seconds,
        num_attempts=sum(read.is_attempt_file(entry.key) for entry in in_time),
        reports=_named(in_time, contract.REPORT_FILE),
        series=_named(in_time, contract.SERIES_FILE),
        has_commit=commit is not None,
        has_gate=contract.gate_key(run_id) in entries,
    )


def _named(entries: Iterable[Entry], name: str) -> tuple[str, ...]:
    """Keys of the files beside the logs that have this name."""
    parts = ((entry.key, contract.beside_log_of_key(entry.key)) for entry in entries)
    return tuple(key for key, found in parts if found and found[2] == name)


def _look_at(store: Store, listed: _Listed, *, model: str) -> Night | None:
    """One row; None for a run of another model, for one that was removed, and where nobody can tell whose it is."""
    try:
        recorded = read.read_run(store, listed.run) if listed.has_commit else None
        if isinstance(recorded, ClosedRun):
            return None
        if recorded is None:
            return _unfinished(store, listed) if _wanted_model(store, listed.run) == model else None
        return _committed(store, listed, recorded) if champion.model_of(recorded) == model else None
    except IntegrityError as error:
        warn("index.skipped", run_of_skipped=listed.run, reason=str(error))
        return None


def _committed(store: Store, listed: _Listed, run: CommittedRun) -> Night:
    ended = run.record.get("committed")
    ended_seconds = clock.seconds_of(ended) if ended else listed.modified_seconds
    gate = read_gate(store, listed.run) if listed.has_gate else None
    return Night(
        run=listed.run,
        started_seconds=read.start_seconds(run.record, recorded=listed.began_seconds, committed=ended_seconds),
        ended_seconds=ended_seconds,
        duration_seconds=read.wall_seconds_of(run.record),
        num_attempts=int(run.record.get("counters", {}).get("attempts") or listed.num_attempts),
        accuracy=run.test_accuracy,
        verdict=gate.verdict if gate else "",
        why=gate.reason if gate else "",
        report=_report_of(listed, attempt=run.attempt),
    )


def _report_of(listed: _Listed, *, attempt: str) -> str | None:
    """The report of the attempt that committed, or else the newest."""
    own = f"{contract.log_prefix(listed.run)}{attempt}/{contract.REPORT_FILE}"
    return own if own in listed.reports else next(reversed(listed.reports), None)


def _unfinished(store: Store, listed: _Listed) -> Night:
    code = _exit_code(store, listed)
    return Night(
        run=listed.run,
        started_seconds=listed.began_seconds,
        num_attempts=listed.num_attempts,
        why=f"exit code {code} of the last attempt that could say one" if code else "",
        code=code,
        last_sign_seconds=listed.modified_seconds,
    )


def _exit_code(store: Store, listed: _Listed) -> int | None:
    """What the last attempt that came to an end said; None when none did."""
    if not listed.series:
        return None
    try:
        found = _EXIT_CODE.search(store.get(listed.series[-1], max_bytes=_MAX_SERIES_BYTES) or b"")
    except IntegrityError:
        return None
    return int(found[1]) if found else None


def _wanted_model(store: Store, run_id: str) -> str | None:
    """The name that the champion of a run without a result would go by; None where its run.json does not tell."""
    config = read.read_begun(store, run_id).get("config")
    try:
        known = Config.model_validate(config)
    except ValidationError:  # of another version
        return None
    return champion.model_name(known, dataset=known.data.name)
