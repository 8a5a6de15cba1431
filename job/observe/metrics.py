"""What Prometheus is told: plain values that the run sets, as series at the time of a scrape.

Owns the names, types and help of the series, the same in /metrics, on the Pushgateway and in metrics.prom. Does not know how
they leave the process (`exposition.py`).
"""

import bisect
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from job import clock
from job.contract import ExitCode, commit_key
from job.observe.phases import PHASES, Phases
from job.observe.termination import OUTCOMES, Status
from job.store.store import OUTCOMES as OF_REQUESTS
from job.store.store import VERBS, Traffic
from job.texts import one_line

PREFIX = "mnist_train_"

_MAX_CLASSES = 10
"""With more of them the recall of each class would be more series than a target should have; metrics.json has them all."""
_MAX_METRICS = 16
"""Of `train.metrics` and of a compiled model together."""
_MAX_EVENTS = 8
"""Warnings with a series each; those of more events are counted together, as `other`."""
_MAX_LABEL_CHARACTERS = 200
_DIGEST_CHARACTERS = 12

VERDICTS = ("promoted", "same", "refused")
"""Of the gate: a test compares them with `Verdict` in registry/rules.py, which this room does not see."""
END = "end"
"""The last value of `phase`: how the attempt ended is known."""

_STEP_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)

_COUNTERS = {
    "steps": "Optimizer updates that this process made.",
    "examples": "Training examples that this process used.",
    "epochs": "Epochs that this process ended.",
    "attempts": "Attempts of this process that came as far as attempt.json: 0 or 1.",
    "interruptions": "SIGTERM, SIGINT or SIGHUP during the training, after which this process saves: 0 or 1.",
}
"""All start at 0 with their process, as Prometheus expects: `increase()` is then right whatever a killed attempt loses, also
where the next one answers on the same address (docs/adr/0041)."""

_GAUGES = {
    "loss": "Mean training loss of the epoch so far.",
    "accuracy": "Training accuracy of the epoch so far, 0 to 1.",
    "test_loss": "Mean loss on the test split when it was last scored.",
    "val_loss": "Mean loss on the validation split when it was last scored.",
    "val_accuracy": "Accuracy on the validation split when it was last scored, 0 to 1.",
    "learning_rate": "Of the update after the last epoch.",
    "examples_per_second": "Training speed, smoothed.",
    "checkpoint_seconds": "How long the last checkpoint took to be written.",
    "checkpoint_last_timestamp_seconds": "When the newest checkpoint was written, by this attempt or the one before.",
    "checkpoint_step": "The step of the newest checkpoint.",
    "run_steps": "Optimizer updates of the run, each counted once over all attempts.",
    "run_attempts": "Attempts at the run that came as far as attempt.json.",
    "run_interruptions": "Interruptions of the run, over all attempts.",
    "run_start_timestamp_seconds": "When the first attempt at the run started.",
    "goodput_ratio": "Time spent in training steps that were kept, over the wall time of all attempts.",
    "progress_ratio": "Steps made over steps to make, 0 to 1.",
    "eta_seconds": "Estimated seconds of the steps that are left.",
}

_OUTCOME = {
    "last_success_timestamp_seconds": "When an attempt last ended with exit code 0; a failure leaves it as it is.",
    "last_run_timestamp_seconds": "When an attempt last ended, however it ended.",
    "last_start_timestamp_seconds": "When an attempt last started; pushed at the start too.",
    "duration_seconds": "How long the last attempt that trained took.",
    "run_duration_seconds": "Seconds of all attempts at the last run that was trained to its end, without the time between them.",
    "exit_code": "Exit code of the attempt; docs/reference.md has the table.",
    "promoted": "1 when the run became the champion, else 0; gate_verdict says more.",
    "champion_accuracy": "Test accuracy of the champion.",
    "champion_version": "Version of the champion.",
    "champion_timestamp_seconds": "When the champion became it.",
}

_PROCESS = ("process_resident_memory_bytes", "process_cpu_seconds", "process_start_time_seconds", "process_open_fds")

_TEST_ACCURACY = ("test_accuracy", "Accuracy on the test split, 0 to 1.")


