"""Publication: immutable objects under `attempts/<id>/`, then one create-only COMMIT.json.

Owns the order of the writes. Never imports TensorFlow; model files come as bytes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from job import clock
from job.contract import attempt_of_key, attempt_prefix, attempts_prefix, commit_key, run_key
from job.digests import canonical_json, sha256_hex
from job.errors import ConflictError, NotFoundError
from job.logs import warn
from job.runs.checkpoint import prune
from job.runs.identity import differences, digest_of_inputs, is_result_of
from job.runs.read import (
    ATTEMPT_FILE,
    MODEL_FOLDER,
    CommittedRun,
    StoredFile,
    check_same_result,
    get_record,
    parse_begun,
    parse_object,
    parse_run,
)
from job.store.store import Store

FORMAT = 1


def readable(data: bytes, read: Callable[[bytes], object]) -> bytes:
    """A record that its own reader takes: what nobody could read again is never written.

    Raises:
        IntegrityError: from `read`.
    """
    read(data)
    return data


def begin_run(store: Store, run_id: str, *, inputs: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Create run.json. When it exists, check that its result digest is ours. Returns the digest.

    Also proves on the very store in use that a second create-only write is refused.

    Raises:
        ConflictError: the run exists with another result digest.
        NotFoundError: the store does not honour conditional writes.
        IntegrityError: the recorded run.json cannot be read.
    """
    digest = digest_of_inputs(inputs)
    key = run_key(run_id)
    content = {
        "format": FORMAT,
        "created": clock.timestamp(),
        "result_digest": digest,
        "inputs": inputs,
        "config": config,
    }
    data = store.create(key, readable(canonical_json(content), lambda data: parse_begun(data, run_id)))
    recorded = parse_begun(data, run_id)
    if not is_result_of(inputs, recorded):
        raise ConflictError(
            f"run {run_id} exists with another result digest ({differences(recorded.get('inputs'), inputs)}); choose "
            "another run.id (or run.suffix where the id is generated), or repeat its settings"
        )
    if not store.refuses_second_create(key, data):
        raise NotFoundError(
            f"store {store.uri} does not honour conditional writes: a second create-only write of {key} was accepted; use a "
            "store that supports If-None-Match"
        )
    return str(recorded["result_digest"])


def abandon(store: Store, run_id: str) -> bool:
    """Close a run without a result for good, so that no attempt can commit it; False when an attempt committed it first."""
    data = store.create(commit_key(run_id), _closing_record(run_id))
    return "abandoned" in parse_object(data, key=commit_key(run_id))  # a damaged COMMIT is left to the next look


def remove_commit(store: Store, run_id: str) -> None:
    """Put a record that closes the run in the place of its COMMIT; from then on no reader looks for its files.

    Its `by` says for good that the run was committed: `abandon` never writes one (docs/adr/0038).
    """
    store.put(commit_key(run_id), _closing_record(run_id, by="retention"))


def _closing_record(run_id: str, **more: str) -> bytes:
    return canonical_json({"format": FORMAT, "run": run_id, "abandoned": clock.timestamp(), **more})


def free_attempt_id(store: Store, run_id: str, *, wanted: str) -> str:
    """`wanted`, or `wanted-2` and so on when it is taken: a container restarted in the same pod has the same UID."""
    number, attempt_id = 1, wanted
    while get_record(store, attempt_prefix(run_id, attempt_id=attempt_id) + ATTEMPT_FILE) is not None:
        number += 1
        attempt_id = f"{wanted}-{number}"
    return attempt_id


def upload(store: Store, run_id: str, *, attempt_id: str, files: Mapping[str, bytes]) -> list[StoredFile]:
    """Write an attempt's files (name below the attempt's folder -> content), each once.

    Raises:
        ConflictError: another content is under one of the names.
    """
    stored = []
    for name, data in sorted(files.items()):
        key = attempt_prefix(run_id, attempt_id=attempt_id) + name
        if store.create(key, data) != data:
            raise ConflictError(f"store {store.uri}: {key} was written before with other content; start a new attempt")
        stored.append(StoredFile(key=key, num_bytes=len(data), sha256=sha256_hex(data)))
    return stored


def commit(store: Store, run_id: str, *, content: Mapping[str, Any]) -> CommittedRun:
    """Create COMMIT.json. Returns ours, or the one that another attempt created first.

    That one must have our result digest. When only its weights digest differs, as on another kind of CPU, log a warning.

    Raises:
        RetiredError: another attempt committed it first, and retention has removed that result since.
        ConflictError: the run is committed with another result digest, or was given up.
        IntegrityError: ours could not be read again; or the one that stands cannot.
    """
    ours = readable(canonical_json(content), lambda data: parse_run(data, run_id))
    data = store.create(commit_key(run_id), ours)
    recorded = check_same_result(parse_run(data, run_id), result_digest=content["result_digest"])
    if recorded.weights_digest != content["weights_digest"]:
        warn(
            "commit.other_weights",
            committed=recorded.weights_digest,
            ours=content["weights_digest"],
            reason="another attempt committed first, on hardware that computes other bits; its result stands",
        )
    return recorded


def clean_up(store: Store, run: CommittedRun) -> None:
    """Delete what only an unfinished run needs: its checkpoints, and the models of attempts that did not win."""
    prune(store, run.run, keep=0)
    for entry in store.list_objects(attempts_prefix(run.run)):
        parts = attempt_of_key(entry.key)
        if parts and parts[1] != run.attempt and parts[2].startswith(MODEL_FOLDER):
            store.delete(entry.key)
