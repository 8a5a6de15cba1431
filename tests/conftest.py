"""Shared fixtures: real processes, real files, a real S3 API. Nothing here knows what the job does inside."""

import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.log_events import find_breaches
from tests.ports import free_ports
from tests.promises import Promises, is_whole_run, read_promises
from tests.s3_server import serve_s3

IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
REPOSITORY = Path(__file__).parent.parent

_MNIST_FOLDER = os.environ.get("MNIST_TEST_DATA", "")

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it, and every process that a test starts would, too

hypothesis.settings.register_profile(
    "tests", hypothesis.settings(), deadline=None
)  # a time on a busy machine says nothing
hypothesis.settings.load_profile("tests")

IS_CI = os.environ.get("CI") == "true"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="also tests that repeat others many times or train for minutes"
    )


def pytest_configure(config: pytest.Config) -> None:
    """No test sees the settings of its caller; MNIST_TEST_DATA was read above, and is no setting."""
    if config.getoption("--full") or "security" in config.getoption("markexpr"):
        config.pluginmanager.register(Promises(read_promises(), is_gate=is_whole_run(config)), "promises")
    if getattr(config.option, "numprocesses", None):  # this process only hands tests out, and its environment on
        return
    for name in [name for name in os.environ if name.upper().startswith("MNIST_")]:
        del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def is_full(request: pytest.FixtureRequest) -> bool:
    """Whether the test may take its time: more trials of the same."""
    return bool(request.config.getoption("--full"))


# Small enough for one second of training, large enough to learn; without a port, which tests at the same time would fight for.
QUICK = (
    "--observe.metrics_port=0",
    "--data.source=digits",
    "--train.optimizer=momentum",
    "--train.learning_rate=0.1",
    "--train.global_batch_size=32",
    "--train.epochs=2",
)


def skip_or_fail(reason: str) -> None:
    """A missing tool is a loud skip on a laptop and an error in CI."""
    if IS_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A finished `mnist-job` process."""

    code: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON log lines, each as schemas/log-event.json has it."""
        lines = [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]
        assert [breach for line in lines for breach in find_breaches(line)] == []
        return lines

    def event(self, name: str) -> dict[str, Any]:
        """The last event of that name."""
        return [event for event in self.events if event["event"] == name][-1]

    @property
    def error(self) -> str:
        """The lines that our own program wrote to stderr; TensorFlow's own noise is left out."""
        return "\n".join(line for line in self.stderr.splitlines() if line.startswith("mnist-job:"))


RunJob = Callable[..., Finished]


def job_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job process: this one without settings and credentials of whoever runs the tests."""
    dropped = ("MNIST_", "AWS_", "GOOGLE_", "AZURE_", "POD_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return clean | {"CUDA_VISIBLE_DEVICES": ""} | NO_METADATA_SERVER | dict(extra or {})


NO_METADATA_SERVER = {"GCE_METADATA_HOST": "none of Google's", "GCE_METADATA_IP": "none of Google's"}
"""No test asks for credentials of the machine it runs on."""


def job_command(arguments: Sequence[str], *, module: str = "job") -> list[str]:
    """How a job process is started."""
    return [sys.executable, "-m", module, *arguments]


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """Run `mnist-job` with its store, cache and working folder below `tmp_path`, in a real process."""
    return run_job_in(tmp_path)


@pytest.fixture
def run_plain(tmp_path: Path) -> RunJob:
    """The same with a numpy model in the place of the Keras one (`tests/torture/plain.py`): no TensorFlow."""
    return run_job_in(tmp_path, module="tests.torture.plain")


def run_job_in(folder: Path, *, module: str = "job") -> RunJob:
    """The same, below a folder."""

    def run(
        *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120, prefix: Sequence[str] = ()
    ) -> Finished:
        environment = job_environment({"XDG_CACHE_HOME": str(folder / "cache"), **(env or {})})
        done = subprocess.run(
            [*prefix, *job_command(arguments, module=module)],
            cwd=folder,
            env=environment | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Finished(code=done.returncode, stdout=done.stdout, stderr=done.stderr)

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """One committed run, `r`, for all tests that only need some: its folder, and how its process ended."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_job_in(folder)("run", *QUICK, "--run.id=r", "--observe.termination_log=./termination")
    assert done.code == 0, done.stderr
    return folder, done


@pytest.fixture
def trained(trained_once: tuple[Path, Finished], tmp_path: Path) -> Finished:
    """A copy of it below `tmp_path`, for one test to change: `out/` and `termination`."""
    shutil.copytree(trained_once[0], tmp_path, dirs_exist_ok=True)
    return trained_once[1]


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the four canonical MNIST files."""
    folder = Path(_MNIST_FOLDER)
    if not _MNIST_FOLDER or not all((folder / name).is_file() for name in IDX_FILES):
        skip_or_fail("no MNIST: set MNIST_TEST_DATA to a folder with the four .gz files")
    return folder


def to_idx(array: NDArray[np.uint8]) -> bytes:
    """An IDX file, compressed: images [N, height, width] or labels [N]."""
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture
def small_idx(tmp_path: Path) -> Path:
    """A folder with four small IDX files of random images and labels 0..9: 320 for training, 100 for testing."""
    folder = tmp_path / "idx"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in zip(IDX_FILES, (320, 320, 100, 100), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        (folder / name).write_bytes(to_idx(random.integers(0, 256 if "images" in name else 10, shape, np.uint8)))
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """A bucket on a local S3 server."""

    endpoint: str
    bucket: str
    env: dict[str, str]

    @property
    def flags(self) -> tuple[str, ...]:
        """Settings that reach it."""
        return (
            f"--store.uri=s3://{self.bucket}/prefix",
            f"--store.endpoint={self.endpoint}",
            "--store.region=us-east-1",
        )


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of moto's S3 server."""
    with serve_s3() as url:
        yield url


@pytest.fixture
def s3(s3_server: str) -> S3:
    """A fresh bucket."""
    import urllib.request

    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{bucket}", method="PUT"), timeout=10).close()
    env = {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
    return S3(endpoint=s3_server, bucket=bucket, env=env)


@pytest.fixture
def dead_port() -> int:
    """A local port that nobody listens on."""
    [port] = free_ports(1)
    return port
