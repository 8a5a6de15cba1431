"""The real program with a small numpy workload in the place of Keras: everything around the steps is what users run.

Each attempt is a real process, forked from one that has never touched a store, so a trial costs some 50 ms. The caller must be
single-threaded for that reason.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

import job.__main__
import job.commands.run
from job import digests
from job.config import Config
from job.errors import IntegrityError
from job.observe.phases import Phases
from job.runs import identity
from job.runs.lineage import Device
from job.runs.read import DatasetIdentity
from job.store import backend
from job.training import evaluation, pipeline
from job.training.loop import Split, Training
from job.training.steps import ChunkResult
from job.training.workers import Workers, exchange_with_nobody
from job.training.workload import Prepared, Results
from tests.torture.checks import TrialFailed
from tests.torture.planted import plant_chosen

NUM_CLASSES, NUM_PIXELS = 4, 8
NUM_TRAIN, NUM_TEST, NUM_VALIDATION, BATCH, STEPS_PER_CHUNK = 70, 20, 30, 16, 2
FLAGS = (
    "--run.id=r",
    "--data.source=digits",
    f"--train.global_batch_size={BATCH}",
    "--train.epochs=3",
    "--checkpoint.interval_seconds=0.000001",
    "--observe.log_format=json",
)
FILE_STORE = ("--store.uri=file:./store",)
STOPPING = (
    *FILE_STORE,
    "--run.seed=32",
    "--data.validation_fraction=0.3",
    "--train.epochs=40",
    "--train.evaluate_every=2",
    "--train.early_stopping_patience=2",
    "--train.keep=best",
)
"""A run that stops early after epoch 8, and keeps the weights of epoch 4."""

Hook = Callable[[str], None]


class PlainSteps:
    """Softmax regression with momentum in numpy: enough state for every kind of array that a checkpoint holds."""

    def __init__(self, *, epochs: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.images = random.integers(0, 64, (NUM_TRAIN + NUM_TEST, NUM_PIXELS)).astype(np.float32) / np.float32(255)
        self.labels = random.integers(0, NUM_CLASSES, NUM_TRAIN + NUM_TEST)
        held_out = np.random.default_rng([seed, 1])
        self.validation_images = held_out.random((NUM_VALIDATION, NUM_PIXELS), np.float32)
        self.validation_labels = held_out.integers(0, NUM_CLASSES, NUM_VALIDATION)
        self.images[np.arange(len(self.labels)), self.labels] = (
            1  # easy to tell apart: the gate lets no guesses through
        )
        self._seed, self._epochs = seed, epochs
        self._state: dict[str, NDArray[Any]] = {
            "000/kernel": random.normal(size=(NUM_PIXELS, NUM_CLASSES)).astype(np.float32),
            "001/velocity": np.zeros((NUM_PIXELS, NUM_CLASSES), np.float32),
            "002/iteration": np.array(0),
            "sums/loss_sum": np.array(0.0),
            "sums/num_correct": np.array(0),
            "sums/num_examples": np.array(0),
        }

    def state(self) -> dict[str, NDArray[Any]]:
        return {name: np.array(array) for name, array in self._state.items()}

    def common_state(self) -> dict[str, NDArray[Any]]:
        return self.state()

    def model_state(self) -> dict[str, NDArray[Any]]:
        return {"000/kernel": np.array(self._state["000/kernel"])}

    def load_model(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._state["000/kernel"] = np.array(arrays["000/kernel"])

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        if {name: array.shape for name, array in arrays.items()} != {n: a.shape for n, a in self._state.items()}:
            raise IntegrityError("checkpoint: its arrays are not those of this model")
        self._state = {name: np.array(array) for name, array in arrays.items()}

    def probabilities(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        exponentials = np.exp(images @ self._state["000/kernel"])
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True), np.float32)

    def run(self, *, start_step: int, is_asked_to_stop: Callable[[], bool]) -> Iterator[ChunkResult]:
        steps_per_epoch = pipeline.steps_per_epoch(NUM_TRAIN, global_batch_size=BATCH)
        for chunk in pipeline.chunk_rows(
            num_examples=NUM_TRAIN,
            global_batch_size=BATCH,
            steps_per_chunk=STEPS_PER_CHUNK,
            seed=self._seed,
            start_step=start_step,
            stop_step=steps_per_epoch * self._epochs,
        ):
            wait_for_checkpoint()
            if chunk.start_step % steps_per_epoch == 0:
                for name in ("loss_sum", "num_correct", "num_examples"):
                    self._state[f"sums/{name}"] = self._state[f"sums/{name}"] * 0
            for index in range(chunk.num_steps):
                self._step(chunk.rows[index][chunk.weights[index] > 0])
            yield ChunkResult(
                step=chunk.start_step + chunk.num_steps,
                loss_sum=float(self._state["sums/loss_sum"]),
                num_correct=int(self._state["sums/num_correct"]),
                num_examples=int(self._state["sums/num_examples"]),
                seconds=1e-6,
            )

    def _step(self, rows: NDArray[np.int32]) -> None:
        state, images, labels = self._state, self.images[rows], self.labels[rows]
        probabilities = self.probabilities(images)
        one_hot = np.eye(NUM_CLASSES, dtype=np.float32)[labels]
        gradient = images.T @ (probabilities - one_hot) / np.float32(len(rows))
        state["001/velocity"] = np.float32(0.9) * state["001/velocity"] - np.float32(0.1) * gradient
        state["000/kernel"] = state["000/kernel"] + state["001/velocity"]
        state["002/iteration"] = state["002/iteration"] + 1
        state["sums/loss_sum"] = state["sums/loss_sum"] - np.log(probabilities[np.arange(len(rows)), labels]).sum()
        state["sums/num_correct"] = state["sums/num_correct"] + (probabilities.argmax(1) == labels).sum()
        state["sums/num_examples"] = state["sums/num_examples"] + len(rows)


class PlainWorkload:
    """A `run.Workload` around `PlainSteps`."""

    def __init__(self, environ: object) -> None:
        """Like `KerasWorkload`."""

    def prepare(
        self,
        config: Config,
        *,
        run_id: str,
        phases: Phases,
        workers: Workers,
        look: Callable[[], None],
        recorded_compile: str | None = None,
    ) -> Prepared:
        seed = identity.resolve_seed(config, run_id=run_id)
        self._steps = PlainSteps(epochs=config.train.epochs, seed=seed)
        self._config = config
        return Prepared(
            inputs=identity.result_inputs(
                config, seed=seed, compile_with="graph", num_replicas=1, dataset_digest="plain"
            ),
            dataset=DatasetIdentity(name="plain", digest="plain", evaluation_digest="plain"),
            device=Device(names=("cpu",), threads={"intra_op": 1, "inter_op": 1}, compile_with="graph"),
            exchange=exchange_with_nobody,
        )

    def build(self) -> Training:
        steps = self._steps
        has_validation = self._config.data.validation_fraction > 0
        validation = Split(predict=lambda: steps.probabilities(steps.validation_images), labels=steps.validation_labels)
        return Training(
            steps,
            settings=self._config.train,
            num_examples=NUM_TRAIN,
            test=Split(predict=lambda: steps.probabilities(steps.images[NUM_TRAIN:]), labels=steps.labels[NUM_TRAIN:]),
            validation=validation if has_validation else None,
        )

    def finish(self, training: Training, *, phases: Phases) -> Results:
        wait_for_checkpoint()
        training.load_result()
        probabilities = training.predict()
        names = tuple(str(number) for number in range(NUM_CLASSES))
        kernel = self._steps.state()["000/kernel"].tobytes()
        return Results(
            files={
                "model/saved_model.pb": b"graph" * 100,
                "model/variables/variables.data": kernel,
                "predictions.safetensors": self._to_predictions(probabilities),
            },
            weights_digest=digests.sha256_hex(kernel),
            scores=evaluation.score(probabilities, self._steps.labels[NUM_TRAIN:], class_names=names),
        )

    def predict_with(self, files: Mapping[str, bytes], *, weights_digest: str) -> NDArray[np.float32]:
        assert digests.sha256_hex(files["variables/variables.data"]) == weights_digest
        kernel = np.frombuffer(files["variables/variables.data"], np.float32).reshape(NUM_PIXELS, NUM_CLASSES)
        exponentials = np.exp(self._steps.images[NUM_TRAIN:] @ kernel)
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True), np.float32)

    def _to_predictions(self, probabilities: NDArray[np.float32]) -> bytes:
        images = (self._steps.images[NUM_TRAIN:] * 255).astype(np.uint8)
        arrays: dict[str, NDArray[Any]] = {
            "probabilities": probabilities,
            "labels": self._steps.labels[NUM_TRAIN:],
            "sample_images": images,
        }
        return safetensors.numpy.save(arrays)


def wait_for_checkpoint() -> None:
    """Until the checkpoint's thread is done, pruning and log segment included: points come in the same number each time."""
    import threading

    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended: exit code, or the negative number of the signal."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The last line that the program said about why it ended."""
        return self.stderr.strip().rpartition("\n")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A running attempt."""

    pid: int
    output: Path

    def wait(self, *, timeout_seconds: float = 60.0) -> Ended:
        """Wait for its end; raises TrialFailed when it hangs, and kills it then."""
        deadline = time.monotonic() + timeout_seconds
        while (ended := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TrialFailed(f"an attempt hung for {timeout_seconds} s; {self._read('.err')}")
            time.sleep(0.001)
        return ended

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        return Ended(code=os.waitstatus_to_exitcode(status), stdout=self._read(".out"), stderr=self._read(".err"))

    def _read(self, suffix: str) -> str:
        return self.output.with_suffix(suffix).read_text(errors="replace")


def start(
    folder: Path,
    flags: Sequence[str] = FILE_STORE,
    *,
    hook: Hook | None = None,
    environ: Mapping[str, str] | None = None,
) -> Attempt:
    """Start one attempt at run `r` in a process of its own; `hook` acts inside it."""
    number = len(list(folder.glob("attempt-*.err")))
    output = folder / f"attempt-{number}.out"
    output.with_suffix(".err").touch()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_program(folder, [*FLAGS, *flags], output=output, hook=hook, environ=environ)
    return Attempt(pid=pid, output=output)


def run(folder: Path, flags: Sequence[str] = FILE_STORE, **how: Any) -> Ended:
    """Start one attempt and wait for its end."""
    return start(folder, flags, **how).wait()


def _be_the_program(
    folder: Path,
    flags: Sequence[str],
    *,
    output: Path,
    hook: Hook | None,
    environ: Mapping[str, str] | None,
) -> NoReturn:
    try:
        for descriptor, path in ((1, output), (2, output.with_suffix(".err"))):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("MNIST_", "AWS_", "POD_"))]:
            del os.environ[name]
        os.environ.update(environ or {})
        vars(job.commands.run)["KerasWorkload"] = PlainWorkload
        backend.on_point = hook
        plant_chosen()
        sys.argv = ["mnist-job", "run", *flags]
        job.__main__.main()
    finally:
        os._exit(99)  # never back into the caller's stack


def main() -> None:
    """`python -m tests.torture.plain run ...` is `mnist-job run ...` with the plain workload."""
    vars(job.commands.run)["KerasWorkload"] = PlainWorkload
    job.__main__.main()


if __name__ == "__main__":
    main()
