"""One contract for every store; then what only a folder has to stand: full disks, missing rights, half-written files."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from job.config import StoreSection
from job.errors import AccessDeniedError, ConfigError, IntegrityError, NotFoundError, UnavailableError
from job.store.backend import AlreadyExists, Entry, TransientError
from job.store.folder import FolderBackend
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import REPOSITORY, S3, RunJob, skip_or_fail
from tests.job.store import s3_faults
from tests.job.store.azurite import Azurite

WITHOUT_OVERRIDE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()
"""Root passes every permission; without these capabilities it does not."""


class MemoryBackend:
    """The protocol in its shortest form; what others fake when they test against `Store`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def create(self, key: str, data: bytes) -> None:
        with self._lock:
            if key in self.objects:
                raise AlreadyExists(key)
            self.objects[key] = data

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        try:
            return self.objects[key]
        except KeyError as error:
            raise FileNotFoundError(key) from error

    def list_objects(self, prefix: str) -> list[Entry]:
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        return [Entry(key=key, num_bytes=len(self.objects[key]), modified_seconds=0.0) for key in keys]

    def list_folders(self, prefix: str) -> list[str]:
        rest = [key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)]
        return sorted({key.partition("/")[0] for key in rest if "/" in key})

    def check_key(self, key: str) -> None:
        pass

    def free_bytes(self) -> int | None:
        return None

    def sweep(self, prefix: str, *, older_than_seconds: float) -> None:
        pass

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)


OpenStore = Callable[[], Store]


