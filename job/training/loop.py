"""The training loop: from a step number to the last step, with metrics, progress and the stop signal between chunks.

Knows steps, epochs, checkpoints and signals; what a step computes is behind `Steps`. Never imports TensorFlow.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from job import clock
from job.contract import Event
from job.datasets.dataset import Labels
from job.digests import canonical_json, digest_of_arrays
from job.logs import emit
from job.observe.view import Progress, View
from job.runs.checkpoint import Checkpoint
from job.runs.checkpoint_writer import CheckpointWriter
from job.runs.goodput import Ledger
from job.signals import StopSignal
from job.training import evaluation, pipeline
from job.training.steps import ChunkResult
from job.training.watchdog import Watchdog

PROGRESS_SECONDS = 10.0
"""Time between two train.progress events."""

_SMOOTHING = 0.2


class Steps(Protocol):
    """What makes optimizer updates: `steps.StepRunner`, or plain numpy in the tests that kill things."""

    def run(self, *, start_step: int, is_asked_to_stop: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Train from a step on, yielding after each chunk; see `ChunkResult.stopping`."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step depends on, and the running sums: a copy, by name."""

    def common_state(self) -> dict[str, NDArray[Any]]:
        """The part of `state` that is equal on all workers."""

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set what `state` returned; `IntegrityError` when it is of another model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch ended with.

    Attributes:
        epoch: 1-based.
        loss, accuracy: over the epoch's training examples, each before its own update.
        test_loss, test_accuracy: on the test split after the epoch.
        seconds: wall time of the epoch's steps, evaluation not included.
    """

    epoch: int
    loss: float
    accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    examples_per_second: float

    def results(self) -> dict[str, float]:
        """What the epoch computed, without how long it took."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "test_loss": self.test_loss,
            "test_accuracy": self.test_accuracy,
        }


