"""The commands that move the champion, or bring it: promote, rollback, fetch."""

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator

from job import clock, contract, logs
from job.commands.cli import CommandLine
from job.commands.lookup import configured_store, find_committed
from job.config import Config
from job.config_sources import LoadedConfig
from job.errors import ConfigError, ConflictError, GateRefusedError, JobError, NotFoundError
from job.registry import champion, serving
from job.registry.champion import Move
from job.registry.fetch import fetch_champion
from job.registry.gate import Gate
from job.runs import read
from job.runs.read import CommittedRun
from job.store.folder import check_way
from job.store.store import Store
from job.texts import one_line

BY_HAND = "by hand"


def promote(line: CommandLine, loaded: LoadedConfig) -> int:
    """Make a committed run the champion, when the gate lets it, or with --force."""
    store, options = configured_store(loaded), line.options
    committed = find_committed(store, options.run)
    promote_run(loaded.config, store, committed, forced=options.force, why=options.why or BY_HAND)
    return contract.ExitCode.OK


def promote_run(config: Config, store: Store, committed: CommittedRun, *, forced: bool, why: str) -> None:
    """Move the champion, and say so.

    Raises:
        GateRefusedError: the gate does not let it, and it is not forced.
        IntegrityError: a file of the run is missing or altered.
        ConflictError: the run is being removed.
    """
    model = champion.model_name(config, dataset=committed.dataset.name)
    gate = Gate(store=store, model=model, rules=config.promotion, who=_who(), reevaluate=None)
    read.read_files(store, committed)  # what is promoted by hand has to be whole
    to = committed.model(created=read.created_at(store, committed))
    while True:  # another turn: another writer has moved the champion meanwhile
        newest = champion.read_newest(store, model)
        if newest and newest.run == to.run:
            serving.finish_layout(store, newest)
            print(f"{to.run} is the champion of {model} already, since {newest.when} (version {newest.version})")
            return
        decision = None if forced else gate.assess(committed, newest)
        if decision and decision.verdict == "same":
            print(f"run {to.run} is not promoted: {one_line(decision.reason)}")
            return
        if decision and decision.verdict != "promoted":
            raise GateRefusedError(
                f"run {to.run} is not promoted: {decision.reason}; --force moves the champion "
                "all the same, and says so for ever"
            )
        made = champion.move(
            store, model, before=newest, to=to, by="promote", who=_who(), why=why, forced=forced, gate=decision
        )
        if made:
            _finish_move(store, made)
            return


def rollback(line: CommandLine, loaded: LoadedConfig) -> int:
    """Make an earlier champion the champion again, as a new version."""
    options = line.options
    roll_back(loaded.config, configured_store(loaded), to=options.to, why=options.why or BY_HAND)
    return contract.ExitCode.OK


def roll_back(config: Config, store: Store, *, to: str | None, why: str) -> None:
    """Move the champion back to the run `to`, or to the one before, and say so.

    Raises:
        NotFoundError: there is no such earlier champion.
        ConflictError: the champion has moved meanwhile, or the run is being removed.
    """
    model = champion.choose_model(store, config)
    newest = champion.read_newest(store, model)
    if newest is None:
        raise champion.no_champion(store, model)
    # A run that is named is found whatever else is damaged. Which champion was before, only its record says.
    moves = champion.readable_history(store, model) if to else champion.history(store, model)
    earlier = _choose_earlier(moves, newest, wanted=to)
    committed = champion.commit_of(store, earlier)
    read.read_files(store, committed)  # what is served next has to be whole
    made = champion.move(
        store,
        model,
        before=newest,
        to=committed.model(created=read.created_at(store, committed)),
        by="rollback",
        who=_who(),
        why=why,
    )
    if made is None:
        raise ConflictError(
            f"the champion of {model} has moved since it was read; look at mnist-job runs, and try again"
        )
    _finish_move(store, made)


def _choose_earlier(moves: Iterator[Move], newest: Move, *, wanted: str | None) -> Move:
    if wanted == newest.run:
        raise ConfigError(f"--to: run {wanted} is the champion of {newest.model} already; name an earlier one")
    for made in moves:
        if made.version >= newest.version:
            continue
        if made.run == wanted or (wanted is None and made.run != newest.run):
            return made
    if wanted:
        raise NotFoundError(f"run {wanted} was never champion of {newest.model}; see mnist-job runs, or promote it")
    raise NotFoundError(f"{newest.model} had no champion before run {newest.run}; there is nothing to roll back to")


def _finish_move(store: Store, made: Move) -> None:
    """Say what was done before anything can go wrong: a rollback that is repeated goes back to the model it left."""
    before = f"version {made.from_version}, run {made.from_run}" if made.from_version else "none"
    print(
        f"champion of {made.model}: run {made.run}, version {made.version}{' (forced)' if made.forced else ''}\n"
        f"  before    {before}\n"
        f"  accuracy  {made.to.accuracy:.4f}\n"
        f"  by        {one_line(f'{made.who}: {made.why}')}"
    )
    try:
        serving.finish_layout(store, made)
    except BaseException:
        print("  layout    not finished; the next run or fetch does that: do not repeat this command")
        raise


def describe_move(made: Move) -> str:
    """One line for people: what is served, since when, and why."""
    forced = ", forced past the gate" if made.forced else ""
    return one_line(f"version {made.version} since {made.when} by {made.by}{forced}: {made.why}")


def fetch(line: CommandLine, loaded: LoadedConfig) -> int:
    """Bring the champion into a local folder, once or for ever."""
    store, folder, every_seconds = configured_store(loaded), line.options.to, line.options.every
    check_way(folder, name="--to")
    while True:
        try:
            model = champion.choose_model(store, loaded.config)
            brought = fetch_champion(store, model, folder, keep=line.options.keep)
            with _tolerated("layout.not_finished"):  # an account that may only read can fetch as well
                serving.finish_champions_layout(store, model)
        except JobError as error:
            if every_seconds is None:
                raise
            logs.warn("fetch.failed", reason=str(error), again_in_seconds=every_seconds)
        else:
            if brought:
                found = f"{folder / str(brought.version)}: run {brought.run}, accuracy {brought.to.accuracy:.4f}"
                print(found, flush=True)
            elif every_seconds is None:
                print(f"{folder}: the champion is there already")
        if every_seconds is None:
            return contract.ExitCode.OK
        clock.sleep(every_seconds)


@contextlib.contextmanager
def _tolerated(event: str) -> Iterator[None]:
    try:
        yield
    except JobError as error:
        logs.warn(event, reason=str(error))


def _who() -> str:
    """The user and the machine, as far as they are known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a pod's user has a number and no name
        user = f"uid {os.getuid()}"
    return f"{user} on {socket.gethostname()}"
