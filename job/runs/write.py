"""Publication: immutable objects under `attempts/<id>/`, then one create-only COMMIT.json.

Owns the order of the writes and what a COMMIT says. Never imports TensorFlow; model files come as bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from job.contract import attempt_prefix, attempts_prefix, commit_key, run_key
from job.errors import ConflictError, IntegrityError, JobError, NotFoundError
from job.logs import warn
from job.runs.checkpoint import prune
from job.runs.identity import canonical_json, sha256_hex
from job.store.store import Store

FORMAT = 1
ATTEMPT_FILE = "attempt.json"
_COMMIT_KEYS = {"run", "attempt", "result_digest", "weights_digest", "dataset", "metrics", "files"}
_ABANDONED_KEYS = {"run", "abandoned"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One object of a commit, with what proves its content."""

    key: str
    num_bytes: int
    sha256: str


def digest_of_inputs(inputs: Mapping[str, Any]) -> str:
    """Over everything that decides the result of a run."""
    return sha256_hex(canonical_json(inputs))


def claim_run(store: Store, run_id: str, *, inputs: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Record what decides the run's result, or check that it is what was recorded before; returns its digest.

    Also proves on the very store in use that a second create-only write is refused.

    Raises:
        ConflictError: the run exists with another result digest.
        NotFoundError: the store does not honour conditional writes.
        IntegrityError: the recorded run.json cannot be read.
    """
    digest = digest_of_inputs(inputs)
    key = run_key(run_id)
    content = {"format": FORMAT, "created": _now(), "result_digest": digest, "inputs": inputs, "config": config}
    record = canonical_json(content)
    standing = store.create(key, record)
    recorded = parse_object(standing, key=key)
    if recorded.get("result_digest") != digest:
        raise ConflictError(
            f"run {run_id} exists with another result digest ({_differences(recorded.get('inputs'), inputs)}); choose "
            "another run.id (or run.suffix where the id is generated), or repeat its settings"
        )
    if not store.refuses_second_create(key, standing):
        raise NotFoundError(
            f"store {store.uri} does not honour conditional writes: a second create-only write of {key} was accepted; use a "
            "store that supports If-None-Match"
        )
    return digest


def read_commit(store: Store, run_id: str) -> dict[str, Any] | None:
    """The run's COMMIT, or None when it has no result yet.

    Raises:
        IntegrityError: it is there and cannot be read.
        ConflictError: the run was given up, and can have no result any more.
    """
    record = read_standing(store, run_id)
    if record is not None:
        _refuse_abandoned(record, run_id=run_id)
    return record


def read_standing(store: Store, run_id: str) -> dict[str, Any] | None:
    """What stands in the place of the run's COMMIT: a COMMIT, the record of a run that was given up, or None.

    Raises:
        IntegrityError: it is there and is neither.
    """
    data = store.get(commit_key(run_id))
    if data is None:
        return None
    record = parse_object(data, key=commit_key(run_id))
    missing = (_ABANDONED_KEYS if is_abandoned(record) else _COMMIT_KEYS) - record.keys()
    if missing:
        reason = f"it lacks {', '.join(sorted(missing))}"
    elif record["run"] != run_id:
        reason = f"it is of run {record['run']!r}"
    elif is_abandoned(record):
        return record
    elif not isinstance(record["metrics"], dict) or "test_accuracy" not in record["metrics"]:
        reason = "it lacks metrics.test_accuracy"
    elif not _has_own_files(record, attempt_prefix(run_id, attempt_id=str(record["attempt"]))):
        reason = f"its files are not those of its attempt {record['attempt']!r}"
    else:
        return record
    raise IntegrityError(f"store: {commit_key(run_id)} is not the COMMIT of this run: {reason}")


def _has_own_files(commit_record: Mapping[str, Any], prefix: str) -> bool:
    return all(is_below(file.key, prefix) for file in stored_files(commit_record))


def is_below(key: str, prefix: str) -> bool:
    """Whether a key lies in the folder `prefix`, and cannot leave it."""
    return key.startswith(prefix) and not {"", ".", ".."} & set(key.split("/"))


def is_abandoned(standing: Mapping[str, Any]) -> bool:
    """Whether it is the record of a run that was given up."""
    return "abandoned" in standing


def is_removed(standing: Mapping[str, Any]) -> bool:
    """Whether it is the record of a run that had a result, and that retention removed."""
    return is_abandoned(standing) and "by" in standing


def abandon(store: Store, run_id: str) -> bool:
    """Close a run without a result for good, so that no attempt can commit it; False when one was quicker."""
    record = _abandoned_record(run_id)
    return is_abandoned(parse_object(store.create(commit_key(run_id), record), key=commit_key(run_id)))


def remove_commit(store: Store, run_id: str) -> None:
    """Put a record that closes the run in the place of its COMMIT; from then on no reader looks for its files."""
    store.put(commit_key(run_id), _abandoned_record(run_id, by="retention"))


def _abandoned_record(run_id: str, **more: str) -> bytes:
    return canonical_json({"format": FORMAT, "run": run_id, "abandoned": _now(), **more})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _refuse_abandoned(standing: Mapping[str, Any], *, run_id: str) -> None:
    if is_abandoned(standing):
        what = "removed by retention" if is_removed(standing) else "given up and removed by mnist-job gc"
        raise ConflictError(
            f"run {run_id} was {what} at {standing['abandoned']}; choose another run.id, or another run.suffix where the id "
            "is generated"
        )


def free_attempt_id(store: Store, run_id: str, *, wanted: str) -> str:
    """`wanted`, or with a number behind it: a container that was restarted in its pod is another attempt."""
    number, attempt_id = 1, wanted
    while store.get(attempt_prefix(run_id, attempt_id=attempt_id) + ATTEMPT_FILE) is not None:
        number += 1
        attempt_id = f"{wanted}-{number}"
    return attempt_id


def list_attempts(store: Store, run_id: str) -> list[float]:
    """When each attempt of a run registered, in seconds since the epoch, oldest first."""
    entries = store.list_objects(attempts_prefix(run_id))
    return sorted(entry.modified_seconds for entry in entries if entry.key.endswith(f"/{ATTEMPT_FILE}"))


def upload(store: Store, run_id: str, *, attempt_id: str, files: Mapping[str, bytes]) -> list[StoredFile]:
    """Write an attempt's files (name below the attempt's folder -> content), each once.

    Raises:
        ConflictError: another content stands under one of the names.
    """
    stored = []
    for name, data in sorted(files.items()):
        key = attempt_prefix(run_id, attempt_id=attempt_id) + name
        if store.create(key, data) != data:
            raise ConflictError(f"store {store.uri}: {key} was written before with other content; start a new attempt")
        stored.append(StoredFile(key=key, num_bytes=len(data), sha256=sha256_hex(data)))
    return stored


def commit(store: Store, run_id: str, *, content: Mapping[str, Any]) -> dict[str, Any]:
    """Make the run's result exist, and return the COMMIT that stands: ours, or an equal one that came first.

    Equal content is the same result digest. Another weights digest, as two kinds of CPU can give, is a warning.

    Raises:
        ConflictError: the run is committed with another result digest.
    """
    key = commit_key(run_id)
    standing = parse_object(store.create(key, canonical_json(content)), key=key)
    check_same_result(standing, run_id=run_id, result_digest=content["result_digest"])
    if standing.get("weights_digest") != content["weights_digest"]:
        warn(
            "commit.other_weights",
            committed=standing.get("weights_digest"),
            ours=content["weights_digest"],
            reason="another attempt committed first, on hardware that computes other bits; its result stands",
        )
    return standing


def check_same_result(standing: Mapping[str, Any], *, run_id: str, result_digest: str) -> None:
    """Raises:
    ConflictError: a COMMIT is of another result than this attempt works on, or the run was given up.
    """
    _refuse_abandoned(standing, run_id=run_id)
    if standing.get("result_digest") != result_digest:
        raise ConflictError(
            f"run {run_id} is committed with another result digest ({str(standing.get('result_digest'))[:16]}...); its "
            "result stands; choose another run.id or run.suffix"
        )


def stored_files(commit_record: Mapping[str, Any]) -> list[StoredFile]:
    """What a COMMIT names.

    Raises:
        IntegrityError: it does not say so in a way that can be read.
    """
    try:
        files = [StoredFile(**entry) for entry in commit_record["files"]]
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"the COMMIT does not say which files it consists of: {error}") from error
    if not all(isinstance(file.key, str) for file in files):
        raise IntegrityError("the COMMIT names a file by something that is no key")
    return files


def clean_up(store: Store, commit_record: Mapping[str, Any]) -> None:
    """Delete what only an unfinished run needs: its checkpoints, and the models of attempts that did not win.

    What cannot be deleted stays: the result stands, whoever may not delete.
    """
    run_id = str(commit_record["run"])
    winner = attempt_prefix(run_id, attempt_id=str(commit_record["attempt"]))
    try:
        prune(store, run_id, keep=0)
        for entry in store.list_objects(attempts_prefix(run_id)):
            if not entry.key.startswith(winner) and entry.key.split("/")[4] == "model":
                store.delete(entry.key)
    except JobError as error:
        warn("cleanup.failed", reason=str(error))


def parse_object(data: bytes, *, key: str) -> dict[str, Any]:
    """A stored JSON object.

    Raises:
        IntegrityError: it is not one.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"store: {key} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"store: {key} must hold a JSON object, received {type(content).__name__}")
    return content


def _differences(recorded: object, inputs: Mapping[str, Any]) -> str:
    """The settings in which two runs differ, for the error message."""
    if not isinstance(recorded, dict):
        return "its settings are not recorded"
    before, now = _flatten(recorded), _flatten(inputs)
    changed = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return "; ".join(changed[:3])


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
