"""What the commands about champions do: promote, rollback, fetch, verify --champion, and the extended runs and show."""

import contextlib
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from job import contract, logs
from job.commands.cli import CommandLine
from job.config_sources import LoadedConfig
from job.errors import ConfigError, ConflictError, GateRefusedError, IntegrityError, JobError, NotFoundError
from job.registry import champion, serving
from job.registry.champion import Committed, Pointer
from job.registry.gate import Gate, read_gate
from job.registry.rules import Rules
from job.runs import read, write
from job.store.store import Store

BY_HAND = "by hand"


def promote(line: CommandLine, loaded: LoadedConfig, *, store: Store, commit: Mapping[str, Any]) -> int:
    """Make a committed run the champion, when the gate lets it, or with --force."""
    config, options = loaded.config, line.options
    model = champion.model_name(config, dataset=str(commit["dataset"].get("name")))
    gate = Gate(store=store, model=model, rules=Rules.of(config.promotion), who=_who(), reevaluate=None)
    read.read_files(store, commit)  # what is promoted by hand has to be whole
    to = Committed.of(commit, created=read.created_at(store, commit))
    while True:  # each turn more is a move that somebody else has made
        newest = champion.read_newest(store, model)
        if newest and newest.run == to.run:
            serving.finish_layout(store, newest)
            print(f"{to.run} is the champion of {model} already, since {newest.when} (version {newest.version})")
            return contract.ExitCode.OK
        decision = None if options.force else gate.assess(commit, newest)
        if decision and decision["verdict"] == "same":
            print(f"run {to.run} is not promoted: {decision['reason']}")
            return contract.ExitCode.OK
        if decision and decision["verdict"] != "promoted":
            raise GateRefusedError(
                f"run {to.run} is not promoted: {decision['reason']}; --force moves the champion "
                "all the same, and says so for ever"
            )
        moved = champion.move(
            store,
            model,
            before=newest,
            to=to,
            by="promote",
            who=_who(),
            why=options.why or BY_HAND,
            forced=options.force,
            gate=decision,
        )
        if moved:
            return _finish_move(store, moved)


def rollback(line: CommandLine, loaded: LoadedConfig, *, store: Store) -> int:
    """Make an earlier champion the champion again, as a new version."""
    model = champion.choose_model(store, loaded.config)
    moves = champion.history(store, model)
    newest = next(moves, None)
    if newest is None:
        raise champion.no_champion(store, model)
    earlier = _choose_earlier(moves, newest, wanted=line.options.to)
    commit = champion.commit_of(store, earlier)
    read.read_files(store, commit)  # what is served next has to be whole
    moved = champion.move(
        store,
        model,
        before=newest,
        to=Committed.of(commit, created=read.created_at(store, commit)),
        by="rollback",
        who=_who(),
        why=line.options.why or BY_HAND,
    )
    if moved is None:
        raise ConflictError(
            f"the champion of {model} has moved since it was read; look at mnist-job runs, and try again"
        )
    return _finish_move(store, moved)


def _choose_earlier(moves: Iterator[Pointer], newest: Pointer, *, wanted: str | None) -> Pointer:
    if wanted == newest.run:
        raise ConfigError(f"--to: run {wanted} is the champion of {newest.model} already; name an earlier one")
    for pointer in moves:
        if pointer.run == wanted or (wanted is None and pointer.run != newest.run):
            return pointer
    if wanted:
        raise NotFoundError(f"run {wanted} was never champion of {newest.model}; see mnist-job runs, or promote it")
    raise NotFoundError(f"{newest.model} had no champion before run {newest.run}; there is nothing to roll back to")


def _finish_move(store: Store, moved: Pointer) -> int:
    serving.finish_layout(store, moved)
    before = f"version {moved.from_version}, run {moved.from_run}" if moved.from_version else "none"
    print(
        f"champion of {moved.model}: run {moved.run}, version {moved.version}{' (forced)' if moved.forced else ''}\n"
        f"  before    {before}\n"
        f"  accuracy  {moved.accuracy:.4f}\n"
        f"  by        {moved.who}: {moved.why}"
    )
    return contract.ExitCode.OK


def fetch(line: CommandLine, loaded: LoadedConfig, *, store: Store) -> int:
    """Bring the champion into a local folder, once or for ever."""
    from job.registry.fetch import fetch_champion

    folder, every_seconds = Path(line.options.to), line.options.every
    while True:
        try:
            model = champion.choose_model(store, loaded.config)
            brought = fetch_champion(store, model, folder, keep=line.options.keep)
            with _tolerated("layout.not_finished"):  # whoever may only read must still be able to fetch
                serving.finish_champions_layout(store, model)
        except JobError as error:
            if every_seconds is None:
                raise
            logs.warn("fetch.failed", reason=str(error), again_in_seconds=every_seconds)
        else:
            if brought:
                print(
                    f"{folder / str(brought.version)}: run {brought.run}, accuracy {brought.accuracy:.4f}", flush=True
                )
            elif every_seconds is None:
                print(f"{folder}: the champion is there already")
        if every_seconds is None:
            return contract.ExitCode.OK
        time.sleep(every_seconds)


