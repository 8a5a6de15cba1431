"""What Prometheus is told: plain values that the run sets, as series at the time of a scrape.

Owns the names, types and help of the series, the same in /metrics, on the Pushgateway and in metrics.prom. Does not know how
they leave the process (`exposition.py`).
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from job import clock
from job.contract import ExitCode
from job.observe.phases import PHASES, Phases
from job.observe.termination import Status
from job.store.store import Traffic

PREFIX = "mnist_train_"

_MAX_CLASSES = 10
"""With more of them the recall of each class would be more series than a target should have; metrics.json has them all."""
_MAX_METRICS = 16
"""Of `train.metrics` and of a compiled model together."""

_STEP_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)

_COUNTERS = {
    "steps": "Optimizer updates of the run, each counted once over all attempts.",
    "examples": "Training examples of the run, each counted once over all attempts.",
    "epochs": "Passes over the training split of the run, counted once over all attempts.",
    "attempts": "Attempts at the run that came as far as attempt.json.",
    "interruptions": "SIGTERM, SIGINT or SIGHUP during the training of the run.",
}

_GAUGES = {
    "loss": "Mean training loss of the epoch so far.",
    "accuracy": "Training accuracy of the epoch so far, 0 to 1.",
    "test_loss": "Mean loss on the test split when it was last scored.",
    "val_loss": "Mean loss on the validation split when it was last scored.",
    "val_accuracy": "Accuracy on the validation split when it was last scored, 0 to 1.",
    "learning_rate": "Of the update after the last epoch.",
    "examples_per_second": "Training speed, smoothed.",
    "checkpoint_seconds": "How long the last checkpoint took to be written.",
    "checkpoint_last_timestamp_seconds": "When the last checkpoint was written.",
    "checkpoint_step": "The step of the last checkpoint.",
    "goodput_ratio": "Time spent in training steps that were kept, over the wall time of all attempts.",
    "progress_ratio": "Steps made over steps to make, 0 to 1.",
    "eta_seconds": "Estimated seconds of the steps that are left.",
}

_OUTCOME = {
    "last_success_timestamp_seconds": "When a run last ended well; a failure leaves it as it is.",
    "last_run_timestamp_seconds": "When an attempt last ended, however it ended.",
    "duration_seconds": "How long the attempt took.",
    "exit_code": "Exit code of the attempt; docs/reference.md has the table.",
    "promoted": "1 when the run became the champion, else 0.",
    "champion_accuracy": "Test accuracy of the model that is served now.",
}

_TEST_ACCURACY = ("test_accuracy", "Accuracy on the test split, 0 to 1.")


@dataclass(slots=True, kw_only=True)
class Metrics:
    """The series of one attempt. Set by its threads, read by the thread of a scrape: every value is replaced whole.

    Attributes:
        is_chief: whether this process tells about the run; another worker tells about itself only, so that sums over pods count
            the run once.
        traffic: requests to the store, counted by every `Store` that was opened with it.
        labels: of `info`; what is not known yet is empty.
    """

    status: Status
    phases: Phases
    is_chief: bool = True
    traffic: Traffic = field(default_factory=Traffic)
    labels: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(
            ("version", "image", "run", "dataset", "precision", "replicas", "workers"), ""
        )
    )
    _values: dict[str, float] = field(default_factory=dict)
    _recalls: Mapping[str, float] = field(default_factory=dict)
    _metrics: Mapping[str, float] = field(default_factory=dict)
    _step_counts: list[int] = field(default_factory=lambda: [0] * (len(_STEP_SECONDS) + 1))
    _step_seconds: float = 0.0

    @staticmethod
    def gauges() -> Iterable[str]:
        """Names that `set` takes."""
        return _GAUGES

    @staticmethod
    def counters() -> Iterable[str]:
        """Names that `count` takes."""
        return _COUNTERS

    def describe(self, **labels: object) -> None:
        """Say what is known by now about the run."""
        assert labels.keys() <= self.labels.keys()
        self.labels = self.labels | {name: str(value) for name, value in labels.items()}

    def set(self, **gauges: float) -> None:
        """Set gauges by name."""
        assert gauges.keys() <= _GAUGES.keys()
        self._values.update(gauges)

    def count(self, counters: Mapping[str, int]) -> None:
        """Set how far the run is by now, over all attempts."""
        assert counters.keys() == _COUNTERS.keys()
        self._values.update(counters)

    def add_steps(self, num_steps: int, *, seconds: float) -> None:
        """Take in steps that one call made, `seconds` all together."""
        self._step_counts[bisect.bisect_left(_STEP_SECONDS, seconds / num_steps)] += num_steps
        self._step_seconds += seconds

    def checkpoint_saved(self, step: int, seconds: float) -> None:
        """A checkpoint was written."""
        self.set(
            checkpoint_step=step, checkpoint_seconds=seconds, checkpoint_last_timestamp_seconds=round(clock.now(), 3)
        )

    def set_recalls(self, recalls: Mapping[str, float]) -> None:
        """Recall by class, 0 to 1, on the test split."""
        self._recalls = recalls if len(recalls) <= _MAX_CLASSES else {}

    def set_metrics(self, metrics: Mapping[str, float]) -> None:
        """Metrics beyond loss and accuracy, by name, on the split that was last scored."""
        self._metrics = dict(list(metrics.items())[:_MAX_METRICS])

    def running(self) -> Iterator[Any]:
        """Families of everything but the outcome, as prometheus_client has them."""
        from prometheus_client.core import GaugeMetricFamily

        info = GaugeMetricFamily(f"{PREFIX}info", "What is trained, and with what.", labels=list(self.labels))
        info.add_metric(list(self.labels.values()), 1)
        yield info
        phase = GaugeMetricFamily(f"{PREFIX}phase", "1 for what the attempt does now.", labels=["phase"])
        current = self.phases.current
        for name in PHASES:
            phase.add_metric([name], float(name == current))
        yield phase
        yield from self._store_counters()
        if self.is_chief:
            yield from self._run()

    def _run(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, text in _COUNTERS.items():
            if name in self._values:
                yield CounterMetricFamily(PREFIX + name, text, value=self._values[name])
        yield from self._gauges(_GAUGES, self._values)
        yield from self._test_accuracy()
        recall = GaugeMetricFamily(
            f"{PREFIX}class_recall_ratio", "Recall by class on the test split.", labels=["digit"]
        )
        for name, value in self._recalls.items():
            recall.add_metric([name], value)
        yield recall
        metric = GaugeMetricFamily(
            f"{PREFIX}metric",
            "Metrics of train.metrics and of a compiled model, on the split that was last scored.",
            labels=["metric"],
        )
        for name, value in self._metrics.items():
            metric.add_metric([name], value)
        yield metric
        yield self._step_histogram()

    def outcome(self) -> Iterator[Any]:
        """Families of how the attempt ended; what is not known is left out, so that a push keeps what stood there."""
        yield from self._outcome()
        yield from self._test_accuracy()

    def everything(self) -> Iterator[Any]:
        """Families of `running` and `outcome`."""
        yield from self.running()
        yield from self._outcome()

    def _outcome(self) -> Iterator[Any]:
        status, now = self.status, round(clock.now(), 3)
        assert status.code is not None
        values = {
            "last_success_timestamp_seconds": now if status.code == ExitCode.OK else None,
            "last_run_timestamp_seconds": now,
            "duration_seconds": status.seconds,
            "exit_code": int(status.code),
            "promoted": None if status.promoted is None else int(status.promoted),
            "champion_accuracy": status.champion_accuracy,
        }
        yield from self._gauges(_OUTCOME, {name: value for name, value in values.items() if value is not None})

    def _gauges(self, table: Mapping[str, str], values: Mapping[str, float]) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        for name, text in table.items():
            if name in values:
                yield GaugeMetricFamily(PREFIX + name, text, value=values[name])

    def _test_accuracy(self) -> Iterator[Any]:
        name, text = _TEST_ACCURACY
        if self.status.accuracy is not None:
            yield from self._gauges({name: text}, {name: self.status.accuracy})

    def _step_histogram(self) -> Any:
        from prometheus_client.core import HistogramMetricFamily

        total, buckets = 0, []
        for bound, count in zip((*_STEP_SECONDS, "+Inf"), self._step_counts, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        text = "Seconds of a step, as the mean over the steps of one call; the first call, which compiles, is left out."
        return HistogramMetricFamily(f"{PREFIX}step_seconds", text, buckets=buckets, sum_value=self._step_seconds)

    def _store_counters(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        requests = CounterMetricFamily(f"{PREFIX}store_requests", "Requests to the store.", labels=["verb", "outcome"])
        for (verb, outcome), number in sorted(self.traffic.requests.items()):
            requests.add_metric([verb, outcome], number)
        yield requests
        yield CounterMetricFamily(
            f"{PREFIX}store_retries", "Requests to the store that were made again.", value=self.traffic.num_retries
        )
