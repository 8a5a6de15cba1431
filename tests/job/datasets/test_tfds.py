"""MNIST through the real tensorflow-datasets, and what happens without a network."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from job.datasets.idx import load_idx
from job.datasets.tfds import has_copy, load_tfds, probe
from job.errors import NotFoundError, UnavailableError
from tests.conftest import IDX_FILES, REPOSITORY, RunJob, job_environment

# Every step prints one JSON line. Importing TensorFlow and preparing MNIST take seconds, so one process does them all.
PREPARE = """
import json, os, sys
from pathlib import Path
from job.config import DataSection
from job import logs
from job.datasets.tfds import read_prepared
from job.datasets.load import load_dataset
from job.datasets.prepared import plain_copy_path
from job.errors import JobError

cache, manual, broken, unprepared = map(Path, sys.argv[1:])
events = []
logs.configure("json", write=lambda line: events.append(json.loads(line)["event"]))

def load(step, cache_dir, uri):
    events.clear()
    try:
        loaded = load_dataset(DataSection(source="tfds", uri=str(uri)), cache_dir=cache_dir, open_folder=Path)
        result = {"name": loaded.name, "digest": loaded.digest, "examples": len(loaded.dataset.train_labels)}
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error)}
    print("RESULT", json.dumps({"step": step, "events": events, **result}), flush=True)

load("flipped bit", unprepared, broken)
load("first", cache, manual)
copy = plain_copy_path(cache, name="mnist")
whole = copy.read_bytes()
copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
for folder in folders:
    folder.chmod(0o555)
load("copy damaged, cache read-only", cache, manual)
for folder in folders:
    folder.chmod(0o755)
copy.write_bytes(whole)
print("RESULT", json.dumps({"step": "left", "files": sorted(path.name for path in (cache / "tfds").iterdir())}))

# Damages of what the library has prepared: each is named, and does not pass for prepared.
version = next((cache / "tfds" / "mnist").iterdir())
train = version / "mnist-train.tfrecord-00000-of-00001"
info, data = (version / "dataset_info.json").read_bytes(), train.read_bytes()

def damaged(what, change, undo):
    events.clear()
    change()
    try:
        found = read_prepared("mnist", cache_dir=cache)
    finally:
        undo()
    print("RESULT", json.dumps({"step": what, "is_found": found is not None, "events": events}), flush=True)

def write(path, content):
    return lambda: path.write_bytes(content)

damaged("nothing", lambda: None, lambda: None)
damaged("file cut inside an example", write(train, data[:1_000_000]), write(train, data))
damaged("file empty", write(train, b""), write(train, data))
damaged("file flipped", write(train, data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]), write(train, data))
damaged("file missing", train.unlink, write(train, data))
damaged("file closed to us", lambda: train.chmod(0), lambda: train.chmod(0o644))
damaged("info empty", write(version / "dataset_info.json", b""), write(version / "dataset_info.json", info))
damaged("info cut", write(version / "dataset_info.json", info[:500]), write(version / "dataset_info.json", info))
other = version.with_name("9.9.9")
damaged("another version only", lambda: version.rename(other), lambda: other.rename(version))
half = version.with_name("incomplete.ABCDEF_3.0.1")
damaged("half written only", lambda: version.rename(half), lambda: half.rename(version))

# Prepared again in the place of what is damaged, and what a killed process left is removed.
copy.unlink()
train.write_bytes(b"")
old = [version.with_name("incomplete.ABCDEF_3.0.1"), cache / "tfds" / ".preparing-killed"]
for folder in old:
    folder.mkdir()
    os.utime(folder, (0, 0))
