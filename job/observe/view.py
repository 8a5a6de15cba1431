"""What an attempt tells about itself: to the bar on a terminal, to the metrics, and to the termination message.

The one place that knows all three. Training and publication call a `View`, and know nothing of what is behind it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from job.observe.metrics import Champion, Metrics
from job.observe.progress import Display
from job.observe.termination import Status
from job.texts import say_placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training is after a chunk of steps.

    Attributes:
        step: optimizer updates made in the whole run, of `total_steps`.
        epoch: the running one, from 1.
        loss, accuracy: of the running epoch so far.
        examples_per_second, eta_seconds: smoothed.
        counters: what the run has made over all attempts.
        goodput: where the time of all attempts went, as `Ledger.goodput` has it.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    accuracy: float
    examples_per_second: float
    eta_seconds: float
    counters: Mapping[str, int]
    goodput: Mapping[str, Any]


class View:
    """Takes what happens, in the order in which an attempt comes to it."""

    def __init__(self, *, display: Display, metrics: Metrics, status: Status) -> None:
        self._display, self._metrics, self._status = display, metrics, status

    def prepared(self, *, dataset: str, digest: str | None, num_replicas: int, num_workers: int) -> None:
        """Data and devices are there."""
        self._metrics.dataset_digest = digest or ""
        self._metrics.describe(dataset=dataset, replicas=num_replicas)
        if num_replicas > 1:
            self._display.placement = say_placement(num_workers=num_workers, num_replicas=num_replicas)

    def registered(self, attempt: str, *, goodput: Callable[[], Mapping[str, Any]]) -> None:
        """The attempt has its id, and can say where the time of all attempts went."""
        self._status.attempt, self._status.goodput = attempt, goodput
        self._metrics.registered()

    def run_started(self, seconds: float) -> None:
        """The first attempt at the run started then, in seconds since the epoch."""
        self._metrics.set(run_start_timestamp_seconds=round(seconds, 3))

    def checkpoint_restored(self, step: int, *, saved_seconds: float) -> None:
        """The attempt goes on from a checkpoint that was made at that time."""
        self._metrics.checkpoint_restored(step, saved_seconds)

    def training_starts(self, *, step: int, total_steps: int, epochs: int, counters: Mapping[str, int]) -> None:
        """The newest checkpoint is restored, or there is none."""
        self._status.step = step
        self._metrics.restored(counters)
        self._display.start(num_steps=total_steps, done_steps=step, num_epochs=epochs)

    def set(self, **gauges: float) -> None:
        """Set metrics by name, such as `view.set(learning_rate=0.1)`; `metrics.py` has the names."""
        self._metrics.set(**gauges)

    def count(self, counters: Mapping[str, int]) -> None:
        """The run has made so much by now, over all attempts."""
        self._metrics.count(counters)

    def steps_timed(self, num_steps: int, *, seconds: float) -> None:
        """One call made so many steps, which took `seconds` all together."""
        self._metrics.add_steps(num_steps, seconds=seconds)

    def chunk(self, progress: Progress) -> None:
        """A chunk of steps is done."""
        now = progress
        self._status.step, self._status.epoch = now.step, now.epoch
        self._display.update(
            step=now.step,
            epoch=now.epoch,
            loss=now.loss,
            accuracy=now.accuracy,
            rate=now.examples_per_second,
            eta_seconds=now.eta_seconds,
        )
        self._metrics.count(now.counters)
        self._metrics.set(
            loss=now.loss,
            accuracy=now.accuracy,
            examples_per_second=now.examples_per_second,
            eta_seconds=now.eta_seconds,
            progress_ratio=now.step / now.total_steps,
        )
        self._metrics.set_goodput(now.goodput)

    def epoch_ends(
        self,
        *,
        test_accuracy: float | None = None,
        metrics: Mapping[str, float] | None = None,
        **losses_and_validation: float,
    ) -> None:
        """An epoch is over; the model was scored on the validation split or the test split, or on none.

        Args:
            metrics: more of them, by name.
            losses_and_validation: `test_loss`, or `val_loss` and `val_accuracy`.
        """
        if metrics:
            self._metrics.set_metrics(metrics)
        if test_accuracy is not None:
            self._status.accuracy = test_accuracy
        self.set(**losses_and_validation)

    def checkpoint_starts(self) -> None:
        """A checkpoint is being written: from now on the termination message says how far training is."""
        self._status.write()

    def checkpoint_saved(self, step: int, seconds: float) -> None:
        """A checkpoint was written; called on the writer's thread."""
        self._metrics.checkpoint_saved(step, seconds)

    def training_ends(self) -> None:
        """There are no more steps."""
        self._display.stop()

    def evaluated(self, recalls: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        """Recall by class, 0 to 1, and metrics beyond loss and accuracy, both on the test split."""
        self._metrics.set_recalls(recalls)
        self._metrics.set_metrics(metrics)

    def committed(self, commit_key: str, *, test_accuracy: float) -> None:
        """The run has a result: this attempt's, or that of another."""
        self._status.commit, self._status.accuracy = commit_key, test_accuracy

    def decided(self, verdict: str) -> None:
        """The gate was asked."""
        self._metrics.verdict = self._status.verdict = verdict
        self._status.promoted = verdict == "promoted"

    def champion_is(self, accuracy: float, *, version: int, when: str) -> None:
        """How good the model is that is served now, and since when it is."""
        self._metrics.champion = Champion(accuracy=accuracy, version=version, when=when)
