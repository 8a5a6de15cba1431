"""What the README promises about real MNIST. Slow: one run of the whole reference training, and a few short ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Finished, RunJob, job_environment

pytestmark = [pytest.mark.tf, pytest.mark.timeout(900)]

_README = REPOSITORY / "README.md"


def run_on_mnist(run_job: RunJob, folder: Path, *flags: str) -> Finished:
    done = run_job("run", "--data.source=idx", f"--data.uri={folder}", *flags, timeout=800)
    assert done.code == 0, done.stderr
    return done


@pytest.mark.full
def test_reference_run_reaches_its_accuracy_and_the_readme_snippet_classifies(
    run_job: RunJob, mnist_dir: Path, tmp_path: Path
) -> None:
    done = run_on_mnist(run_job, mnist_dir, "--run.id=reference")

    assert 0.875 <= done.event("run.end")["accuracy"] <= 0.885
    assert done.event("run.end")["peak_memory_bytes"] < 1.2e9
    assert run_job("verify", "--run", "reference").code == 0
    snippets = re.findall(r"```python\n(.*?)```", _README.read_text(), re.DOTALL)
    [snippet] = [text for text in snippets if "serving_default" in text]
    served = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", snippet.replace("FOLDER", str(mnist_dir))],
        cwd=tmp_path,
        env=job_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    printed = served.stdout
    assert served.stderr == ""
    predicted, labels = (list(map(int, part.split())) for part in re.findall(r"\[([\d ]+)\]", printed))
    assert labels == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert sum(ours == true for ours, true in zip(predicted, labels, strict=True)) >= 8


@pytest.mark.full
def test_relu_and_adam_reach_the_promised_accuracy(run_job: RunJob, mnist_dir: Path) -> None:
    done = run_on_mnist(
        run_job, mnist_dir, "--model.activation=relu", "--train.optimizer=adam", "--train.learning_rate=0.001",
        "--train.epochs=5",
    )  # fmt: skip
    assert done.event("run.end")["accuracy"] >= 0.975


@pytest.mark.full
def test_tfds_and_idx_give_one_dataset_digest_and_one_weights_digest(
    run_job: RunJob, mnist_dir: Path, tmp_path: Path
) -> None:
    through_idx = run_on_mnist(run_job, mnist_dir, "--train.epochs=1")
    through_tfds = run_job("run", f"--data.uri={mnist_dir}", "--train.epochs=1", timeout=400)

    assert through_tfds.code == 0, through_tfds.stderr
    assert through_tfds.event("data.ready")["digest"] == through_idx.event("data.ready")["digest"]
    assert through_tfds.event("commit.done")["weights_digest"] == through_idx.event("commit.done")["weights_digest"]

    check = run_job("data", "check")
    assert (check.code, check.stdout) == (0, "mnist: a prepared copy is in the cache\n")
    (tmp_path / "without" / "tensorflow_datasets").mkdir(parents=True)
    (tmp_path / "without" / "tensorflow_datasets" / "__init__.py").write_text(
        "raise ImportError('not for a prepared copy')\n"
    )
    without_tfds = {"PYTHONPATH": str(tmp_path / "without")}
    again = run_job("run", "--train.epochs=1", "--run.suffix=again", env=without_tfds)
    assert again.code == 0, again.stderr
    assert again.event("commit.done")["weights_digest"] == through_idx.event("commit.done")["weights_digest"]


@pytest.mark.full
def test_two_replicas_lose_as_one_after_an_epoch(run_job: RunJob, mnist_dir: Path) -> None:
    one, two = (
        run_on_mnist(
            run_job, mnist_dir, "--train.epochs=1", f"--cluster.cpu_replicas={replicas}", f"--run.suffix={replicas}"
        )
        for replicas in (1, 2)
    )
    for name in ("loss", "test_loss"):
        assert two.event("epoch.end")[name] == pytest.approx(one.event("epoch.end")[name], abs=1e-5)


@pytest.mark.parametrize("damage", ["cut in half", "a flipped bit", "labels and images swapped"])
def test_damaged_mnist_is_refused_before_step_1(run_job: RunJob, mnist_dir: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in mnist_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    data = bytearray(images.read_bytes())
    if damage == "cut in half":
        images.write_bytes(data[: len(data) // 2])
    elif damage == "a flipped bit":
        data[len(data) // 3] ^= 4
        images.write_bytes(data)
    else:
        images.write_bytes(labels.read_bytes())
        labels.write_bytes(data)

    done = run_job("run", "--data.source=idx", f"--data.uri={folder}")

    assert done.code == 65
    assert "is not the mnist file" in done.error
    assert "train.start" not in [event["event"] for event in done.events]


def test_unreachable_download_is_69_within_seconds_and_names_the_other_ways(run_job: RunJob, dead_port: int) -> None:
    done = run_job("run", env={"HTTPS_PROXY": f"http://127.0.0.1:{dead_port}"}, timeout=30)

    assert done.code == 69
    for way in ("data.uri=FOLDER", "data.source=idx", "data.source=digits"):
        assert way in done.error