class WarningCounts(logging.Handler):
    """Counts the warnings of the log by event."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.by_event: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count one line; `logging` calls this under the handler's own lock."""
        if record.levelno == logging.WARNING:
            self.by_event[record.getMessage()] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The model that is served after this attempt.

    Attributes:
        when: it became the champion then; ISO 8601.
    """

    accuracy: float
    version: int
    when: str


@dataclass(slots=True, kw_only=True)
class Metrics:
    """The series of one attempt. Set by its threads, read by the thread of a scrape: every value is replaced whole.

    Attributes:
        is_chief: whether this process tells about the run; another worker tells about itself only, so that sums over pods count
            the run once.
        traffic: requests to the store, counted by every `Store` that was opened with it.
        warnings: to be given to `logs.configure`.
        memory_limit_bytes: of the container; None where it has none.
        labels: of `info`, from the settings; what is found otherwise takes their place.
    """

    status: Status
    phases: Phases
    is_chief: bool = True
    traffic: Traffic = field(default_factory=Traffic)
    warnings: WarningCounts = field(default_factory=WarningCounts)
    memory_limit_bytes: int | None = None
    labels: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(
            ("version", "image", "run", "dataset", "precision", "replicas", "workers", "origin"), ""
        )
    )
    champion: Champion | None = None
    verdict: str | None = None
    """Of the gate about this run; None where nothing was decided."""
    has_trained: bool = False
    """Whether this attempt came to the training: else how long it took says nothing about a run."""
    dataset_digest: str = ""
    _started_seconds: float = field(init=False)
    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    _restored: Mapping[str, int] = field(default_factory=dict)
    _values: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _goodput_seconds: Mapping[str, float] = field(default_factory=dict)
    _recalls: Mapping[str, float] = field(default_factory=dict)
    _metrics: Mapping[str, float] = field(default_factory=dict)
    _step_counts: list[int] = field(default_factory=lambda: [0] * (len(_STEP_SECONDS) + 1))
    _step_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._started_seconds = clock.now() - (clock.elapsed() - self.status.started_seconds)

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
        """Set gauges by name; one that is no finite number is left out, as averages over it would be none either."""
        assert gauges.keys() <= _GAUGES.keys()
        with self._lock:  # the training and the writer of checkpoints set them
            values = self._values | gauges
            self._values = {name: value for name, value in values.items() if math.isfinite(value)}

    def registered(self) -> None:
        """The attempt is recorded in the store."""
        self._counts = self._counts | {"attempts": 1}

    def restored(self, counters: Mapping[str, int]) -> None:
        """Set how far the run was, over all attempts, when this one went on."""
        self.has_trained, self._restored = True, counters
        self.count(counters)

    def count(self, counters: Mapping[str, int]) -> None:
        """Set how far the run is by now, over all attempts."""
        assert counters.keys() == _COUNTERS.keys()
        own = {name: max(0, counters[name] - self._restored.get(name, 0)) for name in counters if name != "attempts"}
        self._counts = self._counts | own
        self.set(**{f"run_{name}": counters[name] for name in ("steps", "attempts", "interruptions")})

    def set_goodput(self, goodput: Mapping[str, Any]) -> None:
        """Set where the time of all attempts went, as `Ledger.goodput` has it."""
        self.set(goodput_ratio=goodput["ratio"])
        self._goodput_seconds = goodput["seconds"]

    def add_steps(self, num_steps: int, *, seconds: float) -> None:
        """Take in steps that one call made, `seconds` all together."""
        self._step_counts[bisect.bisect_left(_STEP_SECONDS, seconds / num_steps)] += num_steps
        self._step_seconds += seconds

    def checkpoint_saved(self, step: int, seconds: float) -> None:
        """A checkpoint was written."""
        self.set(
            checkpoint_step=step, checkpoint_seconds=seconds, checkpoint_last_timestamp_seconds=round(clock.now(), 3)
        )

    def checkpoint_restored(self, step: int, saved_seconds: float) -> None:
        """The attempt goes on from a checkpoint that was made at that time."""
        self.set(checkpoint_step=step, checkpoint_last_timestamp_seconds=round(saved_seconds, 3))

    def set_recalls(self, recalls: Mapping[str, float]) -> None:
        """Recall by class, 0 to 1, on the test split."""
        self._recalls = recalls if len(recalls) <= _MAX_CLASSES else {}

    def set_metrics(self, metrics: Mapping[str, float]) -> None:
        """Metrics beyond loss and accuracy, by name, on the split that was last scored."""
        self._metrics = dict(list(metrics.items())[:_MAX_METRICS])

    def running(self) -> Iterator[Any]:
        """Families of everything but the outcome, as prometheus_client has them."""
        labels = {name: _label(value) for name, value in self.labels.items()}
        yield _gauge("info", "What is trained, and with what.", [(labels, 1.0)])
        current = END if self.status.code is not None else self.phases.current
        yield _one_hot("phase", "1 for what the attempt does now.", (*PHASES, END), current)
        since = "Seconds since the last step, evaluated batch or change of the phase."
        yield _gauge("seconds_since_progress", since, [({}, self.phases.seconds_since_beat)])
        yield from self._warnings()
        yield from self._store_counters()
        yield from self._process()
        if self.is_chief:
            yield from self._run()

    def start(self) -> Iterator[Any]:
        """Families that are pushed when the attempt starts."""
        yield from self._gauges(_OUTCOME, {"last_start_timestamp_seconds": round(self._started_seconds, 3)})

    def outcome(self) -> Iterator[Any]:
        """Families of how the attempt ended; what is not known is left out, so that a push keeps what stood there.

        So a night that was skipped, or that ended before it trained, changes no duration, accuracy, verdict or goodput.
        """
        self._take_goodput()
        yield from self._outcome()
        if self._has_result():
            yield from self._test_accuracy()
        if self.has_trained:
            names = ("run_start_timestamp_seconds", "goodput_ratio")
            yield from self._gauges({name: _GAUGES[name] for name in names}, self._values)
            yield from self._goodput()
        yield from self._dataset()

    def everything(self) -> Iterator[Any]:
        """Families of `running` and `outcome`."""
        self._take_goodput()
        yield from self.running()
        yield from self._outcome()

    def _run(self) -> Iterator[Any]:
        for name, text in _COUNTERS.items():
            yield _counter(name, text, [({}, self._counts[name])])
        yield _counter("checkpoint_failures", "Checkpoints that could not be written.", [({}, self._failures())])
        yield from self._gauges(_GAUGES, self._values)
        yield from self._goodput()
        yield from self._dataset()
        if (
            self.status.commit is None or self._has_result()
        ):  # else it is that of the champion, which needs no other run
            yield from self._test_accuracy()
        yield from _by_name("class_recall_ratio", "Recall by class on the test split.", "digit", self._recalls)
        text = "Metrics of train.metrics and of a compiled model, on the split that was last scored."
        yield from _by_name("metric", text, "metric", self._metrics)
        yield self._step_histogram()

    def _has_result(self) -> bool:
        """Whether the run is committed: `status.commit` names the champion's run when the attempt was skipped."""
        return bool(self.status.run) and self.status.commit == commit_key(self.status.run)

    def _take_goodput(self) -> None:
        if self.has_trained and self.status.goodput:
            self.set_goodput(self.status.goodput())

    def _outcome(self) -> Iterator[Any]:
        status, now, champion = self.status, round(clock.now(), 3), self.champion
        assert status.code is not None
        values = {
            "last_success_timestamp_seconds": now if status.code == ExitCode.OK else None,
            "last_run_timestamp_seconds": now,
            "last_start_timestamp_seconds": round(self._started_seconds, 3),
            "duration_seconds": status.seconds if self.has_trained else None,
            "run_duration_seconds": self._run_seconds(),
            "exit_code": int(status.code),
            "promoted": None if self.verdict is None else int(self.verdict == "promoted"),
            "champion_accuracy": champion.accuracy if champion else None,
            "champion_version": champion.version if champion else None,
            "champion_timestamp_seconds": clock.seconds_of(champion.when) if champion else None,
        }
        yield from self._gauges(_OUTCOME, {name: value for name, value in values.items() if value is not None})
        yield _one_hot("outcome", "1 for how the attempt ended.", OUTCOMES, status.outcome)
        if self.verdict is not None:
            yield _one_hot("gate_verdict", "1 for the gate's last decision.", VERDICTS, self.verdict)

    def _run_seconds(self) -> float | None:
        """Of all attempts at a run that this one trained to its end."""
        return round(sum(self._goodput_seconds.values()), 3) if self.has_trained and self._has_result() else None

    def _gauges(self, table: Mapping[str, str], values: Mapping[str, float]) -> Iterator[Any]:
        for name, text in table.items():
            if name in values and math.isfinite(values[name]):
                yield _gauge(name, text, [({}, values[name])])

    def _test_accuracy(self) -> Iterator[Any]:
        name, text = _TEST_ACCURACY
        if self.status.accuracy is not None:
            yield from self._gauges({name: text}, {name: self.status.accuracy})

    def _goodput(self) -> Iterator[Any]:
        text = "Where the time of all attempts went; `train` is what was kept."
        yield from _by_name("goodput_seconds", text, "category", self._goodput_seconds)

    def _dataset(self) -> Iterator[Any]:
        if self.dataset_digest:
            labels = {"dataset": _label(self.labels["dataset"]), "digest": self.dataset_digest[:_DIGEST_CHARACTERS]}
            yield _gauge(
                "dataset_info", "The data of the last attempt that read them; the digest's beginning.", [(labels, 1.0)]
            )

    def _failures(self) -> int:
        return self.warnings.by_event["checkpoint.failed"]

    def _warnings(self) -> Iterator[Any]:
        counts = list(self.warnings.by_event.copy().items())
        shown, rest = counts[:_MAX_EVENTS], sum(number for _, number in counts[_MAX_EVENTS:])
        told = dict(shown) | ({"other": rest} if rest else {})
        samples = [({"event": _label(event)}, number) for event, number in told.items()]
        if samples:
            yield _counter("warnings", "Warnings in the log, by event.", samples)

    def _process(self) -> Iterator[Any]:
        """Memory, time and descriptors of this process, under the names that every Prometheus client uses."""
        from prometheus_client import PROCESS_COLLECTOR

        if self.memory_limit_bytes:
            text = "Memory limit of the container."
            yield _gauge("memory_limit_bytes", text, [({}, self.memory_limit_bytes)])
        yield from (family for family in PROCESS_COLLECTOR.collect() if family.name in _PROCESS)

    def _step_histogram(self) -> Any:
        from prometheus_client.core import HistogramMetricFamily

        total, buckets = 0, []
        for bound, count in zip((*_STEP_SECONDS, "+Inf"), self._step_counts, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        text = "Seconds of a step, as the mean over the steps of one call; the first call, which compiles, is left out."
        return HistogramMetricFamily(f"{PREFIX}step_seconds", text, buckets=buckets, sum_value=self._step_seconds)

    def _store_counters(self) -> Iterator[Any]:
        counts = {(verb, outcome): 0 for verb in VERBS for outcome in OF_REQUESTS} | self.traffic.requests
        samples = [({"verb": verb, "outcome": outcome}, number) for (verb, outcome), number in sorted(counts.items())]
        yield _counter("store_requests", "Requests to the store.", samples)
        text = "Requests to the store that were made again."
        yield _counter("store_retries", text, [({}, self.traffic.num_retries)])


_Samples = Iterable[tuple[Mapping[str, str], float]]


def _gauge(name: str, text: str, samples: _Samples) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return _fill(GaugeMetricFamily, name, text, samples)


def _counter(name: str, text: str, samples: _Samples) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return _fill(CounterMetricFamily, name, text, samples)


def _fill(family: Callable[..., Any], name: str, text: str, samples: _Samples) -> Any:
    listed = [(list(labels.items()), value) for labels, value in samples]
    names = [label for label, _ in listed[0][0]] if listed else []
    made = family(f"{PREFIX}{name}", text, labels=names)
    for labels, value in listed:
        made.add_metric([text for _, text in labels], value)
    return made


def _one_hot(name: str, text: str, values: Iterable[str], current: str) -> Any:
    return _gauge(name, text, [({name.rpartition("_")[2]: value}, float(value == current)) for value in values])


def _by_name(name: str, text: str, label: str, values: Mapping[str, float]) -> Iterator[Any]:
    """A series for each finite value; names that are one label are one series: two would be refused."""
    told: dict[str, float] = {}
    for key, value in values.items():
        if math.isfinite(value):
            told.setdefault(_label(key), value)
    if told:
        yield _gauge(name, text, [({label: key}, value) for key, value in told.items()])


def _label(value: str) -> str:
    """A label's value: one visible line without credentials that is UTF-8, whatever somebody has named so."""
    return one_line(value, limit=_MAX_LABEL_CHARACTERS)
