"""The commands about the store as such: store check, gc."""

from job import clock, contract
from job.commands.cli import CommandLine
from job.commands.lookup import configured_store
from job.config_sources import LoadedConfig
from job.errors import IntegrityError, NotFoundError
from job.registry.garbage import delete_garbage, find_garbage


def check(line: CommandLine, loaded: LoadedConfig) -> int:
    """Prove on the real store that a second create-only write is refused.

    Raises:
        NotFoundError: it is not.
        IntegrityError: the store does not give back what was written.
    """
    store = configured_store(loaded)
    key, data = contract.check_key(clock.token(8)), b"mnist-job store check"
    try:
        if store.create(key, data) != data:
            raise IntegrityError(f"store {store.uri}: {key} does not hold what was written")
        if not store.refuses_second_create(key, data):
            raise NotFoundError(
                f"store {store.uri} does not honour conditional writes: a second create-only write was accepted"
            )
    finally:
        store.delete(key)
    print(f"{store.uri}: create, read and delete work; a second create-only write is refused")
    return contract.ExitCode.OK


def collect_garbage(line: CommandLine, loaded: LoadedConfig) -> int:
    """List what no result reaches; with --delete, delete it."""
    store, ages = (
        configured_store(loaded),
        {"older_than_seconds": line.options.older_than, "now_seconds": clock.now()},
    )
    num_objects = num_bytes = 0
    for garbage in find_garbage(store, **ages):
        gone = delete_garbage(store, garbage, **ages) if line.options.delete else garbage
        if gone is None:
            print(f"{garbage.place}: kept: it came to life, or was committed, since it was found")
            continue
        print(f"{gone.place}: {len(gone.entries)} objects, {gone.num_bytes} bytes: {gone.reason}")
        num_objects, num_bytes = num_objects + len(gone.entries), num_bytes + gone.num_bytes
    if line.options.delete:
        for prefix in (contract.RUNS_PREFIX, contract.MODELS_PREFIX):
            store.sweep(prefix)
    verb = "deleted" if line.options.delete else "dry run, nothing deleted; --delete would delete"
    print(f"gc of {store.uri}: {verb} {num_objects} objects, {num_bytes} bytes")
    return contract.ExitCode.OK
