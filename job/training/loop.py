"""The training loop: from a step number to the last step, with metrics, progress and the stop signal between chunks.

Knows steps, epochs, checkpoints and signals; what a step computes is behind `Steps`. Never imports TensorFlow.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from job import clock
from job.config import TrainSection
from job.contract import Event
from job.datasets.dataset import Labels
from job.digests import canonical_json, digest_of_arrays
from job.errors import IntegrityError
from job.logs import emit
from job.observe.view import Progress, View
from job.runs.checkpoint import Checkpoint
from job.runs.checkpoint_writer import CheckpointWriter
from job.runs.goodput import Ledger
from job.signals import StopSignal
from job.training import evaluation, pipeline
from job.training.history import EpochRecord, best_epoch, is_evaluated, stops_at
from job.training.steps import ChunkResult, position_of
from job.training.watchdog import Watchdog
from job.training.workers import Exchange, exchange_with_nobody

PROGRESS_SECONDS = 10.0
"""Time between two train.progress events."""

_SMOOTHING = 0.2
_BEST = "best/"
"""Before the names of the best epoch's arrays in a checkpoint."""

Measure = Callable[[evaluation.Probabilities, Labels], Mapping[str, float]]
"""More metrics from probabilities [N, C] and labels [N], by name."""


class Steps(Protocol):
    """What makes optimizer updates: `steps.StepRunner`, or plain numpy in the tests that kill things."""

    def run(self, *, start_step: int, is_asked_to_stop: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Train from a step on, yielding after each chunk; see `ChunkResult.stopping`."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step depends on, and the running sums: a copy, by name."""

    def common_state(self) -> dict[str, NDArray[Any]]:
        """The part of `state` that is equal on all workers."""

    def model_state(self) -> dict[str, NDArray[Any]]:
        """The model's part of `state`, without optimizer and sums: a copy, by name."""

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set what `state` returned; `IntegrityError` when it is of another model."""

    def load_model(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set what `model_state` returned; no step follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples that the model is scored on.

    Attributes:
        predict: probabilities [N, C] of the model as it is now, in the order of `labels`.
        labels: int64 [N].
    """

    predict: Callable[[], evaluation.Probabilities]
    labels: Labels


class Training:
    """The steps of one run, with checkpoints, evaluation and progress; ready to run from any step."""

    def __init__(
        self,
        steps: Steps,
        *,
        settings: TrainSection,
        num_examples: int,
        test: Split,
        validation: Split | None = None,
        measure: Measure = lambda probabilities, labels: {},
        learning_rate: Callable[[], float | None] = lambda: None,
        exchange: Exchange = exchange_with_nobody,
    ) -> None:
        """Nothing is trained yet.

        Args:
            num_examples: in the training split.
            validation: scored in place of the test split after each evaluated epoch, when there is one.
            measure: more metrics of what is scored then.
            learning_rate: of the update that follows.
            exchange: how the workers talk to each other.
        """
        self._steps, self._settings, self._num_examples = steps, settings, num_examples
        self._test, self._validation, self._measure, self._exchange = test, validation, measure, exchange
        self.predict, self._learning_rate = test.predict, learning_rate
        self.steps_per_epoch = pipeline.steps_per_epoch(num_examples, global_batch_size=settings.global_batch_size)
        self._start_step = 0
        self._epoch_seconds = 0.0
        self._best: dict[str, NDArray[Any]] = {}
        self.history: list[EpochRecord] = []
        self._look_for_end()

    def _look_for_end(self) -> None:
        """Decide from the history when training ends: at `train.epochs`, or early."""
        self.stopped_epoch = stops_at(self.history, self._settings)
        self.total_steps = self.steps_per_epoch * (self.stopped_epoch or self._settings.epochs)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up where a checkpoint was made.

        Raises:
            IntegrityError: it is not of this model and optimizer.
        """
        arrays = checkpoint.arrays
        self._steps.restore({name: array for name, array in arrays.items() if not name.startswith(_BEST)})
        self._start_step = checkpoint.step
        self._epoch_seconds = checkpoint.meta["epoch_seconds"]
        self.history = [EpochRecord.of(record) for record in checkpoint.meta["history"]]
        self._look_for_end()
        self._best = {name.removeprefix(_BEST): arrays[name] for name in arrays if name.startswith(_BEST)}
        self._check_best()

    def _check_best(self) -> None:
        """Refuse a checkpoint whose best weights are not those that its history tells of."""
        has_best = self._settings.keep == "best" and best_epoch(self.history, self._settings) is not None
        model = self._steps.model_state() if has_best else {}
        odd = {(name, array.shape, str(array.dtype)) for name, array in model.items()}
        odd ^= {(name, array.shape, str(array.dtype)) for name, array in self._best.items()}
        if odd:
            raise IntegrityError(f"checkpoint: the weights of its best epoch are not those of this model: {min(odd)}")

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
        counters = self.counters(step, ledger=ledger)
        view.training_starts(step=step, total_steps=self.total_steps, epochs=self._settings.epochs, counters=counters)

        def checkpoint() -> Checkpoint:
            return self._make_checkpoint(step, result_digest=result_digest, ledger=ledger, is_end=bool(stop.requested))

        is_left = step < self.total_steps
        with stop.deferred():
            with watchdog.watching(), phases("compile"):
                for result in self._steps.run(start_step=step, is_asked_to_stop=stop.is_requested) if is_left else ():
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
                    if self.stopped_epoch:
                        break
                    if writer and step < self.total_steps and writer.is_due():
                        with phases("checkpoint"):
                            writer.save(checkpoint())
                        view.checkpoint_starts()
            if writer and step > self._start_step:  # else it is the checkpoint that was restored
                with phases("checkpoint"):
                    ledger.num_interruptions += 1 if stop.requested else 0
                    view.count(self.counters(step, ledger=ledger))
                    writer.save_last(checkpoint(), stop=stop)
        view.training_ends()

    def _make_checkpoint(self, step: int, *, result_digest: str, ledger: Ledger, is_end: bool) -> Checkpoint:
        meta = {
            "epoch_seconds": self._epoch_seconds,
            "history": [record.to_json() for record in self.history],
            "counters": self.counters(step, ledger=ledger),
            "ledger": ledger.to_meta(is_end=is_end),
        }
        return Checkpoint(step=step, result_digest=result_digest, arrays=self._state(), meta=meta)

    def counters(self, step: int, *, ledger: Ledger) -> dict[str, int]:
        """What was done up to a step, each step and example counted once, whatever was done again after a kill."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return {
            "steps": step,
            "examples": epoch * self._num_examples + step_in_epoch * self._settings.global_batch_size,
            "epochs": epoch,
            "attempts": ledger.num_attempts,
            "interruptions": ledger.num_interruptions,
        }

    def _state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step and the result depend on, the best epoch's weights included."""
        return self._steps.state() | {_BEST + name: array for name, array in self._best.items()}

    def state_digest(self, *, by_position: bool = False) -> str:
        """SHA-256 over weights, optimizer and seed-generator variables, metric sums, history, and the best epoch's weights where
        `train.keep` is best; times are left out. To be asked before `load_result`.

        Equal in two runs when, and only when, every number that training produced is equal, and every name of a variable.

        Args:
            by_position: leave the names out.
        """
        results = canonical_json([record.results() for record in self.history])
        arrays = sorted(self._state().items())
        return digest_of_arrays(_by_position(arrays) if by_position else arrays, then=results)

    def common_digest(self) -> str:
        """SHA-256 over everything that has to be equal on all workers."""
        common = self._steps.common_state()
        best = {_BEST + name: array for name, array in self._best.items() if name in common}
        return digest_of_arrays(_by_position(sorted((common | best).items())))

    def load_result(self) -> None:
        """Put the weights that become the result into the model: with `train.keep=best` those of the best epoch."""
        if self._best:
            self._steps.load_model(self._best)

    def decisions(self) -> dict[str, Any]:
        """What was decided on the validation split, for COMMIT and metrics.json; nothing without one.

        `stopped_epoch` is null when training did not end early.
        """
        if self._validation is None:
            return {}
        return {"best_epoch": best_epoch(self.history, self._settings), "stopped_epoch": self.stopped_epoch}

    def validation_scores(self) -> dict[str, float]:
        """Loss and accuracy of the result on the validation split, with its number of examples; nothing without one."""
        if self._validation is None:
            return {}
        best = best_epoch(self.history, self._settings) if self._best else None
        kept = self.history[best - 1 if best else -1]
        loss, accuracy = kept.val_loss, kept.val_accuracy
        if loss is None or accuracy is None or not math.isfinite(loss) or not math.isfinite(accuracy):
            # This attempt evaluates its last epoch: an older one did not, or its checkpoint says otherwise.
            raise IntegrityError(
                "checkpoint: its history lacks the validation scores of the epoch that is kept; start another run"
            )
        num_examples = len(self._validation.labels)
        return {"val_loss": loss, "val_accuracy": accuracy, "val_examples": num_examples}

    def _take_in(self, result: ChunkResult, meter: "_Meter", *, ledger: Ledger, view: View) -> None:
        """Keep count of a finished chunk, show it, and end the epoch when it was its last."""
        self._epoch_seconds += result.seconds
        epoch = (result.step - 1) // self.steps_per_epoch + 1
        self._show(result, meter, epoch=epoch, ledger=ledger, view=view)
        if result.step % self.steps_per_epoch == 0:
            self._end_epoch(result, epoch=epoch, ledger=ledger, view=view)

    def _end_epoch(self, result: ChunkResult, *, epoch: int, ledger: Ledger, view: View) -> None:
        """Evaluate, record, and decide from the records what is kept and whether training goes on."""
        scores: dict[str, Any] = {}
        with ledger.phases("evaluate"):
            if is_evaluated(epoch, self._settings):
                scores = self._evaluate()
            record = EpochRecord(
                epoch=epoch,
                loss=result.loss,
                accuracy=result.accuracy,
                **scores,
                learning_rate=self._learning_rate(),
                seconds=round(self._epoch_seconds, 4),
                examples_per_second=round(result.num_examples / self._epoch_seconds, 1),
            )
            self.history.append(record)
            self._epoch_seconds = 0.0
            emit(Event.EPOCH_END, step=result.step, **record.to_json())
            if self._settings.keep == "best" and best_epoch(self.history, self._settings) == epoch:
                self._best = self._steps.model_state()
        view.epoch_ends(**scores)
        if record.learning_rate is not None:
            view.set(learning_rate=record.learning_rate)
        self._look_for_end()
        if self.stopped_epoch:
            self._say_stopped(result.step)
            view.set(progress_ratio=1.0, eta_seconds=0.0)

    def _evaluate(self) -> dict[str, Any]:
        """Scores on the validation split, or on the test split without one: fields of an `EpochRecord`.

        Workers may differ in variables that each replica keeps for itself. So where scores decide, those of the chief do.
        """
        name, split = ("val", self._validation) if self._validation else ("test", self._test)
        probabilities = split.predict()
        loss, accuracy = evaluation.loss_and_accuracy(probabilities, split.labels)
        metrics = dict(self._measure(probabilities, split.labels))
        scores = {f"{name}_loss": loss, f"{name}_accuracy": accuracy, "metrics": metrics}
        if not self._settings.needs_validation:
            return scores
        told: dict[str, Any] = self._exchange(has_limit=False, scores=scores)[0]["scores"]
        return told

    def _say_stopped(self, step: int) -> None:
        settings, best = self._settings, best_epoch(self.history, self._settings)
        least = f" by more than {settings.early_stopping_min_delta:g}" if settings.early_stopping_min_delta else ""
        emit(
            Event.TRAIN_STOPPED_EARLY,
            step=step,
            epoch=self.stopped_epoch,
            best_epoch=best,
            reason=f"{settings.monitor} was not better{least} in {settings.early_stopping_patience} evaluations",
        )

    def _show(self, result: ChunkResult, meter: "_Meter", *, epoch: int, ledger: Ledger, view: View) -> None:
        progress = Progress(
            step=result.step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=result.loss,
            accuracy=result.accuracy,
            examples_per_second=meter.steps_per_second * self._settings.global_batch_size,
            eta_seconds=meter.eta_seconds,
            counters=self.counters(result.step, ledger=ledger),
            goodput=ledger.goodput(),
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
                eta_seconds=round(progress.eta_seconds, 1) if progress.examples_per_second else None,
            )


def _by_position(arrays: Iterable[tuple[str, NDArray[Any]]]) -> Iterator[tuple[str, NDArray[Any]]]:
    return ((position_of(name), array) for name, array in arrays)


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