def commit_to_verify(store: Store, pointer: Pointer) -> dict[str, Any]:
    """The COMMIT of a champion.

    Raises:
        IntegrityError: it is not there, or of other weights.
    """
    commit = champion.commit_of(store, pointer)
    if commit["weights_digest"] != pointer.weights_digest:
        raise IntegrityError(
            f"version {pointer.version} of {pointer.model} names other weights than the COMMIT of its run"
        )
    return commit


def describe_champion(pointer: Pointer) -> str:
    """One line for people: what is served, since when, and why."""
    forced = ", forced past the gate" if pointer.forced else ""
    return f"version {pointer.version} since {pointer.when} by {pointer.by}{forced}: {pointer.why}"


def moves_by_run(store: Store) -> dict[str, list[tuple[Pointer, bool]]]:
    """Every run that was ever champion: its moves, newest first, each with whether it is the champion now."""
    found: dict[str, list[tuple[Pointer, bool]]] = {}
    for model in store.list_folders(contract.MODELS_PREFIX):
        for number, pointer in enumerate(champion.history(store, model)):
            found.setdefault(pointer.run, []).append((pointer, number == 0))
    return found


def show(store: Store, commit: Mapping[str, Any]) -> int:
    """Everything that is known about a committed run, as JSON."""
    moves = moves_by_run(store).get(str(commit["run"]), [])
    champions = [
        {
            "model": pointer.model,
            "version": pointer.version,
            "is_champion": is_champion,
            "when": pointer.when,
            "by": pointer.by,
            "who": pointer.who,
            "why": pointer.why,
            "forced": pointer.forced,
        }
        for pointer, is_champion in moves
    ]
    print(
        json.dumps(
            {**commit, "gate": read_gate(store, str(commit["run"])), "champion": champions}, indent=2, sort_keys=True
        )
    )
    return contract.ExitCode.OK


def list_runs(line: CommandLine, store: Store) -> int:
    """Table of the runs, oldest first."""
    moves = moves_by_run(store)
    rows = [row for run_id in store.list_folders(contract.RUNS_PREFIX) if (row := _row(store, run_id, moves))]
    rows.sort(key=lambda row: str(row["committed"] or "~"))
    rows = rows[-line.options.last :] if line.options.last else rows
    if line.options.output == "json":
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return contract.ExitCode.OK


def _row(store: Store, run_id: str, moves: Mapping[str, list[tuple[Pointer, bool]]]) -> dict[str, Any] | None:
    """One run; None when retention removed it."""
    state, record, gate = "unfinished", {}, None
    try:
        standing = write.read_standing(store, run_id)
        if standing is not None:
            record, state = standing, "abandoned" if write.is_abandoned(standing) else "committed"
            gate = read_gate(store, run_id)
        elif store.get(contract.run_key(run_id)) is None:
            state = "not started"
    except IntegrityError as error:
        state = "damaged"
        logs.warn("commit.damaged", run_of_commit=run_id, reason=str(error))
    if state == "abandoned" and write.is_removed(record):
        return None
    metrics, served = record.get("metrics", {}), [pointer for pointer, is_now in moves.get(run_id, []) if is_now]
    return {
        "run": run_id,
        "state": state,
        "dataset": record.get("dataset", {}).get("name"),
        "accuracy": metrics.get("test_accuracy"),
        "loss": metrics.get("test_loss"),
        "gate": f"{gate['verdict']} ({gate['rule']})" if gate else None,
        "champion": ", ".join(f"{p.model} {p.version} since {p.when[:16]}" for p in served) or None,
        "attempts": record.get("counters", {}).get("attempts"),
        "seconds": record.get("goodput", {}).get("wall_seconds"),
        "committed": record.get("committed"),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    def text(name: str, value: object) -> str:
        if value is None:
            return "-"
        return (f"{value:.1f}" if name == "seconds" else f"{value:.4f}") if isinstance(value, float) else str(value)

    headings = ("run", "state", "dataset", "accuracy", "loss", "gate", "champion", "attempts", "seconds", "committed")
    table = [[heading.upper() for heading in headings]]
    table += [[text(heading, row[heading]) for heading in headings] for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextlib.contextmanager
def _tolerated(event: str) -> Iterator[None]:
    try:
        yield
    except JobError as error:
        logs.warn(event, reason=str(error))


def _who() -> str:
    """Whoever types, as far as the machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a pod's user has a number and no name
        user = f"uid {os.getuid()}"
    return f"{user} on {socket.gethostname()}"