@pytest.fixture(params=["file", "s3", "gs", pytest.param("az", marks=pytest.mark.full), "memory"])
def open_another(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
    """Opens the same store again, as another process would."""
    if request.param == "file":
        return lambda: open_store(StoreSection(uri=f"file:{tmp_path / 'store'}"), environ={})
    if request.param == "memory":
        backend = MemoryBackend()
        return lambda: Store(backend, uri="memory:", deadline_seconds=5)
    section, environ = request.getfixturevalue(f"{request.param}_place")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return lambda: open_store(section, environ=environ)


Place = tuple[StoreSection, dict[str, str]]


@pytest.fixture
def s3_place(s3: S3) -> Place:
    return StoreSection(uri=f"s3://{s3.bucket}/prefix", endpoint=s3.endpoint, region="us-east-1"), s3.env


@pytest.fixture
def gs_place() -> Iterator[Place]:
    """Google's XML API, and the metadata server of a pod of GKE; the emulators that registries have know no create-only write."""
    with s3_faults.serve() as server:
        host = server.endpoint.removeprefix("http://")
        environ = {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}
        yield StoreSection(uri=f"gs://{s3_faults.BUCKET}/prefix", endpoint=server.endpoint), environ


@pytest.fixture
def az_place(azurite: Azurite) -> Place:
    section = StoreSection(
        uri=f"az://{azurite.make_container()}/prefix", endpoint=azurite.endpoint, account_name=azurite.account
    )
    return section, azurite.env


@pytest.fixture
def store(open_another: OpenStore) -> Store:
    return open_another()


CONTENTS = {"text": b"hello", "empty": b"", "binary": bytes(range(256)) * 8, "large": os.urandom(6_000_000)}


class TestContract:
    @pytest.mark.parametrize("content", CONTENTS)
    def test_object_comes_back_as_it_was_written(self, content: str, store: Store, open_another: OpenStore) -> None:
        assert store.create("a/created", CONTENTS[content]) == CONTENTS[content]
        store.put("a/put", CONTENTS[content])
        for reader in (store, open_another()):
            assert reader.get("a/created") == CONTENTS[content]
            assert reader.get("a/put") == CONTENTS[content]

    def test_second_create_returns_what_stands(self, store: Store, open_another: OpenStore) -> None:
        assert store.create("a/key", b"first") == b"first"
        assert open_another().create("a/key", b"second") == b"first"
        assert store.create("a/key", b"first") == b"first"
        assert store.get("a/key") == b"first"

    def test_second_create_is_refused_and_harmless(self, store: Store) -> None:
        store.create("a/key", b"first")
        assert store.refuses_second_create("a/key", b"first")
        assert store.get("a/key") == b"first"

    def test_put_replaces(self, store: Store) -> None:
        store.put("a/key", b"first and longer")
        store.put("a/key", b"second")
        assert store.get("a/key") == b"second"

    def test_missing_objects_are_none_empty_and_no_error(self, store: Store) -> None:
        assert store.get("absent") is None
        assert store.get("absent/deep/key") is None
        assert store.list_objects("absent/") == []
        assert store.list_folders("absent/") == []
        store.delete("absent")
        store.delete("absent/deep/key")

    def test_deleted_object_is_gone_and_its_key_free(self, store: Store) -> None:
        store.create("a/key", b"first")
        store.create("a/other", b"stays")
        store.delete("a/key")
        assert store.get("a/key") is None
        assert [entry.key for entry in store.list_objects("")] == ["a/other"]
        assert store.create("a/key", b"second") == b"second"

    def test_listing_is_sorted_recursive_and_of_whole_folders(self, store: Store) -> None:
        for key in ("runs/b/2", "runs/a/deep/er/1", "runs/b/10", "runs2/x", "other"):
            store.put(key, key.encode())
        assert [entry.key for entry in store.list_objects("runs/")] == ["runs/a/deep/er/1", "runs/b/10", "runs/b/2"]
        assert len(store.list_objects("")) == 5
        assert {entry.key: entry.num_bytes for entry in store.list_objects("runs/b/")} == {
            "runs/b/10": 9,
            "runs/b/2": 8,
        }

    def test_folders_are_listed_one_level_deep(self, store: Store) -> None:
        for key in ("runs/b/x", "runs/a/deep/x", "runs/file", "runs2/c/x"):
            store.put(key, b"")
        assert store.list_folders("runs/") == ["a", "b"]
        assert store.list_folders("") == ["runs", "runs2"]

    def test_sixteen_racing_creators_have_one_winner(self, open_another: OpenStore) -> None:
        stores = [open_another() for _ in range(16)]
        barrier = threading.Barrier(len(stores))
        seen: dict[str, list[bytes]] = {f"race/{index}": [] for index in range(5)}

        def create(store: Store, name: bytes) -> None:
            for key, results in seen.items():
                barrier.wait()
                results.append(store.create(key, name))

        threads = [
            threading.Thread(target=create, args=(store, f"creator {index}".encode() * 100))
            for index, store in enumerate(stores)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for key, results in seen.items():
            assert len(results) == 16
            assert set(results) == {stores[0].get(key)}

    def test_location_is_the_full_uri(self, store: Store) -> None:
        assert store.location("a/key") == f"{store.uri}/a/key"


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "store"

    @pytest.fixture
    def file_store(self, folder: Path) -> Store:
        return open_store(StoreSection(uri=f"file:{folder}", deadline_seconds=1), environ={})

    @pytest.mark.parametrize("key", ["../outside", "a/../../outside", "a/..", "/etc/outside", ".."])
    @pytest.mark.parametrize("verb", ["create", "put", "get", "delete", "list_objects", "list_folders"])
    def test_key_that_leaves_the_folder_is_refused(
        self, verb: str, key: str, file_store: Store, tmp_path: Path
    ) -> None:
        (tmp_path / "outside").write_bytes(b"precious")
        arguments = (key, b"data") if verb in ("create", "put") else (key,)
        with pytest.raises(
            IntegrityError, match=rf"^store file:\S+: the key '{re.escape(key)}' leads out of the store"
        ):
            getattr(file_store, verb)(*arguments)
        assert (tmp_path / "outside").read_bytes() == b"precious"

    def test_left_over_temporary_files_are_not_listed(self, file_store: Store, folder: Path) -> None:
        file_store.create("runs/x/run.json", b"{}")
        (folder / "runs/x/.tmp-1-dead").write_bytes(b"half")
        assert [entry.key for entry in file_store.list_objects("")] == ["runs/x/run.json"]

    def test_writes_leave_no_temporary_file(self, file_store: Store, folder: Path) -> None:
        file_store.create("a/key", b"first")
        file_store.create("a/key", b"second")
        file_store.put("a/key", b"third")
        assert os.listdir(folder / "a") == ["key"]

    @pytest.mark.parametrize("verb", ["create", "put"])
    def test_content_is_durable_before_its_name_and_the_name_before_the_return(
        self, verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, link, replace = os.fsync, os.link, os.replace

        def record_fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            calls.append(f"fsync {'folder' if path.is_dir() else 'file'}")
            fsync(descriptor)

        def record_link(source: str, target: str, **options: Any) -> None:
            calls.append("name")
            link(source, target, **options)

        def record_replace(source: str, target: str, **options: Any) -> None:
            calls.append("name")
            replace(source, target, **options)

        folder.mkdir()
        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "link", record_link)
        monkeypatch.setattr(os, "replace", record_replace)
        getattr(FolderBackend(folder), verb)("key", b"data")
        assert calls == ["fsync folder", "fsync file", "name", "fsync folder"]  # the first: the store's own name

    def test_reader_never_sees_half_an_object(self, file_store: Store) -> None:
        versions = [bytes([index]) * 300_000 for index in range(4)]
        file_store.put("key", versions[0])
        stop = threading.Event()

        def write() -> None:
            writer = open_store(StoreSection(uri=file_store.uri), environ={})
            while not stop.is_set():
                for version in versions:
                    writer.put("key", version)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert all(file_store.get("key") in versions for _ in range(300))
        finally:
            stop.set()
            thread.join()

    @pytest.mark.parametrize("verb", ["create", "put", "get", "list_objects"])
    def test_file_in_the_place_of_a_folder_is_not_found(self, verb: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        store = open_store(StoreSection(uri=f"file:{tmp_path / 'file'}", deadline_seconds=1), environ={})
        arguments = ("a/key", b"data") if verb in ("create", "put") else ("a/",)
        if verb == "get":  # as with an object store: nothing is under that key
            assert store.get("a/key") is None
            return
        with pytest.raises(NotFoundError, match=r"^store file:/\S+/file: \S+: .*a file stands where "):
            getattr(store, verb)(*arguments)

    @pytest.mark.parametrize("path", ["store", "a/store", "a/b/c/store", "a/" * 200 + "store"], ids=len)
    def test_missing_parents_are_made(self, path: str, tmp_path: Path) -> None:
        store = open_store(StoreSection(uri=f"file:{tmp_path}/{path}"), environ={})
        assert store.list_objects("") == []
        store.create("a/key", b"data")
        assert (tmp_path / path / "a" / "key").read_bytes() == b"data"

    def test_the_names_of_missing_parents_are_durable_even_when_their_maker_was_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").mkdir()  # by a process that was killed before it came to the fsync
        synced: list[Path] = []
        fsync = os.fsync

        def record(descriptor: int) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", record)
        FolderBackend(tmp_path / "a" / "b" / "store").put("key", b"data")
        wanted = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "store"]
        assert [path for path in synced if path in wanted] == wanted

    @pytest.mark.parametrize(
        ("target", "path", "reason"),
        [
            ("/no/such/volume", "link", "is a link to /no/such/volume, which is no folder; mount or make that one"),
            ("/no/such/volume", "link/below", "is a link to /no/such/volume, which is no folder"),
            ("link", "link", "is a link to link, which is no folder"),
            ("file", "link", "is a link to file, which is no folder"),
            ("folder", "link/link", "is a link to absent, which is no folder"),
        ],
    )
    @pytest.mark.parametrize("verb", ["create", "put", "list_objects", "list_folders"])
    def test_link_that_leads_nowhere_is_no_empty_store(
        self, verb: str, target: str, path: str, reason: str, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to(target)
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "link").symlink_to("absent")
        store = open_store(StoreSection(uri=f"file:{tmp_path / path}", deadline_seconds=1), environ={})
        with pytest.raises(NotFoundError, match=reason):
            getattr(store, verb)(*(("a/key", b"data") if verb in ("create", "put") else ("a/",)))
        assert not (tmp_path / "folder" / "absent").exists()

    def test_link_to_a_folder_is_a_store(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        open_store(StoreSection(uri=f"file:{tmp_path / 'link'}"), environ={}).create("a", b"data")
        assert (tmp_path / "real" / "a").read_bytes() == b"data"

    def test_failure_of_the_disk_is_retried_until_the_deadline(
        self, file_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(folder: int, names: tuple[str, ...]) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        file_store.put("a/key", b"data")
        said = r"get a/key failed for 1 s \(store\.deadline_seconds\): Input/output error; check the disk or the file server"
        with monkeypatch.context() as patched:
            patched.setattr("job.store.beneath.open_file", fail)
            with pytest.raises(UnavailableError, match=said):
                file_store.get("a/key")


class TestUri:
    @pytest.mark.parametrize("uri", ["file://host/out", "s3://bucket/a#1", "https://bucket/a"])
    def test_uri_of_a_command_is_checked_as_the_setting_is(self, uri: str) -> None:
        with pytest.raises(ConfigError, match=rf"^store\.uri: must .*, received '{uri}'"):
            open_store(StoreSection(), environ={}, uri=uri)

    def test_uri_that_obstore_cannot_read_is_refused(self) -> None:
        env = {"AZURE_STORAGE_ACCOUNT_KEY": "canary"}
        with pytest.raises(
            ConfigError, match=r"^store az://container/prefix: .*; name the storage account in store\.account_name$"
        ) as refused:
            open_store(StoreSection(uri="az://container/prefix"), environ=env)
        assert "canary" not in str(refused.value)

    @pytest.mark.parametrize("prefix", ["a b/é=1+2@3", "a:b,c&d;e!f'g(h)*~^|", "<a>/{b}/[c]/`d`", "日本", ".a/..b/c."])
    def test_what_is_stored_lies_where_it_is_printed(
        self, prefix: str, s3: S3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        section = StoreSection(uri=f"s3://{s3.bucket}/{prefix}/", endpoint=s3.endpoint, region="us-east-1")
        whole = section.model_copy(update={"uri": f"s3://{s3.bucket}"})
        store, bucket = (open_store(config, environ=s3.env) for config in (section, whole))
        store.create("a/key", b"data")

        assert [f"{bucket.uri}/{entry.key}" for entry in bucket.list_objects("")] == [store.location("a/key")]
        assert [entry.key for entry in store.list_objects("a/")] == ["a/key"]


class FlakyBackend(MemoryBackend):
    """Fails as told before it works."""

    def __init__(self, failures: Iterator[Exception]) -> None:
        super().__init__()
        self._failures = failures

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        for failure in self._failures:
            raise failure
        return super().get(key, max_bytes=max_bytes)


class TestRetries:
    def test_typed_error_is_passed_on_at_once(self) -> None:
        backend = FlakyBackend(iter([AccessDeniedError("no")]))
        with pytest.raises(AccessDeniedError, match=r"^no$"):
            Store(backend, uri="memory:", deadline_seconds=30).get("key")

    def test_each_retry_is_logged_with_its_reason(self, caplog: pytest.LogCaptureFixture) -> None:
        backend = FlakyBackend(iter([TransientError("first"), TransientError("second")]))
        backend.objects["key"] = b"data"
        assert Store(backend, uri="memory:", deadline_seconds=30).get("key") == b"data"
        fields = [record.__dict__["fields"] for record in caplog.records]
        assert [(field["verb"], field["key"], field["reason"]) for field in fields] == [
            ("get", "key", "first"),
            ("get", "key", "second"),
        ]

    def test_reason_of_an_earlier_try_is_told_when_the_last_one_only_ran_out_of_time(self) -> None:
        backend = FlakyBackend(_fails_and_then_hangs())
        with pytest.raises(UnavailableError, match=r"Input/output error, then: no answer before the deadline; check"):
            Store(backend, uri="memory:", deadline_seconds=0.6).get("key")


def _fails_and_then_hangs() -> Iterator[Exception]:
    yield TransientError("Input/output error")
    threading.Event().wait(1.0)


# Prints, for each step, the error's class and text; then what lies in the folder.
ON_A_DISK = """
import json, os, sys
from pathlib import Path
from typing import Any
from job.errors import JobError
from job.config import StoreSection
from job.store.open import open_store
folder = Path(sys.argv[1])
store = open_store(StoreSection(uri=f"file:{folder}", deadline_seconds=2), environ={})
results = []
def step(call):
    try:
        call()
        results.append(None)
    except JobError as error:
        results.append([type(error).__name__, str(error)])
for name, size in json.loads(sys.argv[2]):
    step(lambda: store.create(name, os.urandom(size)))
    step(lambda: store.put(name + ".put", os.urandom(size)))
if len(sys.argv) > 3:
    store.delete(sys.argv[3])
    step(lambda: store.create("after", b"x" * 9000))
left = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
print(json.dumps([results, left]))
"""


def on_a_disk(mount: str, folder: Path, *arguments: str) -> tuple[list[list[str] | None], dict[str, int]]:
    """Run `ON_A_DISK` where `mount` (a shell command) has been done, in a mount namespace of its own."""
    if os.getuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        skip_or_fail("needs root and unshare --mount")
    script = f'{mount} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", ON_A_DISK, str(folder), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    results, left = json.loads(done.stdout)
    return results, left


class TestDisk:
    def test_full_disk_is_unavailable_and_leaves_nothing_half_written(self, tmp_path: Path) -> None:
        mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}"
        steps = json.dumps([["fits", 20_000], ["too-large", 200_000], ["a/too-large", 200_000]])
        results, left = on_a_disk(mount, tmp_path, steps, "fits.put")
        assert results[:2] == [None, None]
        for failure in results[2:6]:
            assert failure is not None
            assert failure[0] == UnavailableError.__name__
            assert "No space left on device; make room or choose another folder, then start again" in failure[1]
        assert results[6] is None, "it goes on once there is room"
        assert left == {"fits": 20_000, "after": 9000}

    def test_read_only_file_system_is_access_denied(self, tmp_path: Path) -> None:
        mount = f"mount -t tmpfs -o ro tmpfs {tmp_path}"
        results, left = on_a_disk(mount, tmp_path, json.dumps([["a/key", 10]]))
        for failure in results:
            assert failure is not None
            assert failure[0] == AccessDeniedError.__name__
            assert "Read-only file system; choose a folder that can be written: store.uri" in failure[1]
        assert left == {}

    def test_folder_without_rights_exits_77(self, tmp_path: Path, run_job: RunJob) -> None:
        folder = tmp_path / "store"
        folder.mkdir(mode=0o555)
        done = run_job("store", "check", f"--store.uri=file:{folder}", prefix=WITHOUT_OVERRIDE)
        assert done.code == 77
        assert f"store file:{folder}: checks/" in done.error
        assert "Permission denied; choose a folder that can be written: store.uri" in done.error
        assert list(folder.iterdir()) == []

    def test_folder_below_one_that_is_closed_to_us_works(self, tmp_path: Path, run_job: RunJob) -> None:
        folder = tmp_path / "mounts" / "store"
        folder.mkdir(parents=True)
        folder.parent.chmod(0o311)  # may be passed through, not read: it cannot be fsynced
        done = run_job("store", "check", f"--store.uri=file:{folder}", prefix=WITHOUT_OVERRIDE)
        folder.parent.chmod(0o755)
        assert (done.code, done.error) == (0, "")


def test_temporary_files_of_killed_writes_are_swept_once_they_are_old(tmp_path: Path) -> None:
    store = open_store(StoreSection(uri=f"file:{tmp_path}"), environ={})
    store.create("runs/r/COMMIT.json", b"whole")
    old, fresh = (tmp_path / "runs" / "r" / f".tmp-{number}-0123456789abcdef" for number in (1, 2))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))

    store.sweep("runs/r/")

    assert sorted(path.name for path in old.parent.iterdir()) == [fresh.name, "COMMIT.json"]
