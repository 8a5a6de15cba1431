"""The training loop: from a step number to the last step, with metrics, progress and the stop signal between chunks."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from job import evaluation, pipeline
from job.checkpoint import Checkpoint
from job.checkpoint_writer import CheckpointWriter
from job.config import Config
from job.datasets import LoadedDataset
from job.model import build_model, build_optimizer, model_input_shape
from job.observe.logs import emit
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.termination import Status
from job.signals import StopSignal
from job.steps import ChunkResult, StepRunner
from job.watchdog import Watchdog

PROGRESS_SECONDS = 10.0
"""Time between two train.progress events."""

_SMOOTHING = 0.2


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


class Training:
    """Model, optimizer and data of one run on one strategy, ready to run from any step."""

    def __init__(
        self,
        config: Config,
        strategy: Any,
        *,
        data: LoadedDataset,
        seed: int,
        compile_with: str,
        result_digest: str,
    ) -> None:
        """Build everything; nothing is trained yet."""
        dataset = data.dataset
        self._config, self._data, self._seed = config, data, seed
        self._num_examples = len(dataset.train_labels)
        self.steps_per_epoch = pipeline.steps_per_epoch(
            self._num_examples, global_batch_size=config.train.global_batch_size
        )
        self._steps_per_chunk = pipeline.choose_steps_per_chunk(
            self.steps_per_epoch,
            num_pixels=math.prod(dataset.image_shape),
            global_batch_size=config.train.global_batch_size,
        )
        self.total_steps = self.steps_per_epoch * config.train.epochs
        self._input_shape = model_input_shape(config.model, image_shape=dataset.image_shape)
        with strategy.scope():
            self.model = build_model(
                config.model,
                image_shape=dataset.image_shape,
                num_classes=len(dataset.class_names),
                seed=seed,
                precision=config.train.precision,
            )
            optimizer = build_optimizer(config.train)
        self._runner = StepRunner(strategy, model=self.model, optimizer=optimizer, compile_with=compile_with)
        self._predictor = evaluation.Predictor(self.model, input_shape=self._input_shape)
        self._result_digest = result_digest
        self._start_step = 0
        self._epoch_seconds = 0.0
        self._num_interruptions = 0
        self.history: list[EpochRecord] = []

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up where a checkpoint was made.

        Raises:
            IntegrityError: it is not of this model and optimizer.
        """
        self._runner.restore(checkpoint.arrays)
        self._start_step = checkpoint.step
        self._epoch_seconds = checkpoint.meta["epoch_seconds"]
        self._num_interruptions = checkpoint.meta["interruptions"]
        self.history = [EpochRecord(**record) for record in checkpoint.meta["history"]]

    def run(
        self,
        *,
        writer: CheckpointWriter,
        watchdog: Watchdog,
        phases: Phases,
        stop: StopSignal,
        status: Status,
        display: Display,
    ) -> None:
        """Train to the last step and write the last checkpoint; `history` and `status` are kept up to date.

        Raises:
            TrainingError: the loss or a probability is not finite.
            StopRequested: a signal came, and where training stood is saved.
            UnavailableError: it could not be saved.
        """
        chunks = self._make_chunks(start_step=self._start_step)
        meter = _Meter(total_steps=self.total_steps, start_step=self._start_step)
        display.start(num_steps=self.total_steps, done_steps=self._start_step, num_epochs=self._config.train.epochs)
        step = self._start_step
        with stop.deferred():
            with watchdog.watching():
                for result in self._runner.run(chunks, steps_per_epoch=self.steps_per_epoch):
                    step = result.step
                    phases.add("train" if meter.has_started else "compile", result.seconds)
                    meter.add(result)
                    self._take_in(result, meter, phases=phases, status=status, display=display)
                    watchdog.beat()
                    if stop.requested:
                        break
                    if writer.is_due():
                        with phases("checkpoint"):
                            writer.save(self._checkpoint(step))
                        status.write()
            if step > self._start_step:  # else it is the checkpoint that was restored
                with phases("checkpoint"):
                    self._num_interruptions += 1 if stop.requested else 0
                    writer.save_last(self._checkpoint(step), stop=stop)
        display.stop()

    def _take_in(
        self, result: ChunkResult, meter: "_Meter", *, phases: Phases, status: Status, display: Display
    ) -> None:
        """Keep count of a finished chunk, show it, and evaluate at the end of an epoch."""
        self._epoch_seconds += result.seconds
        status.step, status.epoch = result.step, (result.step - 1) // self.steps_per_epoch + 1
        self._show(result, meter, epoch=status.epoch, display=display)
        if result.step % self.steps_per_epoch == 0:
            with phases("evaluate"):
                self._end_epoch(result, epoch=status.epoch)
            status.accuracy = self.history[-1].test_accuracy

    def predict(self) -> evaluation.Probabilities:
        """Probabilities [M, C] of the test split."""
        return self._predictor(self._data.dataset.test_images)

    def _make_chunks(self, *, start_step: int) -> Any:
        dataset = self._data.dataset
        return pipeline.make_chunks(
            images=dataset.train_images,
            labels=dataset.train_labels,
            num_classes=len(dataset.class_names),
            image_shape=self._input_shape,
            global_batch_size=self._config.train.global_batch_size,
            steps_per_chunk=self._steps_per_chunk,
            seed=self._seed,
            start_step=start_step,
            stop_step=self.total_steps,
        )

    def _checkpoint(self, step: int) -> Checkpoint:
        meta = {
            "epoch_seconds": self._epoch_seconds,
            "interruptions": self._num_interruptions,
            "history": [asdict(record) for record in self.history],
        }
        return Checkpoint(step=step, result_digest=self._result_digest, arrays=self._runner.state(), meta=meta)

    def _end_epoch(self, result: ChunkResult, *, epoch: int) -> None:
        test_loss, test_accuracy = evaluation.loss_and_accuracy(self.predict(), self._data.dataset.test_labels)
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
        emit("epoch.end", step=result.step, **asdict(record))

    def _show(self, result: ChunkResult, meter: "_Meter", *, epoch: int, display: Display) -> None:
        rate, eta_seconds = meter.steps_per_second * self._config.train.global_batch_size, meter.eta_seconds
        display.update(
            step=result.step,
            epoch=epoch,
            loss=result.loss,
            accuracy=result.accuracy,
            rate=rate,
            eta_seconds=eta_seconds,
        )
        if meter.is_due():
            emit(
                "train.progress",
                step=result.step,
                epoch=epoch,
                loss=result.loss,
                accuracy=result.accuracy,
                examples_per_second=round(rate, 1),
                eta_seconds=round(eta_seconds, 1),
            )


class _Meter:
    """Speed and time left, smoothed over chunks; the first chunk is left out because it holds the compilation."""

    def __init__(self, *, total_steps: int, start_step: int) -> None:
        self._total_steps = total_steps
        self._step = start_step
        self._num_chunks = 0
        self._seconds_per_step = 0.0
        self._next_report = time.monotonic() + PROGRESS_SECONDS

    @property
    def has_started(self) -> bool:
        """Whether the first chunk is done."""
        return self._num_chunks > 0

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
        if time.monotonic() < self._next_report:
            return False
        self._next_report = time.monotonic() + PROGRESS_SECONDS
        return True
