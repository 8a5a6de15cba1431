"""What each epoch came to, and what follows from it: the best epoch, and when training ends early.

Pure functions of the history, which every checkpoint holds: a run that was killed decides as one that was not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from job.config import TrainSection


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """What one epoch ended with.

    Attributes:
        epoch: 1-based.
        loss, accuracy: over the epoch's training examples, each before its own update.
        test_loss, test_accuracy: on the test split after the epoch; None when it was not evaluated, or a validation split was.
        val_loss, val_accuracy: on the validation split after the epoch; None when it was not evaluated, or there is none.
        metrics: more of the split that was evaluated, by name.
        learning_rate: of the update that follows the epoch; None in records of older versions.
        seconds: wall time of the epoch's steps, evaluation not included.
    """

    epoch: int
    loss: float
    accuracy: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float | None = None
    seconds: float
    examples_per_second: float

    def to_json(self) -> dict[str, Any]:
        """What is known of it, for checkpoints, log and metrics.json; `EpochRecord(**record.to_json())` is equal."""
        values = {of.name: getattr(self, of.name) for of in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value != {}}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "EpochRecord":
        """Take up a stored record, which `shapes.Epoch` has checked; what a newer version has added is left out."""
        return cls(**{of.name: record[of.name] for of in fields(cls) if of.name in record})

    def results(self) -> dict[str, Any]:
        """What the epoch computed, without how long it took. The learning rate follows from the settings and the step."""
        left_out = ("epoch", "learning_rate", "seconds", "examples_per_second")
        return {name: value for name, value in self.to_json().items() if name not in left_out}


def is_evaluated(epoch: int, settings: TrainSection) -> bool:
    """Whether the model is scored after this epoch (1-based): every `train.evaluate_every`, and the last one always."""
    return epoch % settings.evaluate_every == 0 or epoch == settings.epochs


def best_epoch(history: Sequence[EpochRecord], settings: TrainSection) -> int | None:
    """The evaluated epoch with the best `train.monitor`, the earliest of equal ones; None without a finite value."""
    best: tuple[int | None, float] = (None, -math.inf)
    for epoch, goodness in _goodness(history, settings):
        if goodness > best[1]:
            best = (epoch, goodness)
    return best[0]


def stops_at(history: Sequence[EpochRecord], settings: TrainSection) -> int | None:
    """The epoch after which training ends before `train.epochs`: the last of `train.early_stopping_patience` evaluations without
    an improvement of more than `train.early_stopping_min_delta`, as in Keras' EarlyStopping. None when it goes on.
    """
    best, num_waited = -math.inf, 0
    for epoch, goodness in _goodness(history, settings):
        is_better = goodness > best + settings.early_stopping_min_delta
        best, num_waited = (goodness, 0) if is_better else (best, num_waited + 1)
        if num_waited == settings.early_stopping_patience and epoch < settings.epochs:
            return epoch
    return None


def _goodness(history: Sequence[EpochRecord], settings: TrainSection) -> list[tuple[int, float]]:
    """(epoch, what is better the higher it is) of each evaluation on the validation split; what is not finite is -inf."""
    sign = -1 if settings.monitor == "val_loss" else 1
    values = [(record.epoch, getattr(record, settings.monitor)) for record in history]
    return [
        (epoch, sign * value if math.isfinite(value) else -math.inf) for epoch, value in values if value is not None
    ]
