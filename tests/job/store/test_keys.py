"""Keys that cannot be written are refused before hours of work: too long, closed to us, without room."""

import os
from pathlib import Path

import pytest

from job.config import StoreSection
from job.errors import AccessDeniedError, ConfigError, NotFoundError, UnavailableError
from job.store.open import open_store
from job.store.store import Store

ENVIRON = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}


class TestFolder:
    @pytest.mark.parametrize("key", ["a", "a/b/c", f"a/{'n' * 255}", "\u00e9" * 127])
    def test_key_that_can_be_written_is_taken(self, store: Store, key: str) -> None:
        store.check_keys([key])
        store.put(key, b"")

    @pytest.mark.parametrize(
        ("key", "num_bytes", "limit"),
        [
            (f"a/{'n' * 256}", 256, 255),
            (f"{'n' * 300}/b", 300, 255),
            ("\u00e9" * 128, 256, 255),
            (f"a/{'/'.join(['n' * 200] * 21)}", r"\d+", 4095),
        ],
    )
    def test_name_that_is_too_long_is_named(self, store: Store, key: str, num_bytes: object, limit: int) -> None:
        with pytest.raises(ConfigError, match=rf"needs a name of {num_bytes} bytes, .* at most {limit} are possible"):
            store.check_keys(["a", key])

    @pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere; test_run_refusals.py takes that away")
    def test_folder_that_is_closed_is_named(self, store: Store, folder: Path) -> None:
        (folder / "models").mkdir(parents=True, mode=0o555)
        store.check_keys(["runs/a"])
        with pytest.raises(
            AccessDeniedError, match=r"models/a: Permission denied; choose a folder that can be written"
        ):
            store.check_keys(["models/a"])

    def test_file_in_the_place_of_a_folder_is_named(self, store: Store, folder: Path) -> None:
        folder.mkdir()
        (folder / "models").touch()
        with pytest.raises(NotFoundError, match=r"models/m/a: .*a file stands where"):
            store.check_keys(["models/m/a"])

    def test_more_than_there_is_room_for_is_refused(self, store: Store) -> None:
        store.check_room(0)
        store.check_room(1000)
        with pytest.raises(
            UnavailableError, match=r"the result takes .* MB are free: No space left on device; make room"
        ):
            store.check_room(10**18)

    def test_nothing_is_written(self, store: Store, folder: Path) -> None:
        store.check_keys(["a/b"])
        store.check_room(1)
        assert not folder.exists()


class TestBucket:
    @pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/prefix", "s3://bucket/\u00e9"])
    def test_keys_are_counted_with_the_prefix(self, uri: str) -> None:
        store = open_store(StoreSection(uri=uri, region="us-east-1"), environ=ENVIRON)
        prefix = uri.removeprefix("s3://bucket").strip("/")
        room = 1024 - (len(prefix.encode()) + 1 if prefix else 0)

        store.check_keys(["k" * room])
        with pytest.raises(ConfigError, match=r"needs keys of 1025 bytes, such as \.\.\.k+, at most 1024 are possible"):
            store.check_keys(["k" * (room + 1)])

    def test_room_is_not_known(self) -> None:
        open_store(StoreSection(uri="s3://bucket"), environ=ENVIRON).check_room(10**18)