load("damaged, prepared again", cache, manual)
print("RESULT", json.dumps({"step": "whole", "is_found": read_prepared("mnist", cache_dir=cache) is not None}))
print("RESULT", json.dumps({"step": "old", "left": [folder.name for folder in old if folder.exists()]}))
"""

READ_COPY = """
import sys
from pathlib import Path
from job.config import DataSection
from job.datasets.load import load_dataset
loaded = load_dataset(DataSection(source="tfds"), cache_dir=Path(sys.argv[1]), open_folder=Path)
print(loaded.digest, sorted({"tensorflow", "tensorflow_datasets", "requests"} & sys.modules.keys()))
"""


def as_ordinary_owner() -> tuple[str, ...]:
    """Root writes into read-only folders unless this is taken away."""
    return ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()


def python(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        env=job_environment({"HTTPS_PROXY": "http://127.0.0.1:9"}),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=590,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tfds-cache") / "cache"


@pytest.fixture(scope="module")
def prepared(cache: Path, mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each step of `PREPARE` gave."""
    broken = tmp_path_factory.mktemp("broken")
    for name in IDX_FILES:
        shutil.copyfile(mnist_dir / name, broken / name)
    data = bytearray((broken / IDX_FILES[1]).read_bytes())
    data[-20] ^= 1
    (broken / IDX_FILES[1]).write_bytes(data)
    output = python(PREPARE, cache, mnist_dir, broken, tmp_path_factory.mktemp("other"), prefix=as_ordinary_owner())
    results = [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT")]
    return {result["step"]: result for result in results}


@pytest.mark.tf
class TestPreparing:
    def test_digest_equals_that_of_the_idx_files(self, prepared: dict[str, dict[str, Any]], mnist_dir: Path) -> None:
        from job.datasets.dataset import digest_of, to_canonical

        first = prepared["first"]
        assert (first["name"], first["examples"]) == ("mnist", 60000)
        assert first["digest"] == digest_of(to_canonical(load_idx(mnist_dir, dataset="mnist")))
        assert first["events"] == ["data.prepare"]

    def test_damaged_copy_in_a_read_only_cache_costs_two_warnings(self, prepared: dict[str, dict[str, Any]]) -> None:
        again = prepared["copy damaged, cache read-only"]
        assert again["events"] == ["data.cache_unusable", "data.cache_not_written"]
        assert again["digest"] == prepared["first"]["digest"]

    def test_nothing_but_the_dataset_is_left_behind(self, prepared: dict[str, dict[str, Any]]) -> None:
        assert prepared["left"]["files"] == ["mnist"]

    @pytest.mark.parametrize(
        "damage",
        [
            "file cut inside an example",
            "file empty",
            "file flipped",
            "file missing",
            "file closed to us",
            "info empty",
            "info cut",
        ],
    )
    def test_damaged_cache_is_named_and_does_not_pass_for_prepared(
        self, prepared: dict[str, dict[str, Any]], damage: str
    ) -> None:
        assert prepared["nothing"] == {"step": "nothing", "is_found": True, "events": []}
        assert prepared[damage] == {"step": damage, "is_found": False, "events": ["data.cache_unusable"]}

    @pytest.mark.parametrize("left_over", ["another version only", "half written only"])
    def test_left_over_is_no_cache(self, prepared: dict[str, dict[str, Any]], left_over: str) -> None:
        assert prepared[left_over] == {"step": left_over, "is_found": False, "events": []}

    def test_damaged_cache_is_prepared_again_in_its_place(self, prepared: dict[str, dict[str, Any]]) -> None:
        again = prepared["damaged, prepared again"]
        assert again["events"] == ["data.cache_unusable", "data.prepare"]
        assert again["digest"] == prepared["first"]["digest"]
        assert prepared["whole"]["is_found"]
        assert prepared["old"]["left"] == []

    def test_flipped_bit_in_a_downloaded_file_is_an_integrity_error(self, prepared: dict[str, dict[str, Any]]) -> None:
        broken = prepared["flipped bit"]
        assert broken.get("error") == "IntegrityError"
        assert broken["events"] == []
        assert "data.source=tfds: a file of mnist is not what its checksum says" in broken["message"]

    def test_copy_is_read_without_importing_the_library(self, prepared: dict[str, dict[str, Any]], cache: Path) -> None:
        assert python(READ_COPY, cache) == f"{prepared['first']['digest']} []\n"


PREPARE_ONE = """
import sys
from pathlib import Path
from job.datasets.dataset import digest_of, to_canonical
from job.datasets.tfds import load_tfds
print(digest_of(to_canonical(load_tfds("mnist", cache_dir=Path(sys.argv[1]), manual_dir=Path(sys.argv[2])))))
"""


def start_preparing(cache: Path, mnist_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE_ONE, str(cache), str(mnist_dir)],
        env=job_environment({"HTTPS_PROXY": "http://127.0.0.1:9"}),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.tf
def test_two_processes_that_prepare_one_folder_both_get_the_data(tmp_path: Path, mnist_dir: Path) -> None:
    both = [start_preparing(tmp_path, mnist_dir) for _ in range(2)]
    digests = {process.communicate(timeout=280)[0] for process in both}

    assert [process.returncode for process in both] == [0, 0]
    assert len(digests) == 1
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == ["mnist"]


@pytest.mark.tf
@pytest.mark.full
@pytest.mark.parametrize("seconds", [2, 10, 18])
def test_process_that_is_killed_while_it_prepares_harms_no_other(
    tmp_path: Path, mnist_dir: Path, seconds: float
) -> None:
    killed, other = (start_preparing(tmp_path, mnist_dir) for _ in range(2))
    with contextlib.suppress(subprocess.TimeoutExpired):
        killed.wait(seconds)
    killed.kill()
    killed.communicate()
    digest = other.communicate(timeout=280)[0]

    assert other.returncode == 0
    assert start_preparing(tmp_path, mnist_dir).communicate(timeout=280)[0] == digest


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A local port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        port: int = server.getsockname()[1]
        yield port


OTHER_WAYS = r"other ways: data\.uri=FOLDER .*data\.source=idx .*data\.source=digits"


class TestWithoutNetwork:
    @pytest.fixture(autouse=True)
    def _no_exceptions_from_the_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)

    def test_refused_connection_names_the_other_ways(self, dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{dead_port}")
        with pytest.raises(UnavailableError, match=rf"mnist/.* cannot be reached \(ProxyError\); {OTHER_WAYS}"):
            probe("mnist", seconds=4)

    def test_silence_ends_within_the_time_given(self, silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent_port}")
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=rf"cannot be reached \(.*\); {OTHER_WAYS}"):
            probe("fashion_mnist", seconds=0.5)
        assert time.monotonic() - started < 3

    def test_silent_name_server_ends_within_the_time_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A look-up has no time-out of its own. The one thing that is replaced here is the resolver."""
        released = threading.Event()

        def look_up(*_: object, **__: object) -> list[object]:
            released.wait(10)
            raise OSError

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=rf"cannot be reached \(no answer\); {OTHER_WAYS}"):
            probe("mnist", seconds=0.3)
        assert time.monotonic() - started < 3
        released.set()

    def test_command_ends_within_seconds_with_69(self, silent_port: int, run_job: RunJob) -> None:
        started = time.monotonic()
        done = run_job("data", "check", "--timeout=1", env={"HTTPS_PROXY": f"http://127.0.0.1:{silent_port}"})
        assert time.monotonic() - started < 8
        assert done.code == UnavailableError.code
        assert "data.source=tfds" in done.error
        assert "data.source=digits" in done.error

    @pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "kmnist", "emnist/digits"])
    def test_every_dataset_can_be_probed(
        self, dataset: str, dead_port: int, monkeypatch: pytest.MonkeyPatch, run_job: RunJob
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{dead_port}")
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{dead_port}")
        with pytest.raises(UnavailableError, match=r"data\.source=tfds: https?://\S+ cannot be reached \(ProxyError\)"):
            load_tfds(dataset, cache_dir=Path("/nonexistent"), manual_dir=None)


class TestFolderWithDownloads:
    @pytest.mark.parametrize("name", IDX_FILES)
    def test_missing_file_is_named(self, name: str, tmp_path: Path) -> None:
        for other in IDX_FILES:
            (tmp_path / other).touch()
        (tmp_path / name).unlink()
        with pytest.raises(
            NotFoundError, match=rf"^data\.uri: .*/{name} does not exist; put the downloaded files of mnist"
        ):
            load_tfds("mnist", cache_dir=tmp_path / "cache", manual_dir=tmp_path)

    @pytest.mark.parametrize("content", [b"", b"other"])
    def test_file_that_is_another_is_named_before_anything_is_prepared(
        self, content: bytes, tmp_path: Path, mnist_dir: Path, run_job: RunJob
    ) -> None:
        for other in IDX_FILES[:3]:
            (tmp_path / other).symlink_to(mnist_dir / other)
        (tmp_path / IDX_FILES[3]).write_bytes(content)
        done = run_job("data", "check", f"--data.uri={tmp_path}")

        assert done.code == 65
        assert (
            f"a file of mnist is not what its checksum says: the SHA-256 of {tmp_path}/{IDX_FILES[3]} is" in done.error
        )

    def test_cache_that_cannot_be_written_is_refused_before_anything_is_prepared(
        self, tmp_path: Path, mnist_dir: Path, run_job: RunJob
    ) -> None:
        (tmp_path / "closed").mkdir(mode=0o555)
        flags = (f"--data.uri={mnist_dir}", f"--data.cache_dir={tmp_path / 'closed'}")
        done = run_job("data", "check", *flags, prefix=as_ordinary_owner())

        assert done.code == 77
        assert f"data.cache_dir: {tmp_path}/closed/tfds cannot be written; choose another folder" in done.error

    @pytest.mark.parametrize("stands", [b"", b"damaged", None])
    def test_damaged_copy_is_no_yes(self, stands: bytes | None, tmp_path: Path, run_job: RunJob) -> None:
        """`data check` says no when the run would have to download, and cannot."""
        copy = tmp_path / "mnist.safetensors"
        copy.mkdir() if stands is None else copy.write_bytes(stands)
        done = run_job("data", "check", f"--data.cache_dir={tmp_path}", env={"HTTPS_PROXY": "http://127.0.0.1:9"})

        assert done.code == 69
        assert "data.cache_unusable" in done.stderr

    def test_damaged_copy_does_not_pass_for_prepared(self, tmp_path: Path) -> None:
        """Else a missing network is not probed, and a missing file is not named."""
        (tmp_path / "mnist.safetensors").write_bytes(b"damaged")
        assert not has_copy("mnist", cache_dir=tmp_path)

    def test_cache_that_may_not_be_entered_is_reported_without_a_traceback(
        self, tmp_path: Path, run_job: RunJob, dead_port: int
    ) -> None:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0)
        done = run_job(
            "data",
            "check",
            f"--data.cache_dir={locked / 'cache'}",
            env={"HTTPS_PROXY": f"http://127.0.0.1:{dead_port}"},
            prefix=as_ordinary_owner(),
        )
        assert "Traceback" not in done.stderr
        assert done.code in (69, 77)
