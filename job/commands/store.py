"""The commands about the store as such: store check, gc."""

from job import clock, contract, logs
from job.commands.cli import CommandLine
from job.commands.lookup import configured_store
from job.config_sources import LoadedConfig
from job.errors import IntegrityError, NotFoundError
from job.registry.garbage import delete_garbage, find_garbage
from job.store.store import Store
from job.texts import visible

_SKEW_SECONDS = 60.0


def check(line: CommandLine, loaded: LoadedConfig) -> int:
    """Prove on the real store that all verbs do what they say, and that a second create-only write is refused.

    Raises:
        NotFoundError: a verb says that it is done, and it is not.
        IntegrityError: the store does not give back what was written.
        JobError: what the store says first; where it is away, nothing more is asked of it.
    """
    store = configured_store(loaded)
    key, data = contract.check_key(clock.token(8)), b"mnist-job store check"
    store.create(key, data)
    try:
        _check_verbs(store, key, data)
    except (IntegrityError, NotFoundError):
        store.delete(key)
        raise
    store.delete(key)
    if store.get(key) is not None:
        raise NotFoundError(
            f"store {store.uri}: {key} is still there after it was deleted; see whether the store is a cache"
        )
    print(f"{store.uri}: create, read, list and delete work; a second create-only write is refused")
    return contract.ExitCode.OK


def _check_verbs(store: Store, key: str, data: bytes) -> None:
    if store.get(key) != data:
        raise IntegrityError(
            f"store {store.uri}: {key} does not hold what was written; see whether a cache is in between"
        )
    if key not in {entry.key for entry in store.list_objects(contract.CHECKS_PREFIX)}:
        raise NotFoundError(
            f"store {store.uri} does not list {key}, which was written; see whether a cache is in between"
        )
    if not store.refuses_second_create(key, data):
        raise NotFoundError(
            f"store {store.uri} does not honour conditional writes: a second create-only write was accepted"
        )


def collect_garbage(line: CommandLine, loaded: LoadedConfig) -> int:
    """List what no result reaches; with --delete, delete it."""
    store = configured_store(loaded)
    now_seconds = _cautious_now(store) if line.options.delete else clock.now()
    ages = {"older_than_seconds": line.options.older_than, "now_seconds": now_seconds}
    num_objects = num_bytes = 0
    for garbage in find_garbage(store, **ages):
        gone = delete_garbage(store, garbage, **ages) if line.options.delete else garbage
        if gone is None:
            print(f"{visible(garbage.place)}: kept: it came to life, or was committed, since it was found")
            continue
        print(f"{visible(gone.place)}: {len(gone.entries)} objects, {gone.num_bytes} bytes: {gone.reason}")
        num_objects, num_bytes = num_objects + len(gone.entries), num_bytes + gone.num_bytes
    if line.options.delete:
        for prefix in (contract.RUNS_PREFIX, contract.MODELS_PREFIX):
            store.sweep(prefix)
    verb = "deleted" if line.options.delete else "dry run, nothing deleted; --delete would delete"
    print(f"gc of {store.uri}: {verb} {num_objects} objects, {num_bytes} bytes")
    return contract.ExitCode.OK


def _cautious_now(store: Store) -> float:
    """The time of this machine, or the store's where that is earlier: by a clock that is ahead, living runs would be old."""
    key, now = contract.check_key(clock.token(8)), clock.now()
    store.create(key, b"mnist-job gc asks for the time")
    try:
        written = [entry.modified_seconds for entry in store.list_objects(contract.CHECKS_PREFIX) if entry.key == key]
    finally:
        store.delete(key)
    store_now = min([now, *written])
    if now - store_now > _SKEW_SECONDS:
        logs.warn(
            "gc.clock_ahead",
            seconds=round(now - store_now),
            reason="the clock of this machine; ages are by the store's",
        )
    return store_now
