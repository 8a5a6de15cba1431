"""What each subcommand does, on top of the modules that do the work. Imports late: some commands need little."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from job import contract, logs
from job.commands.cli import CommandLine
from job.config import describe_fields, to_text
from job.config_sources import LoadedConfig, load_config
from job.errors import IntegrityError, NotFoundError
from job.observe.termination import Status, choose_path
from job.signals import StopSignal
from job.store.store import Store, is_store_uri

T = TypeVar("T")

_TERMINATION_LOG = "--observe.termination_log="


def dispatch(line: CommandLine, *, stop: StopSignal, status: Status) -> int:
    """Read the settings and run the command; returns the exit code.

    Raises:
        JobError, StopRequested: for `__main__` to report.
    """
    commands: Mapping[str, Callable[[CommandLine, LoadedConfig], int]] = {
        "verify": _verify,
        "promote": _promote,
        "rollback": _rollback,
        "fetch": _fetch,
        "reproduce": _reproduce,
        "runs": _runs,
        "show": _show,
        "report": _report,
        "logs": _logs,
        "data prepare": _prepare_data,
        "data check": _check_data,
        "store check": _check_store,
        "gc": _gc,
        "config show": _show_config,
        "config schema": _print_schema,
    }
    if line.command == "run":  # bad settings are to be found in the pod's status too
        status.path = choose_path(_termination_log_flag(line.settings))
    loaded = load_config(line.settings, config_file=line.options.config)
    if line.command == "run":
        from job.commands.run import run_command

        return run_command(loaded, stop=stop, status=status)
    logs.configure(logs.choose_format(loaded.config.observe.log_format, stream=sys.stderr), write=_to_stderr)
    return commands[line.command](line, loaded)


def _termination_log_flag(settings: list[str]) -> Path | None:
    given = [setting for setting in settings if setting.startswith(_TERMINATION_LOG)]
    return Path(given[-1].removeprefix(_TERMINATION_LOG)) if given else None


def _verify(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.champion import commit_to_verify, describe_champion
    from job.commands.verify import verify_run
    from job.registry.champion import no_champion, read_newest
    from job.registry.serving import check_layout

    store, options = _open_store(loaded), line.options
    pointer = None
    if options.champion:
        pointer = _wait_for(lambda: read_newest(store, options.champion), seconds=options.wait)
        if pointer is None:
            raise no_champion(store, options.champion)
        record = commit_to_verify(store, pointer)
    else:
        record = _read_commit(store, options.run, wait_seconds=options.wait)
    report = verify_run(store, record)
    print(
        f"verified: run {record['run']}, attempt {record['attempt']}\n"
        f"  {report.num_files} files, {report.num_bytes} bytes: sizes and SHA-256 as committed\n"
        f"  weights digest {record['weights_digest']}: recomputed from the SavedModel, equal\n"
        f"  SavedModel loaded; {report.num_predicted} images classified as recorded (largest difference "
        f"{report.largest_difference:.1e})\n"
        f"  test accuracy {record['metrics']['test_accuracy']:.4f}: recomputed from the stored predictions, equal"
    )
    if pointer:
        num_files = check_layout(store, pointer)
        print(
            f"  champion of {pointer.model}: {describe_champion(pointer)}\n  serving layout: {num_files} files, equal"
        )
    return contract.ExitCode.OK


def _promote(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.champion import promote

    store = _open_store(loaded)
    return promote(line, loaded, store=store, commit=_read_commit(store, line.options.run, wait_seconds=0.0))


def _rollback(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.champion import rollback

    return rollback(line, loaded, store=_open_store(loaded))


def _fetch(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.champion import fetch

    return fetch(line, loaded, store=_open_store(loaded))


def _reproduce(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.reproduce import reproduce

    commit = _read_commit(_open_store(loaded), line.options.run, wait_seconds=0.0)
    return reproduce(loaded.config, commit, to_uri=line.options.to, settings=line.settings)


def _runs(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.champion import list_runs

    return list_runs(line, _open_store(loaded))


def _show(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.champion import show

    store = _open_store(loaded)
    return show(store, _read_commit(store, line.options.run, wait_seconds=0.0))


def _report(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.commands.report import REPORT_FILE, make_report, write_report
    from job.registry.gate import read_gate
    from job.runs.read import read_metrics

    store, run_id = _open_store(loaded), line.options.run
    commit = _read_commit(store, run_id, wait_seconds=0.0)
    page = make_report(commit, read_metrics(store, commit), read_gate(store, run_id))
    path = Path(line.options.to or REPORT_FILE)
    write_report(path, page)
    print(path)
    return contract.ExitCode.OK


def _logs(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.observe.stored_logs import read_stored_log

    store, run_id = _open_store(loaded), _checked_run_id(line.options.run)
    lines = read_stored_log(store, run_id)
    if not lines:
        raise NotFoundError(f"run {run_id} has no stored log in {store.uri}; see mnist-job runs")
    for text in lines:
        print(text)
    return contract.ExitCode.OK


def _prepare_data(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.attempt import choose_cache_dir, open_configured_store
    from job.datasets.mirror import prepare_mirror

    target, dataset = line.options.to, loaded.config.data.dataset
    store = open_configured_store(
        loaded.config, environ=os.environ, uri=target if is_store_uri(target) else f"file:{Path(target).absolute()}"
    )
    written = prepare_mirror(
        store,
        dataset=dataset,
        source=Path(line.options.source) if line.options.source else None,
        cache_dir=choose_cache_dir(loaded.config, environ=os.environ),
    )
    print(
        f"{dataset}: {len(written)} files verified and written to {store.uri}; use --data.source=idx --data.uri={target}"
    )
    return contract.ExitCode.OK


def _check_data(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.attempt import choose_cache_dir, folder_opener

    config = loaded.config
    if config.data.source == "tfds":
        from job.datasets.tfds import check_manual_dir, is_prepared, probe

        if is_prepared(config.data.dataset, cache_dir=choose_cache_dir(config, environ=os.environ)):
            print(f"{config.data.name}: a prepared copy is in the cache")
        elif config.data.uri is not None:
            check_manual_dir(config.data.dataset, Path(config.data.uri))
            print(f"{config.data.name}: the downloaded files are in {config.data.uri}")
        else:
            probe(config.data.dataset, seconds=line.options.timeout)
            print(f"{config.data.name}: the download can be reached")
    else:
        from job.datasets.dataset import load_dataset

        data = load_dataset(
            config.data,
            cache_dir=choose_cache_dir(config, environ=os.environ),
            open_folder=folder_opener(config, environ=os.environ),
        )
        print(
            f"{data.name}: {len(data.dataset.train_labels)} + {len(data.dataset.test_labels)} examples, {data.digest}"
        )
    return contract.ExitCode.OK


def _check_store(line: CommandLine, loaded: LoadedConfig) -> int:
    import secrets

    store = _open_store(loaded)
    key, data = f"{contract.CHECKS_PREFIX}{secrets.token_hex(8)}", b"mnist-job store check"
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


def _gc(line: CommandLine, loaded: LoadedConfig) -> int:
    from job.registry.garbage import delete_garbage, find_garbage

    store, ages = _open_store(loaded), {"older_than_seconds": line.options.older_than, "now_seconds": time.time()}
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


def _show_config(line: CommandLine, loaded: LoadedConfig) -> int:
    values = loaded.config.model_dump(mode="python")
    section = ""
    for name, _, _ in describe_fields():
        current, field = name.split(".")
        if current != section:
            section = current
            print(f"{section}:")
        entry = f"  {field}: {to_text(values[section][field])}"
        print(f"{entry:<44}# {loaded.origins.get(name, 'default')}")
    return contract.ExitCode.OK


def _print_schema(line: CommandLine, loaded: LoadedConfig) -> int:
    print(json.dumps(type(loaded.config).model_json_schema(), indent=2))
    return contract.ExitCode.OK


def _open_store(loaded: LoadedConfig) -> Store:
    from job.attempt import open_configured_store

    return open_configured_store(loaded.config, environ=os.environ)


def _read_commit(store: Store, run_id: str, *, wait_seconds: float) -> dict[str, Any]:
    from job.runs.write import read_commit

    _checked_run_id(run_id)
    record = _wait_for(lambda: read_commit(store, run_id), seconds=wait_seconds)
    if record is None:
        raise NotFoundError(f"run {run_id} has no COMMIT in {store.uri}; see mnist-job runs")
    return record


def _wait_for(read: Callable[[], T | None], *, seconds: float) -> T | None:
    """What is there within so many seconds, or None."""
    deadline = time.monotonic() + seconds
    while (found := read()) is None and time.monotonic() < deadline:
        time.sleep(1.0)
    return found


def _checked_run_id(run_id: str) -> str:
    if not contract.is_run_id(run_id):
        raise NotFoundError(f"run {run_id!r}: no run can have this name; see mnist-job runs")
    return run_id


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
