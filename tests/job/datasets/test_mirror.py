"""`data prepare`: the four verified files in a folder or store, from which data.source=idx reads."""

import gzip
from pathlib import Path

import pytest

from job.config import StoreSection
from job.datasets.idx import load_idx
from job.datasets.mirror import prepare_mirror
from job.errors import ConfigError, ConflictError, IntegrityError, NotFoundError
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import IDX_FILES, S3, RunJob

NO_CACHE = Path("/nonexistent")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{tmp_path / 'mirror'}"), environ={})


@pytest.mark.parametrize("kind", ["folder", "file", "s3"])
def test_mirror_is_written_verified_and_read_by_idx(
    kind: str, mnist_dir: Path, tmp_path: Path, s3: S3, run_job: RunJob
) -> None:
    uri = {"folder": "mirror", "file": f"file:{tmp_path / 'mirror'}", "s3": f"s3://{s3.bucket}/mirror"}[kind]
    flags = (f"--store.endpoint={s3.endpoint}", "--store.region=us-east-1") if kind == "s3" else ()
    scheme = "s3" if kind == "s3" else "file"
    for said in (
        f"4 files verified and written to {scheme}:",
        f"verified, and in {scheme}:",
    ):  # then everything is there already
        done = run_job("data", "prepare", "--from", str(mnist_dir), "--to", uri, *flags, env=s3.env)
        assert (done.code, done.stderr) == (0, "")
        assert f"mnist: {said}" in done.stdout
        assert f"--data.source=idx --data.uri={uri}" in done.stdout
    if kind != "s3":
        assert sorted(path.name for path in (tmp_path / "mirror").iterdir()) == sorted(IDX_FILES)
    check = run_job("data", "check", "--data.source=idx", f"--data.uri={uri}", *flags, env=s3.env)
    assert check.code == 0
    assert check.stdout.startswith("mnist: 60000 + 10000 examples, ")


def test_mirror_holds_the_very_files(mnist_dir: Path, store: Store) -> None:
    assert sorted(prepare_mirror(store, dataset="mnist", source=mnist_dir, cache_dir=NO_CACHE)) == sorted(IDX_FILES)
    for name in IDX_FILES:
        assert store.get(name) == (mnist_dir / name).read_bytes()
    assert len(load_idx(store, dataset="mnist").train_labels) == 60000


def test_files_of_another_dataset_are_refused_and_nothing_is_written(small_idx: Path, store: Store) -> None:
    with pytest.raises(IntegrityError, match=rf"{IDX_FILES[0]} is not the mnist file"):
        prepare_mirror(store, dataset="mnist", source=small_idx, cache_dir=NO_CACHE)
    assert store.list_objects("") == []


def test_missing_file_is_refused_and_nothing_is_written(mnist_dir: Path, tmp_path: Path, store: Store) -> None:
    for name in IDX_FILES[:3]:
        (tmp_path / name).symlink_to(mnist_dir / name)
    with pytest.raises(NotFoundError, match=rf"{tmp_path}/{IDX_FILES[3]} does not exist"):
        prepare_mirror(store, dataset="mnist", source=tmp_path, cache_dir=NO_CACHE)
    assert store.list_objects("") == []


def test_other_content_in_the_place_is_kept_and_refused(mnist_dir: Path, store: Store) -> None:
    other = gzip.compress(b"other")
    store.put(IDX_FILES[1], other)
    with pytest.raises(ConflictError, match=rf"mirror/{IDX_FILES[1]} holds other content; choose an empty place"):
        prepare_mirror(store, dataset="mnist", source=mnist_dir, cache_dir=NO_CACHE)
    assert store.get(IDX_FILES[1]) == other
    assert [entry.key for entry in store.list_objects("")] == [IDX_FILES[1]], "nothing is written beside it"


def test_only_what_is_missing_is_written_and_named(mnist_dir: Path, store: Store) -> None:
    store.put(IDX_FILES[2], (mnist_dir / IDX_FILES[2]).read_bytes())
    written = prepare_mirror(store, dataset="mnist", source=mnist_dir, cache_dir=NO_CACHE)
    assert sorted(written) == sorted({*IDX_FILES} - {IDX_FILES[2]})
    assert prepare_mirror(store, dataset="mnist", source=mnist_dir, cache_dir=NO_CACHE) == []


def test_dataset_without_four_known_files_is_refused(mnist_dir: Path, store: Store) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.dataset: must be one of mnist, fashion_mnist, kmnist .*emnist/digits"
    ):
        prepare_mirror(store, dataset="emnist/digits", source=mnist_dir, cache_dir=NO_CACHE)