class Training:
    """The steps of one run, with checkpoints, evaluation and progress; ready to run from any step."""

    def __init__(
        self,
        steps: Steps,
        *,
        predict: Callable[[], evaluation.Probabilities],
        test_labels: Labels,
        num_examples: int,
        global_batch_size: int,
        epochs: int,
    ) -> None:
        """Nothing is trained yet.

        Args:
            predict: probabilities [M, C] of the test split, in the order of `test_labels` [M].
            num_examples: in the training split.
        """
        self._steps, self._test_labels = steps, test_labels
        self._num_examples, self._global_batch_size, self._epochs = num_examples, global_batch_size, epochs
        self.predict = predict
        self.steps_per_epoch = pipeline.steps_per_epoch(num_examples, global_batch_size=global_batch_size)
        self.total_steps = self.steps_per_epoch * epochs
        self._start_step = 0
        self._epoch_seconds = 0.0
        self.history: list[EpochRecord] = []

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up where a checkpoint was made.

        Raises:
            IntegrityError: it is not of this model and optimizer.
        """
        self._steps.restore(checkpoint.arrays)
        self._start_step = checkpoint.step
        self._epoch_seconds = checkpoint.meta["epoch_seconds"]
        self.history = [EpochRecord(**record) for record in checkpoint.meta["history"]]

    def run(
        self,
        *,
        result_digest: str,
        writer: CheckpointWriter | None,
        watchdog: Watchdog,
        ledger: Ledger,
        stop: StopSignal,
        view: View,
    ) -> None:
        """Train to the last step and write the last checkpoint; `history` and `view` are kept up to date.

        Args:
            writer: None for a worker that is not the chief.

        Raises:
            TrainingError: the loss or a probability is not finite.
            StopRequested: a signal came, and where training stood is saved.
            UnavailableError: it could not be saved.
        """
        meter = _Meter(total_steps=self.total_steps, start_step=self._start_step)
        step, phases = self._start_step, ledger.phases
        view.training_starts(
            step=step, total_steps=self.total_steps, epochs=self._epochs, counters=self.counters(step, ledger=ledger)
        )

        def checkpoint() -> Checkpoint:
            meta = {
                "epoch_seconds": self._epoch_seconds,
                "history": [asdict(record) for record in self.history],
                "counters": self.counters(step, ledger=ledger),
                "ledger": ledger.to_meta(is_end=bool(stop.requested)),
            }
            return Checkpoint(step=step, result_digest=result_digest, arrays=self._steps.state(), meta=meta)

        with stop.deferred():
            with watchdog.watching(), phases("compile"):
                for result in self._steps.run(start_step=self._start_step, is_asked_to_stop=stop.is_requested):
                    if step > self._start_step:  # the first call compiles
                        view.steps_timed(result.step - step, seconds=result.seconds)
                    step = result.step
                    if ledger.first_step_seconds is None:
                        ledger.first_step_seconds = round(sum(phases.seconds.values()), 3)
                    phases.switch("train")
                    meter.add(result)
                    self._take_in(result, meter, ledger=ledger, view=view)
                    watchdog.beat()
                    if result.stopping:
                        stop.request(f"SIGTERM of worker {result.stopping[0]}")
                    if stop.requested if result.stopping is None else result.stopping:
                        break
                    if writer and step < self.total_steps and writer.is_due():
                        with phases("checkpoint"):
                            writer.save(checkpoint())
                        view.checkpoint_starts()
            if writer and step > self._start_step:  # else it is the checkpoint that was restored
                with phases("checkpoint"):
                    ledger.num_interruptions += 1 if stop.requested else 0
                    writer.save_last(checkpoint(), stop=stop)
        view.training_ends()

    def counters(self, step: int, *, ledger: Ledger) -> dict[str, int]:
        """What was done up to a step, each step and example counted once, whatever was done again after a kill."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return {
            "steps": step,
            "examples": epoch * self._num_examples + step_in_epoch * self._global_batch_size,
            "epochs": epoch,
            "attempts": ledger.num_attempts,
            "interruptions": ledger.num_interruptions,
        }

    def state_digest(self) -> str:
        """SHA-256 over weights, optimizer and seed-generator variables, metric sums and history, times left out.

        Equal in two runs when, and only when, every number that training produced is equal.
        """
        results = canonical_json([record.results() for record in self.history])
        return digest_of_arrays(sorted(self._steps.state().items()), then=results)

    def common_digest(self) -> str:
        """SHA-256 over everything that has to be equal on all workers."""
        return digest_of_arrays(sorted(self._steps.common_state().items()))

    def _take_in(self, result: ChunkResult, meter: "_Meter", *, ledger: Ledger, view: View) -> None:
        """Keep count of a finished chunk, show it, and evaluate at the end of an epoch."""
        self._epoch_seconds += result.seconds
        epoch = (result.step - 1) // self.steps_per_epoch + 1
        self._show(result, meter, epoch=epoch, ledger=ledger, view=view)
        if result.step % self.steps_per_epoch == 0:
            with ledger.phases("evaluate"):
                self._end_epoch(result, epoch=epoch)
            ended = self.history[-1]
            view.epoch_ends(test_loss=ended.test_loss, test_accuracy=ended.test_accuracy)

    def _end_epoch(self, result: ChunkResult, *, epoch: int) -> None:
        test_loss, test_accuracy = evaluation.loss_and_accuracy(self.predict(), self._test_labels)
        record = EpochRecord(
            epoch=epoch,
            loss=result.loss,
            accuracy=result.accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            seconds=round(self._epoch_seconds, 4),
            examples_per_second=round(result.num_examples / self._epoch_seconds, 1),
        )
        self.history.append(record)
        self._epoch_seconds = 0.0
        emit(Event.EPOCH_END, step=result.step, **asdict(record))

    def _show(self, result: ChunkResult, meter: "_Meter", *, epoch: int, ledger: Ledger, view: View) -> None:
        progress = Progress(
            step=result.step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=result.loss,
            accuracy=result.accuracy,
            examples_per_second=meter.steps_per_second * self._global_batch_size,
            eta_seconds=meter.eta_seconds,
            counters=self.counters(result.step, ledger=ledger),
            goodput_ratio=ledger.goodput()["ratio"],
        )
        view.chunk(progress)
        if meter.is_due():
            emit(
                Event.TRAIN_PROGRESS,
                step=progress.step,
                epoch=epoch,
                loss=progress.loss,
                accuracy=progress.accuracy,
                examples_per_second=round(progress.examples_per_second, 1),
                eta_seconds=round(progress.eta_seconds, 1),
            )


class _Meter:
    """Speed and time left, smoothed over chunks; the first chunk is left out because it holds the compilation."""

    def __init__(self, *, total_steps: int, start_step: int) -> None:
        self._total_steps = total_steps
        self._step = start_step
        self._num_chunks = 0
        self._seconds_per_step = 0.0
        self._next_report = clock.monotonic() + PROGRESS_SECONDS

    @property
    def steps_per_second(self) -> float:
        """Optimizer updates a second; 0 until two chunks are done."""
        return 1 / self._seconds_per_step if self._seconds_per_step else 0.0

    @property
    def eta_seconds(self) -> float:
        """Estimated seconds of the steps that are left."""
        return self._seconds_per_step * (self._total_steps - self._step)

    def add(self, result: ChunkResult) -> None:
        """Take in one more chunk."""
        latest = result.seconds / (result.step - self._step)
        if self._num_chunks == 1:
            self._seconds_per_step = latest
        elif self._num_chunks > 1:
            self._seconds_per_step += _SMOOTHING * (latest - self._seconds_per_step)
        self._step = result.step
        self._num_chunks += 1

    def is_due(self) -> bool:
        """Whether it is time for another train.progress event."""
        if clock.monotonic() < self._next_report:
            return False
        self._next_report = clock.monotonic() + PROGRESS_SECONDS
        return True
