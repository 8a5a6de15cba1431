"""Checkpoints on plain arrays: content proves itself, the newest good one wins, and bad ones never do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.config import StoreSection
from job.errors import IntegrityError
from job.runs import checkpoint as checkpoints
from job.runs.checkpoint import Checkpoint
from job.store.open import open_store
from job.store.store import Store

META: Mapping[str, Any] = {
    "epoch_seconds": 0.5,
    "history": [],
    "ledger": {
        "first_started_seconds": 0.0,
        "saved_seconds": 1.0,
        "seconds": {},
        "down_seconds": 0.0,
        "overlap_seconds": 0.0,
        "attempts": 1,
        "interruptions": 0,
        "chain": [],
        "is_bit_identical": True,
        "is_end": False,
    },
}
"""What a checkpoint of a run without an epoch says beside its arrays."""


def make_checkpoint(step: int, *, result_digest: str = "digest") -> Checkpoint:
    random = np.random.default_rng(step)
    arrays = {
        "000/kernel": random.normal(size=(7, 5)).astype(np.float32),
        "001/iteration": np.array(step),
        "002/seed": np.array([1, 2], np.uint32),
        "sums/loss_sum": np.array(1.25),
    }
    return Checkpoint(step=step, result_digest=result_digest, arrays=arrays, meta=META)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{tmp_path}/store"), environ={})


def files_of(store: Store, tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store" / "runs" / "r" / "checkpoints").iterdir())


def test_what_is_loaded_is_what_was_saved_scalars_included(store: Store) -> None:
    saved = make_checkpoint(12)
    key = checkpoints.save(store, "r", saved)
    loaded = checkpoints.load_newest(store, "r", result_digest="digest")

    assert key.startswith("runs/r/checkpoints/000000012-")
    assert loaded is not None
    assert (loaded.step, loaded.result_digest, loaded.meta) == (12, "digest", saved.meta)
    assert loaded.arrays.keys() == saved.arrays.keys()
    for name, array in saved.arrays.items():
        assert (loaded.arrays[name].dtype, loaded.arrays[name].shape) == (array.dtype, array.shape)
        assert loaded.arrays[name].tobytes() == array.tobytes()


def test_layouts_other_than_c_are_saved_right(store: Store) -> None:
    transposed = np.arange(12, dtype=np.float32).reshape(3, 4).T
    checkpoint = Checkpoint(step=1, result_digest="d", arrays={"a": transposed}, meta=META)
    assert np.array_equal(checkpoints.decode(checkpoints.encode(checkpoint)).arrays["a"], transposed)


def test_equal_checkpoints_are_one_object(store: Store, tmp_path: Path) -> None:
    assert checkpoints.save(store, "r", make_checkpoint(3)) == checkpoints.save(store, "r", make_checkpoint(3))
    assert len(files_of(store, tmp_path)) == 1


def test_a_run_without_checkpoints_has_none(store: Store) -> None:
    assert checkpoints.load_newest(store, "r", result_digest="digest") is None


def test_newest_stay_and_the_newest_is_loaded(store: Store, tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoints.save(store, "r", make_checkpoint(step))
    checkpoints.prune(store, "r", keep=2)

    assert [path.name[:9] for path in files_of(store, tmp_path)] == ["000000020", "000000100"]
    loaded = checkpoints.load_newest(store, "r", result_digest="digest")
    assert loaded is not None
    assert loaded.step == 100


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_as_many_stay_as_asked_when_pruned_after_every_save(store: Store, tmp_path: Path, keep: int) -> None:
    for step in range(1, 8):
        checkpoints.save(store, "r", make_checkpoint(step))
        checkpoints.prune(store, "r", keep=keep)
        assert len(files_of(store, tmp_path)) == min(step, keep)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_newest_is_noticed_and_the_older_one_used(
    tmp_path: Path, store: Store, data: st.DataObject
) -> None:
    for path in files_of(store, tmp_path) if (tmp_path / "store").exists() else []:
        path.unlink()
    checkpoints.save(store, "r", make_checkpoint(5))
    checkpoints.save(store, "r", make_checkpoint(10))
    newest = files_of(store, tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    damage = data.draw(st.sampled_from(["flip", "cut", "empty", "older content", "more"]))
    if damage == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif damage == "empty":
        content.clear()
    elif damage == "older content":
        content[:] = files_of(store, tmp_path)[0].read_bytes()
    else:
        content += b"x"
    newest.write_bytes(content)

    loaded = checkpoints.load_newest(store, "r", result_digest="digest")

    assert loaded is not None
    assert loaded.step == 5


def test_all_bad_is_an_error_and_not_a_new_start(store: Store, tmp_path: Path) -> None:
    checkpoints.save(store, "r", make_checkpoint(5))
    files_of(store, tmp_path)[0].write_bytes(b"")

    with pytest.raises(IntegrityError, match=r"none of its 1 checkpoints is intact; delete .*to train again"):
        checkpoints.load_newest(store, "r", result_digest="digest")


def test_a_checkpoint_of_another_result_or_format_is_not_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(store, "r", make_checkpoint(5))
    checkpoints.save(store, "r", make_checkpoint(10, result_digest="other"))
    monkeypatch.setattr(checkpoints, "FORMAT", 99)
    checkpoints.save(store, "r", make_checkpoint(15))
    monkeypatch.undo()

    loaded = checkpoints.load_newest(store, "r", result_digest="digest")

    assert loaded is not None
    assert loaded.step == 5


def test_metadata_is_plain_json(store: Store) -> None:
    loaded = checkpoints.decode(checkpoints.encode(make_checkpoint(1)))
    assert json.loads(json.dumps(loaded.meta)) == loaded.meta
