"""Which epoch is the best and when training ends early: pure functions of the history."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.config import TrainSection
from job.training.history import EpochRecord, best_epoch, is_evaluated, stops_at


def history_of(*losses: float | None, name: str = "val_loss") -> list[EpochRecord]:
    """One record an epoch; None: it was not evaluated."""
    records = []
    for epoch, value in enumerate(losses, start=1):
        scores: dict[str, Any] = {} if value is None else {name: value}
        records.append(
            EpochRecord(epoch=epoch, loss=1.0, accuracy=0.5, seconds=0.1, examples_per_second=10.0, **scores)
        )
    return records


def settings_of(**fields: Any) -> TrainSection:
    return TrainSection(**{"epochs": 20, **fields})


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ((3, 2, 1), 3),
        ((3, 1, 2), 2),
        ((2, 1, 1), 2),  # of equal ones the earlier
        ((math.nan, 2, math.inf), 2),
        ((math.nan, math.inf), None),
        ((None, 2, None, 1, None), 4),
        ((), None),
    ],
)
def test_best_epoch_has_the_lowest_loss(losses: tuple[float | None, ...], best: int | None) -> None:
    assert best_epoch(history_of(*losses), settings_of()) == best


def test_best_epoch_has_the_highest_accuracy() -> None:
    settings = settings_of(monitor="val_accuracy")
    assert best_epoch(history_of(0.1, 0.9, 0.9, 0.5, name="val_accuracy"), settings) == 2
    assert best_epoch(history_of(1.0, 0.5), settings) is None, "the loss is not looked at"


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "stop"),
    [
        ((3, 2, 1), 1, 0, None),
        ((3, 2, 2), 1, 0, 3),  # not better is enough
        ((3, 2, 4, 1), 2, 0, None),
        ((3, 2, 4, 3), 2, 0, 4),
        ((3, None, 2, None, 4, None, 3), 2, 0, 7),  # counted in evaluations
        ((3, 2.9, 2.8, 2.7), 2, 0.5, 3),  # small steps do not add up
        ((3, 2.4, 1.8), 1, 0.5, None),
        ((3, math.nan, math.nan), 2, 0, 3),
        ((math.nan, math.nan), 2, 0, 2),
        ((3, 3, 3), None, 0, None),
    ],
)
def test_training_ends_when_patience_is_over(
    losses: tuple[float | None, ...], patience: int | None, min_delta: float, stop: int | None
) -> None:
    settings = settings_of(early_stopping_patience=patience, early_stopping_min_delta=min_delta)
    assert stops_at(history_of(*losses), settings) == stop


def test_min_delta_does_not_move_the_best_epoch() -> None:
    settings = settings_of(early_stopping_patience=2, early_stopping_min_delta=0.5)
    history = history_of(3, 2.9, 2.8)
    assert (stops_at(history, settings), best_epoch(history, settings)) == (3, 3)


def test_patience_that_is_over_with_the_last_epoch_stops_nothing_early() -> None:
    assert stops_at(history_of(1, 2, 3), settings_of(epochs=3, early_stopping_patience=2)) is None


@given(
    st.lists(st.one_of(st.none(), st.floats(-10, 10)), max_size=20), st.integers(1, 5), st.sampled_from((0.0, 0.1, 1.0))
)
def test_decision_is_made_once_and_stands(losses: list[float | None], patience: int, min_delta: float) -> None:
    """What follows the stopping epoch changes nothing, so every attempt that sees the history decides alike."""
    settings = settings_of(epochs=100, early_stopping_patience=patience, early_stopping_min_delta=min_delta)
    history = history_of(*losses)
    stop = stops_at(history, settings)
    for length in range(len(history) + 1):
        expected = stop if stop and length >= stop else None
        assert stops_at(history[:length], settings) == expected


@pytest.mark.parametrize(
    ("every", "evaluated"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (100, [7]), (6, [6, 7])]
)
def test_every_kth_epoch_and_the_last_are_evaluated(every: int, evaluated: list[int]) -> None:
    settings = settings_of(epochs=7, evaluate_every=every)
    assert [epoch for epoch in range(1, 8) if is_evaluated(epoch, settings)] == evaluated


def test_record_without_validation_is_written_and_counted_as_before() -> None:
    """The format of older checkpoints, and what their state digests are made of."""
    stored = {
        **{"epoch": 1, "loss": 2.0, "accuracy": 0.25, "test_loss": 1.5, "test_accuracy": 0.5},
        **{"seconds": 0.1, "examples_per_second": 10.0},
    }
    record = EpochRecord(**stored)  # type: ignore[arg-type] # as a checkpoint is read
    assert record.to_json() == stored
    assert record.results() == {"loss": 2.0, "accuracy": 0.25, "test_loss": 1.5, "test_accuracy": 0.5}


def test_record_comes_back_from_json() -> None:
    record = EpochRecord(
        epoch=2,
        loss=0.1,
        accuracy=0.2,
        val_loss=0.3,
        val_accuracy=0.4,
        metrics={"auc": 0.1 + 0.2},
        seconds=0.5,
        examples_per_second=6.0,
    )
    assert EpochRecord(**json.loads(json.dumps(record.to_json()))) == record
    assert record.results().keys() == {"loss", "accuracy", "val_loss", "val_accuracy", "metrics"}
