"""S4, S5: another run's model is evaluated in a process of its own, with limits, which never outlives who waits for it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from job.config import StoreSection
from job.errors import IntegrityError
from job.store.open import open_store
from job.training import export, foreign
from job.training.foreign import Answer, Limits, classify
from tests.conftest import REPOSITORY, job_command, job_environment
from tests.job.runs.committed_runs import commit_run
from tests.job.training.hostile_models import (
    forever,
    hostile_graphs,
    huge,
    run_saver_in_place_of,
    write_model,
)

pytestmark = [pytest.mark.tf, pytest.mark.security("S4")]

THREADS = {"intra_op": 2, "inter_op": 2}
IMAGES = np.random.default_rng(7).integers(0, 256, (300, 28, 28), np.uint8)
LONG = Limits(seconds=200, memory_bytes=600_000_000)


def ask(folder: Path, limits: Limits = LONG) -> Answer:
    return classify(folder, IMAGES, whose="run r7", num_classes=10, threads=THREADS, batch_examples=128, limits=limits)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("endless"), forever)


def test_bits_are_those_that_this_process_computes(tmp_path: Path) -> None:
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    export.save_model(model, tmp_path, image_shape=(28, 28), image_dtype=IMAGES.dtype, input_shape=(28, 28, 1))

    answer = ask(tmp_path)

    assert answer.probabilities.tobytes() == export.predict_with_export(tmp_path, IMAGES, batch_examples=128).tobytes()
    assert answer.weights_digest == export.weights_digest(export.weights_of_export(tmp_path))


@pytest.mark.security("S5")
def test_memory_without_end_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"^the model of run r7 .*(OOM|memory|SIGABRT)"):
        ask(write_model(tmp_path, huge))


@pytest.mark.security("S5")
def test_time_without_end_is_refused_and_named(endless: Path) -> None:
    with pytest.raises(IntegrityError, match=r"^the model of run r7 did not answer within 2 seconds, and was ended$"):
        ask(endless, Limits(seconds=2, memory_bytes=600_000_000))


def test_operation_is_named(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    _, write = hostile_graphs(canary)["nested"]
    with pytest.raises(IntegrityError, match=r"^the model of run r7 has the operation 'WriteFile' \(node '"):
        ask(write_model(tmp_path / "model", write))
    assert not canary.exists()


def test_function_for_files_is_not_run_in_place_of_another(tmp_path: Path) -> None:
    change = run_saver_in_place_of(tmp_path / "canary")
    with pytest.raises(
        IntegrityError, match=r"^the model of run r7 has the attribute 'api_implements' \(it of function"
    ):
        ask(write_model(tmp_path / "model", lambda x: x, change=change))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.security("S10")
def test_process_knows_no_secrets_and_no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hidden = "AWS_SECRET_ACCESS_KEY AZURE_STORAGE_KEY GOOGLE_APPLICATION_CREDENTIALS MNIST_RUN_ID HTTPS_PROXY TF_VAR_x TF_CONFIG"
    kept = "TF_ENABLE_ONEDNN_OPTS XLA_FLAGS CUDA_VISIBLE_DEVICES LD_LIBRARY_PATH"
    for name in (*hidden.split(), *kept.split()):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "own", str(tmp_path)]))

    environment = foreign._environment(tmp_path)

    assert not environment.keys() & set(hidden.split())
    assert environment.keys() >= set(kept.split())
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), str(tmp_path)]
    assert environment["HOME"] == environment["TMPDIR"] == str(tmp_path)


@pytest.mark.parametrize("data", [b"", b"a" * 64, b"a" * 64 + bytes(300 * 40 + 1)])
def test_answer_of_another_size_is_refused(data: bytes) -> None:
    request = foreign._Request(
        folder="", shape=(300, 28, 28), dtype="|u1", num_classes=10, batch_examples=1, threads={}, limits={}, parent=0
    )
    with pytest.raises(IntegrityError, match=rf"gave an answer of {len(data)} bytes instead of 12064"):
        foreign._parse(data, request, whose="run r7")


def children_of(parent: int) -> list[int]:
    """The evaluations that a process waits for and that have their limits by now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
            limits = (folder / "limits").read_text()
        except OSError:
            continue
        if int(fields[1]) != parent or "job.training.foreign" not in command.split("\0"):
            continue  # a server that other tests of this process use
        if "Max file size             unlimited" not in limits:
            found.append(int(folder.name))
    return found


def wait_until(is_so: Callable[[], object], seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def verifying(endless: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`verify` of a committed run whose model never answers."""
    files = {path.relative_to(endless).as_posix(): path.read_bytes() for path in endless.rglob("*") if path.is_file()}
    store = open_store(StoreSection(uri=f"file:{tmp_path / 'out'}"), environ={})
    commit_run(store, "r", image_shape=(28, 28), model=files)
    with subprocess.Popen(
        job_command(["verify", "--run=r"]),
        cwd=tmp_path,
        env=job_environment({"PYTHONPATH": str(REPOSITORY)}),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
        pytest.param(signal.SIGHUP, marks=pytest.mark.full),
    ],
)
def test_signal_ends_both_at_once(number: signal.Signals, verifying: subprocess.Popen[str]) -> None:
    wait_until(lambda: children_of(verifying.pid))
    [child] = children_of(verifying.pid)
    verifying.send_signal(number)
    _, said = verifying.communicate(timeout=20)

    assert verifying.returncode == 75
    assert f"mnist-job: error 75: {number.name} received" in said
    assert not Path(f"/proc/{child}").exists()


def test_process_dies_with_who_waits_for_it(verifying: subprocess.Popen[str]) -> None:
    wait_until(lambda: children_of(verifying.pid))
    [child] = children_of(verifying.pid)
    verifying.kill()
    verifying.wait()

    wait_until(
        lambda: not Path(f"/proc/{child}").exists() or "Z (zombie)" in Path(f"/proc/{child}/status").read_text(), 20
    )


def test_process_that_is_killed_is_refused_and_named(endless: Path) -> None:
    def kill() -> None:
        wait_until(lambda: children_of(os.getpid()))
        os.kill(children_of(os.getpid())[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        IntegrityError, match=r"^the model of run r7 ended its process with signal SIGKILL; it had 600 MB"
    ):
        ask(endless)
    killer.join()
