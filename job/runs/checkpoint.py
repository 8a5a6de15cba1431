"""Checkpoints: resumable training state as immutable objects whose names prove their content.

Owns the file format, the names, verification, which checkpoint is restored and which are pruned. Works on plain arrays
and never imports TensorFlow.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import clock, records
from job.contract import checkpoint_key, checkpoint_of_key, checkpoint_prefix
from job.digests import sha256_hex
from job.errors import IntegrityError, UnavailableError
from job.logs import warn
from job.runs import shapes
from job.store.store import Store
from job.texts import one_line

FORMAT = 2
_HASH_CHARACTERS = 16
_MAX_LISTINGS, _LISTING_SECONDS = 1000, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything that an attempt needs to go on as if nothing had happened.

    Attributes:
        step: optimizer updates done.
        result_digest: of the run that it belongs to.
        arrays: model variables (seed generators included), optimizer variables and metric sums, by name; with `train.keep=best`
            the model variables of the best epoch too, under `best/`.
        meta: history, counters and times; plain JSON.
        key: where it was read; empty for one that was just made.
    """

    step: int
    result_digest: str
    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]
    key: str = field(default="", compare=False)


def encode(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as one safetensors file; equal checkpoints give equal bytes."""
    from safetensors.numpy import save

    content = {
        "format": FORMAT,
        "step": checkpoint.step,
        "result_digest": checkpoint.result_digest,
        "meta": dict(checkpoint.meta),
    }
    # order="C": safetensors writes wrong values for other layouts. One metadata key: several come out in random order.
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    return save(arrays, {"checkpoint": json.dumps(content, sort_keys=True)})


def decode(data: bytes) -> Checkpoint:
    """The checkpoint in a safetensors file.

    Raises:
        IntegrityError: it is not one, or of a format that this version does not read.
    """
    try:
        # A loss on the validation split may be NaN: training goes on, and takes it for the worst.
        content = records.parse_beside_arrays(data, key="checkpoint", name="the file", are_all_finite=False)
        checked = shapes.to_shape(shapes.Checkpoint, content or {}, name="its head")
        arrays = records.parse_arrays(data, name="the file")
    except IntegrityError as error:
        raise IntegrityError(f"not a checkpoint: {error}") from error
    assert content
    return Checkpoint(step=checked.step, result_digest=checked.result_digest, arrays=arrays, meta=content["meta"])


def save(store: Store, run_id: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint once, under the name that proves its content; returns its key.

    Raises:
        IntegrityError: other content is under that name.
    """
    data = encode(checkpoint)
    key = checkpoint_key(run_id, step=checkpoint.step, content_hash=sha256_hex(data)[:_HASH_CHARACTERS])
    if store.create(key, data) != data:
        raise IntegrityError(f"store {store.uri}: {key} holds other content than its name says")
    return key


def load_newest(
    store: Store,
    run_id: str,
    *,
    result_digest: str,
    max_bytes: int | None = None,
    passed_over: Collection[str] = (),
) -> Checkpoint | None:
    """The newest checkpoint that verifies; None when the run never had one.

    Args:
        max_bytes: a longer one is not read.
        passed_over: keys of those that were found to be bad before.

    Raises:
        IntegrityError: there are checkpoints, and all of them are bad.
    """
    bad = set(passed_over)
    for _ in range(_MAX_LISTINGS):
        keys = [key for key in _list(store, run_id) if key not in bad]
        if not keys:
            break
        key = keys[-1]
        try:
            data = store.get(key, max_bytes=max_bytes)
            if data is None:  # a rival pruned it since it was listed: look again
                clock.sleep(_LISTING_SECONDS)
                continue
            return _verify(data, key=key, result_digest=result_digest)
        except IntegrityError as error:
            warn("checkpoint.skipped", key=key, reason=str(error))
            bad.add(key)
    if bad:
        raise IntegrityError(
            f"run {run_id}: none of its {len(bad)} checkpoints is intact; delete {store.location(checkpoint_prefix(run_id))} "
            "to train again from the start"
        )
    return None


def max_bytes(*, weight_bytes: int) -> int:
    """More than any checkpoint takes of a model whose weights take so much: weights, those of the best epoch, and optimizers
    with a dozen numbers for each of them.
    """
    return 16 * weight_bytes + 2 * records.MAX_HISTORY_BYTES


def load(store: Store, key: str, *, result_digest: str, max_bytes: int | None = None) -> Checkpoint:
    """The checkpoint that another worker has found.

    Raises:
        IntegrityError: it is not intact.
        UnavailableError: it is not there.
    """
    data = store.get(key, max_bytes=max_bytes)
    if data is None:
        raise UnavailableError(f"store {store.uri}: {key}, which worker 0 goes on from, is not there; start again")
    if not checkpoint_of_key(key):
        raise IntegrityError(f"{one_line(key, limit=120)} is not named like a checkpoint")
    try:
        return _verify(data, key=key, result_digest=result_digest)
    except IntegrityError as error:
        raise IntegrityError(f"store {store.uri}: {key}: {error}") from error


def prune(store: Store, run_id: str, *, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (0: all of them)."""
    keys = _list(store, run_id)
    for key in keys[: max(0, len(keys) - keep)]:
        store.delete(key)


def _list(store: Store, run_id: str) -> list[str]:
    """The keys of all checkpoints, oldest first."""
    keys = (entry.key for entry in store.list_objects(checkpoint_prefix(run_id)))
    found = [(parts[1], key) for key in keys if (parts := checkpoint_of_key(key))]
    return [key for _, key in sorted(found)]


def _verify(data: bytes, *, key: str, result_digest: str) -> Checkpoint:
    parts = checkpoint_of_key(key)
    if parts is None:
        raise IntegrityError("its name is not that of a checkpoint")
    _, step, content_hash = parts
    if sha256_hex(data)[:_HASH_CHARACTERS] != content_hash:
        raise IntegrityError("its content is not what its name says")
    checkpoint = decode(data)
    if checkpoint.step != step or checkpoint.result_digest != result_digest:
        raise IntegrityError("it belongs to another step or run")
    return replace(checkpoint, key=key)
